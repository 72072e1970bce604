"""Any chunking gives the codes and samples of the whole signal, with the latency and memory that are promised."""

import copy
import io
import itertools
import pickle
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import soundfile
import torch
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.hooks import RemovableHandle

from codec.errors import AudioError, ModelError
from codec.model.codec import Codec, CodecConfig
from codec.model.layers import MAX_FRAMES
from codec.model.quantizer import SimVQConfig
from codec.model.seanet import SEANetEncoderConfig, SEANetStream
from codec.model.vocos import VocosDecoderConfig
from codec.model.weights import load, save
from codec.streaming import MAX_ENCODED_FRAMES, StreamDecoder, StreamEncoder, WindowDecoder


@pytest.fixture(scope="module")
def codec(model_directory) -> Codec:
    return load(model_directory)


@pytest.fixture(scope="module")
def wav(speech) -> torch.Tensor:
    samples, _ = soundfile.read(speech, dtype="float32")
    return torch.from_numpy(samples)


def chunks(total: int, sizes: list[int]) -> list[int]:
    """`sizes` repeated until they add up to `total`."""
    result: list[int] = []
    while sum(result) < total:
        result.append(min(sizes[len(result) % len(sizes)], total - sum(result)))
    return result


CHUNKINGS = {
    "whole": [10**9],
    "one hop": [320],
    "odd": [1, 7, 1000, 0, 5000, 319],
    "larger than handled at once": [(MAX_ENCODED_FRAMES + 3) * 320],
}


@pytest.mark.parametrize("sizes", CHUNKINGS.values(), ids=CHUNKINGS.keys())
def test_stream_encoding_equals_the_whole_file(codec: Codec, wav: torch.Tensor, sizes: list[int]):
    encoder = StreamEncoder(codec)
    wav = wav.repeat(4)
    codes = [encoder.push(piece) for piece in wav.split(chunks(len(wav), sizes))] + [encoder.flush()]
    assert torch.equal(torch.cat(codes), codec.encode(wav[None, None])[0])


@pytest.mark.parametrize("sizes", [[1], [1, 0, 2, 30], [10**9]], ids=["one", "odd", "whole"])
def test_stream_decoding_equals_the_whole_file(codec: Codec, sizes: list[int]):
    codes = torch.randint(codec.codebook_size, (400,), generator=torch.Generator().manual_seed(0))
    decoder = StreamDecoder(codec)
    wav = torch.cat([decoder.push(piece) for piece in codes.split(chunks(len(codes), sizes))] + [decoder.flush()])
    torch.testing.assert_close(wav, codec.decode(codes[None])[0, 0], atol=1e-6, rtol=1e-4)


def test_signals_that_go_forward_together_sound_as_each_by_itself(codec: Codec):
    codes = torch.randint(codec.codebook_size, (3, 60), generator=torch.Generator().manual_seed(0))
    decoder = StreamDecoder(codec)
    together = torch.cat([decoder.push(piece) for piece in codes.split([1, 1, 0, 50, 8], dim=1)], dim=1)
    for row, wav in zip(codes, together, strict=True):
        torch.testing.assert_close(wav, StreamDecoder(codec).push(row), atol=1e-6, rtol=1e-4)
    with pytest.raises(ModelError, match="has 3 signals, got 1"):
        decoder.push(codes[0])
    decoder.reset()
    with pytest.raises(ModelError, match="at least one signal"):
        decoder.push(codes[:0])
    assert decoder.push(codes[0]).shape == (60 * codec.hop_length,)


def test_signals_of_any_age_go_forward_together_and_leave(codec: Codec):
    codes = torch.randint(codec.codebook_size, (4, 300), generator=torch.Generator().manual_seed(0))
    alone = [StreamDecoder(codec).push(row) for row in codes]
    ages = [1, 20, 200, 2]
    decoders = [StreamDecoder(codec) for _ in codes]
    heard = [[decoder.push(row[:age])] for decoder, row, age in zip(decoders, codes, ages, strict=True)]

    def go_on(decoder: StreamDecoder, rows: list[int], size: int) -> None:
        wavs = decoder.push(torch.stack([codes[row, ages[row] : ages[row] + size] for row in rows]))
        for row, wav in zip(rows, wavs, strict=True):
            heard[row].append(wav)
            ages[row] += size

    batch = StreamDecoder(codec).join(*decoders[:3])
    go_on(batch, [0, 1, 2], 1)
    go_on(batch, [0, 1, 2], 1)
    batch = batch.join(decoders[3])
    go_on(batch, [0, 1, 2, 3], 60)
    batch = batch.select(torch.tensor([3, 0]))
    go_on(batch, [3, 0], 1)
    go_on(batch, [3, 0], 90)
    go_on(batch.select(iter([0])), [3], 5)
    assert ages == [154, 82, 262, 158]
    for row, parts in enumerate(heard):
        wav = torch.cat(parts)
        torch.testing.assert_close(wav, alone[row][: len(wav)], atol=2e-6, rtol=1e-4)
    assert batch.select([]).num_signals == StreamDecoder(codec).join().num_signals == 0


def test_signals_are_encoded_together_as_each_by_itself(codec: Codec, wav: torch.Tensor):
    wavs = torch.stack([wav[:60000], wav[20000:80000], -wav[:60000]])
    encoder = StreamEncoder(codec)
    pieces = wavs.split([1, 0, 999, 5000, 320, 53680], dim=1)
    together = torch.cat([*(encoder.push(piece) for piece in pieces), encoder.flush()], dim=1)
    assert torch.equal(together, codec.encode(wavs[:, None]))
    encoder.push(wavs[:, :100])
    with pytest.raises(ModelError, match="has 3 signals, got 1"):
        encoder.push(wav)
    with pytest.raises(ModelError, match="at least one signal"):
        StreamEncoder(codec).push(wavs[:0])
    mirrors = StreamEncoder(mirroring(codec))
    with pytest.raises(ModelError, match="mirrors the signal at its ends takes one signal, got 3"):
        mirrors.push(wavs)
    assert mirrors.push(wavs[:1]).shape[0] == mirrors.num_signals == 1
    for use in (lambda: mirrors.select([0]), mirrors.join):
        with pytest.raises(ModelError, match="mirrors the signal at its ends cannot go on elsewhere"):
            use()


@pytest.mark.parametrize("delay", [3, 0])
def test_signals_that_are_encoded_join_once_they_have_given_a_code_and_leave(
    codec: Codec, wav: torch.Tensor, delay: int
):
    if not delay:
        codec = not_predictive(codec)
    hop = codec.hop_length
    early, late = StreamEncoder(codec), StreamEncoder(codec)
    codes = {"early": [early.push(wav[: 50 * hop])], "late": []}
    position = {"early": 50 * hop, "late": 0}

    def go_on(encoder: StreamEncoder, names: list[str], size: int) -> None:
        some = encoder.push(torch.stack([wav[position[name] : position[name] + size] for name in names]))
        for name, row in zip(names, some, strict=True):
            codes[name].append(row)
            position[name] += size

    while not codes["late"] or not codes["late"][-1].numel():
        go_on(late, ["late"], hop)
        if position["late"] < codec.encoder.lookahead_samples + max(delay, 1) * hop:
            for one, other in ((early, late), (late, early)):
                with pytest.raises(ModelError, match="different numbers of samples wait; push whole hops, and join"):
                    one.join(other)
    both = early.join(late, StreamEncoder(codec))
    assert len(copy.copy(both).flush()) == 2  # although none was pushed in rows
    go_on(both, ["early", "late"], hop)
    go_on(both, ["early", "late"], 70 * hop + 100)
    both, left = both.select([1, 0]), both.select([False, True])
    codes["late"].append(left.flush()[0])  # in rows, as the signals were pushed last
    assert torch.equal(torch.cat(codes["late"]), codec.encode(wav[None, None, : position["late"]])[0])
    one = both.select([1])
    go_on(one, ["early"], 999)
    codes["early"].append(one.flush()[0])
    assert torch.equal(torch.cat(codes["early"]), codec.encode(wav[None, None, : position["early"]])[0])
    assert len(both.flush()) == 2
    assert both.flush().shape == (0,)


Stream = TypeVar("Stream", StreamEncoder, StreamDecoder)


def elsewhere(stream: Stream) -> Stream:
    """What another process makes of a stream."""
    data = io.BytesIO()
    torch.save(stream.state_dict(), data)
    data.seek(0)
    other = type(stream)(copy.deepcopy(stream.codec))
    other.load_state_dict(torch.load(data))
    return other


@pytest.mark.parametrize("branch", [copy.copy, copy.deepcopy, lambda decoder: decoder.select([0]), elsewhere])
def test_a_signal_that_branches_off_goes_on_by_itself(codec: Codec, branch: Callable[[StreamDecoder], StreamDecoder]):
    codes = torch.randint(codec.codebook_size, (3, 40), generator=torch.Generator().manual_seed(0))
    decoder = StreamDecoder(codec)
    decoder.push(codes[0])
    other = branch(decoder)
    sounds = [decoder.push(codes[1]), other.push(codes[2])]
    for tail, sound in zip(codes[1:], sounds, strict=True):
        expected = StreamDecoder(codec).push(torch.cat([codes[0], tail]))[40 * codec.hop_length :]
        torch.testing.assert_close(sound, expected, atol=1e-6, rtol=1e-4)


def test_copies_of_a_decoder_share_its_model_and_can_join_it(codec: Codec):
    decoder = StreamDecoder(codec)
    decoder.push(torch.tensor([1, 2]))
    assert copy.deepcopy([decoder])[0].join(decoder).num_signals == 2


def test_states_of_other_streams_are_refused(codec: Codec):
    decoder, fresh = StreamDecoder(codec), StreamDecoder(codec)
    fresh.load_state_dict(decoder.state_dict())
    assert fresh.num_signals == 0
    decoder.push(torch.tensor([[1], [2]]))
    state = decoder.state_dict()
    name, memory = next(iter(state.items()))
    others = [
        state | {name: memory[:-1]},
        state | {name: tuple(kept[:1] for kept in memory)},
        state | {"other": memory},
    ]
    narrow = tuple(kept[..., :-1] for kept in memory)
    halved = tuple(kept.half() for kept in memory)
    for other in (*others, state | {name: narrow}, state | {name: halved}, {name: memory}, {name: 1}, [1], "state"):
        with pytest.raises(ModelError, match="not the state of a stream of this model; StreamDecoder"):
            fresh.load_state_dict(other)
    assert fresh.num_signals == 0


def test_an_encoder_goes_on_elsewhere_as_it_would_here(codec: Codec, wav: torch.Tensor):
    expected = codec.encode(wav[None, None])[0]
    for pushed in (0, 100, 2000, 50000):
        encoder = StreamEncoder(codec)
        codes = [encoder.push(wav[:pushed])]
        other = elsewhere(encoder)
        codes += [other.push(wav[pushed:80000]), other.push(wav[80000:]), other.flush()]
        assert torch.equal(torch.cat(codes), expected)


@pytest.mark.parametrize("precisions", [(True, False), (False, True)], ids=["16 bits first", "16 bits then"])
def test_streams_go_on_elsewhere_at_another_precision(codec: Codec, wav: torch.Tensor, precisions: tuple[bool, bool]):
    """As in a server that only pushes under autocast, and restores its streams outside."""

    def precision(is_narrow: bool) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=is_narrow)

    before, after = precisions
    codes = torch.randint(codec.codebook_size, (2, 40), generator=torch.Generator().manual_seed(0))
    for stream, pieces in ((StreamEncoder(codec), wav[:80000].split(40000)), (StreamDecoder(codec), codes)):
        with precision(before):
            stream.push(pieces[0])
        with precision(after):
            other = elsewhere(stream)
            assert torch.equal(other.push(pieces[1]), stream.push(pieces[1]))


def test_a_state_that_was_kept_in_16_bits_goes_on_like_its_values(codec: Codec, wav: torch.Tensor):
    codes = torch.randint(codec.codebook_size, (40,), generator=torch.Generator().manual_seed(0))
    for stream, some, more in ((StreamEncoder, wav[:40000], wav[40000:80000]), (StreamDecoder, codes, codes)):
        begun = stream(codec)
        begun.push(some)
        narrow = tree_map(lambda kept: kept.bfloat16() if kept.dtype == torch.float32 else kept, begun.state_dict())
        wide = tree_map(lambda kept: kept.float() if kept.dtype == torch.bfloat16 else kept, narrow)
        told = []
        for state in (narrow, wide):
            other = stream(codec)
            other.load_state_dict(state)
            told.append(other.push(more))
        assert torch.equal(*told)


def test_states_of_other_encoders_are_refused(codec: Codec, wav: torch.Tensor):
    encoder, decoder, other = StreamEncoder(codec), StreamDecoder(codec), StreamEncoder(codec)
    encoder.push(wav[:9999])
    decoder.push(torch.tensor([1]))
    state = encoder.state_dict()
    others = [{name: state[name] for name in state if name != left_out} for left_out in state]
    others += [state | {name: tuple(kept[:0] for kept in memory)} for name, memory in state.items() if name]
    # The name of the model itself is empty; under it are the samples that wait.
    others += [{name: tuple(kept[:0] for kept in memory) for name, memory in state.items()}]
    others += [state | {"": (wav[:100].double(),)}, state | {"": (wav[:100],)}, {}, decoder.state_dict()]
    for foreign in others:
        with pytest.raises(ModelError, match="not the state of a stream of this model; StreamEncoder"):
            other.load_state_dict(foreign)
    assert torch.equal(torch.cat([other.push(wav), other.flush()]), codec.encode(wav[None, None])[0])


def test_an_encoder_forgets_that_it_had_rows_when_it_takes_another_state(codec: Codec, wav: torch.Tensor):
    encoder, other = StreamEncoder(codec), StreamEncoder(codec)
    encoder.push(wav[:9999])
    other.push(wav[None, :5000])
    other.load_state_dict(encoder.state_dict())
    assert torch.equal(other.flush(), encoder.flush())


def test_an_encoder_that_mirrors_the_ends_has_no_state_to_go_on_elsewhere(codec: Codec):
    mirrors = StreamEncoder(mirroring(codec))
    for use in (mirrors.state_dict, lambda: mirrors.load_state_dict({})):
        with pytest.raises(ModelError, match="mirrors the signal at its ends cannot go on elsewhere"):
            use()


@pytest.mark.parametrize("stream", [StreamEncoder, StreamDecoder])
def test_a_stream_is_not_pickled_with_its_model(codec: Codec, stream: type):
    with pytest.raises(TypeError, match=rf"a {stream.__name__} cannot be pickled, .* send its state_dict\(\)"):
        pickle.dumps(stream(codec))


def running_out_of_memory(layer: torch.nn.Module, call: int) -> RemovableHandle:
    """While it is entered, a layer fails at this call, the first being 1."""
    calls = itertools.count(1)

    def fail(*_: object) -> None:
        if next(calls) == call:
            raise MemoryError

    return layer.register_forward_hook(fail)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("is_mirroring", [False, True])
def test_samples_of_any_floating_point_type_give_the_codes_of_float32(
    codec: Codec, wav: torch.Tensor, is_mirroring: bool, dtype: torch.dtype
):
    model, wav = mirroring(codec) if is_mirroring else codec, wav[:9600].to(dtype)
    codes = model.encode(wav.float()[None, None])
    assert torch.equal(model.encode(wav[None, None]), codes)
    assert torch.equal(model.encode(wav[None, None], torch.tensor([9600])), codes)
    assert torch.equal(model(wav[None, None]).codes, codes)
    encoder = StreamEncoder(model)
    assert torch.equal(torch.cat([encoder.push(wav), encoder.flush()]), codes[0])


@pytest.mark.parametrize("is_mirroring", [False, True])
def test_an_encoder_stays_as_it_was_where_encoding_fails(codec: Codec, wav: torch.Tensor, is_mirroring: bool):
    """In the second of the stretches that are handled at once, when some of the codes are already chosen."""
    model = mirroring(codec) if is_mirroring else codec
    encoder, undisturbed = StreamEncoder(model), StreamEncoder(model)
    start, long = wav[:5000], wav.repeat(3)
    codes = [encoder.push(start)]
    last_layer = model.encoder.last if is_mirroring else model.encoder.output
    with running_out_of_memory(last_layer, call=2), pytest.raises(MemoryError):
        encoder.push(long)
    codes.append(encoder.push(long))
    with running_out_of_memory(last_layer, call=1), pytest.raises(MemoryError):
        encoder.flush()
    codes.append(encoder.flush())
    expected = [undisturbed.push(start), undisturbed.push(long), undisturbed.flush()]
    assert torch.equal(torch.cat(codes), torch.cat(expected))


def test_a_decoder_of_windows_stays_as_it_was_where_decoding_fails(codec: Codec):
    """In the second window, when the sound of the first is already complete."""
    model = of_whole_clips(codec)
    codes = torch.randint(codec.codebook_size, (60,), generator=torch.Generator().manual_seed(0))
    decoder, undisturbed = WindowDecoder(model, 16, 8), WindowDecoder(model, 16, 8)
    with running_out_of_memory(model.decoder, call=2), pytest.raises(MemoryError):
        decoder.push(codes)
    sound = [decoder.push(codes)]
    with running_out_of_memory(model.decoder, call=1), pytest.raises(MemoryError):
        decoder.flush()
    sound.append(decoder.flush())
    assert torch.equal(torch.cat(sound), torch.cat([undisturbed.push(codes), undisturbed.flush()]))


@pytest.mark.parametrize("as_rows", [list, np.array, torch.tensor, lambda mask: list(torch.tensor(mask))])
def test_a_mask_says_which_signals_go_on(codec: Codec, as_rows: Callable[[list[bool]], Iterable]):
    codes = torch.randint(codec.codebook_size, (3, 20), generator=torch.Generator().manual_seed(0))
    decoder = StreamDecoder(codec)
    decoder.push(codes[:, :10])
    expected = decoder.select([0, 2]).push(codes[[0, 2], 10:])
    assert torch.equal(decoder.select(as_rows([True, False, True])).push(codes[[0, 2], 10:]), expected)
    assert decoder.select(as_rows([False] * 3)).num_signals == 0
    for mask in ([True, False], [[True], [False], [True]]):
        with pytest.raises(ModelError, match="or a bool for each, got"):
            decoder.select(as_rows(mask))


def test_rows_that_are_not_there_and_other_models_are_refused(codec: Codec, model_directory: Path):
    decoder = StreamDecoder(codec)
    decoder.push(torch.tensor([[1], [2]]))
    for rows in ([2], [-1], [0, True], [0.0], torch.tensor(0), 5, None):
        with pytest.raises(ModelError, match="ints from 0 on, below the 2 signals there are, or a bool for each, got "):
            decoder.select(rows)
    with pytest.raises(ModelError, match="loaded twice, cannot go forward together"):
        decoder.join(StreamDecoder(load(model_directory)))
    for other in (None, [decoder]):
        with pytest.raises(ModelError, match=f"a StreamDecoder is joined by others, got {type(other).__name__}"):
            decoder.join(other)


@pytest.mark.parametrize("stream", [StreamEncoder, StreamDecoder, WindowDecoder])
def test_a_stream_needs_a_loaded_model(stream: Callable[[object], object]):
    with pytest.raises(ModelError, match=r"a model as codec\.load gives it, got str"):
        stream("stream")


def test_every_code_gives_its_samples_at_once(codec: Codec):
    decoder = StreamDecoder(codec)
    assert all(len(decoder.push(torch.tensor([code]))) == codec.hop_length for code in (5, 0, 4095))


def test_a_code_waits_for_lookahead_and_delay_and_no_longer(codec: Codec):
    encoder = StreamEncoder(codec)
    needed = (1 + codec.quantizer.delay) * codec.hop_length + codec.encoder.lookahead_samples
    assert len(encoder.push(torch.zeros(needed - 1))) == 0
    assert len(encoder.push(torch.zeros(1))) == 1


def test_flushing_makes_ready_for_the_next_signal(codec: Codec, wav: torch.Tensor):
    encoder, decoder = StreamEncoder(codec), StreamDecoder(codec)
    first = torch.cat([encoder.push(wav), encoder.flush()])
    assert torch.equal(torch.cat([encoder.push(wav), encoder.flush()]), first)
    sound = decoder.push(first)
    decoder.flush()
    assert torch.equal(decoder.push(first), sound)


def mirroring(codec: Codec) -> Codec:
    """A model like `codec` but for its encoder, which mirrors the signal at its ends."""
    encoder_config = SEANetEncoderConfig(latent_dim=codec.encoder.latent_dim, num_filters=4)
    return Codec(CodecConfig(24000, encoder_config, codec.config.quantizer, codec.config.decoder)).eval()


def not_predictive(codec: Codec) -> Codec:
    """A model like `codec` but for its quantizer, which looks at each frame by itself."""
    quantizer = SimVQConfig(codebook_size=256, codebook_dim=codec.encoder.latent_dim)
    return Codec(replace(codec.config, quantizer=quantizer)).eval()


def of_whole_clips(codec: Codec) -> Codec:
    """A model like `codec` but for its networks, which are those of the reference family."""
    sizes = {"width": 16, "inner_width": 24, "num_blocks": 1, "num_groups": 4}
    decoder_config = VocosDecoderConfig(latent_dim=codec.decoder.latent_dim, **sizes)
    return Codec(replace(mirroring(codec).config, decoder=decoder_config)).eval()


def test_what_was_reset_is_as_new(codec: Codec, wav: torch.Tensor):
    for model in (mirroring(codec), codec):
        encoder, other = StreamEncoder(model), StreamEncoder(model)
        encoder.push(wav[:30000])
        encoder.reset()
        codes = torch.cat([encoder.push(wav), encoder.flush()])
        assert torch.equal(codes, torch.cat([other.push(wav), other.flush()]))
    decoder = StreamDecoder(codec)
    decoder.push(codes[None, :5].repeat(2, 1))
    decoder.reset()
    assert torch.equal(decoder.push(codes), StreamDecoder(codec).push(codes))


@pytest.mark.parametrize("is_mirroring", [False, True])
def test_copies_of_an_encoder_go_on_by_themselves(codec: Codec, wav: torch.Tensor, is_mirroring: bool):
    model = mirroring(codec) if is_mirroring else codec
    encoder = StreamEncoder(model)
    codes = [encoder.push(wav[:50000])]
    for copied in (copy.copy(encoder), copy.deepcopy(encoder), encoder):
        ends = torch.cat([*codes, copied.push(wav[50000:80000]), copied.push(wav[80000:]), copied.flush()])
        assert copied.codec is model
        assert torch.equal(ends, model.encode(wav[None, None])[0])


def test_copies_of_a_stream_that_mirrors_go_on_by_themselves(codec: Codec, wav: torch.Tensor):
    """Codes of a model that has learned nothing would not show it."""
    encoder = mirroring(codec).encoder
    stream = SEANetStream(encoder)
    start, middle, end = wav[None, None].split([50000, 30000, len(wav) - 80000], dim=2)
    first = stream.push(start)
    for copied in (copy.copy(stream), stream):
        latent = torch.cat([first, copied.push(middle), copied.push(end), copied.flush()], dim=2)
        torch.testing.assert_close(latent, encoder(wav[None, None]), atol=1e-5, rtol=1e-4)


def test_what_streams_give_can_be_trained_with(codec: Codec, wav: torch.Tensor):
    """Their networks run in inference mode, whose tensors no gradient may need."""
    encoder, decoder = StreamEncoder(codec), StreamDecoder(codec)
    codes = [encoder.push(wav), encoder.flush()]
    sounds = [decoder.push(some) for some in codes]
    weight = torch.ones(codec.codebook_size, requires_grad=True)
    gain = torch.ones((), requires_grad=True)
    sum((weight[some].sum() for some in codes), sum((gain * sound).sum() for sound in sounds)).backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, torch.bincount(torch.cat(codes), minlength=len(weight)).float())
    assert gain.grad is not None
    torch.testing.assert_close(gain.grad, torch.cat(sounds).sum(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("is_streamable", [True, False])
def test_a_default_device_changes_nothing(codec: Codec, wav: torch.Tensor, tmp_path: Path, is_streamable: bool):
    """Models and samples say where they are; on "meta" nothing could be computed."""
    save(codec if is_streamable else of_whole_clips(codec), tmp_path)

    def round_trips() -> list[torch.Tensor]:
        model = load(tmp_path)
        codes = model.encode(wav[None, None])
        encoder, decoder = StreamEncoder(model), StreamDecoder(model) if is_streamable else WindowDecoder(model)
        results = [codes, model.decode(codes), encoder.push(wav[:99]), encoder.push(wav), decoder.push(codes[0, :200])]
        if is_streamable:
            encoder.load_state_dict(encoder.state_dict())
            decoder.load_state_dict(decoder.select([0]).join().state_dict())
        ends = [encoder.flush(), encoder.flush(), decoder.push(codes[0, 200:]), decoder.flush(), decoder.flush()]
        return results + ends

    expected = round_trips()
    with torch.device("meta"):
        results = round_trips()
    for result, same in zip(results, expected, strict=True):
        assert torch.equal(result, same)


def test_compiled_networks_are_those_that_streams_run(codec: Codec):
    model, graphs = copy.deepcopy(codec), []

    def backend(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    cases = (model.encoder, StreamEncoder, torch.randn(6400) / 10), (model.decoder, StreamDecoder, torch.arange(20))
    for number, (network, stream, piece) in enumerate(cases):
        assert len(graphs) == number
        network.compile(backend=backend, dynamic=False)
        torch.testing.assert_close(stream(model).push(piece), stream(codec).push(piece))
    assert len(graphs) == 2  # each in one piece
    graphs.clear()
    encoder, undisturbed = StreamEncoder(model), StreamEncoder(codec)
    for piece in (torch.randn(20000) / 10).split(1000):
        torch.testing.assert_close(encoder.push(piece), undisturbed.push(piece))
    assert len(graphs) < 8  # else torch gives up and runs it as it is


def test_what_is_remembered_of_joined_selected_and_loaded_signals_is_of_the_same_kind(codec: Codec):
    """Else a compiled decoder takes them for something new, and compiles another program."""
    decoder = StreamDecoder(codec)
    decoder.push(torch.tensor([[1], [2]]))
    loaded = StreamDecoder(codec)
    loaded.load_state_dict(decoder.state_dict())
    for stream in (decoder, decoder.join(decoder), decoder.select([1]), loaded):
        assert all(leaf.is_inference() for leaf in tree_leaves(list(stream._state.values())))


def test_an_empty_signal_has_no_codes(codec: Codec):
    assert len(StreamEncoder(codec).flush()) == 0


@pytest.mark.parametrize("num_codes", [1, 120, 127, 128, 1000])
def test_a_state_holds_only_what_is_remembered(codec: Codec, num_codes: int):
    decoder = StreamDecoder(codec)
    decoder.push(torch.zeros(num_codes, dtype=torch.int64))
    for kept in itertools.chain(*decoder.state_dict().values()):
        assert kept.untyped_storage().nbytes() == kept.nbytes


def test_what_streams_keep_in_memory_does_not_grow(codec: Codec):
    """Not what their tensors show but all that these keep from being freed."""
    encoder, decoder = StreamEncoder(codec), StreamDecoder(codec)
    sizes = []
    for num_frames in (300, 300, 700, 300, 1400):
        decoder.push(encoder.push(torch.zeros(320 * num_frames)))
        kept = [list(encoder._state.values()), list(decoder._state.values())]
        storages = [leaf.untyped_storage() for leaf in tree_leaves(kept) if isinstance(leaf, torch.Tensor)]
        sizes.append(sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values()))
    assert len(set(sizes)) == 1


@pytest.mark.parametrize("num_signals", [1, 3])
def test_however_many_codes_arrive_the_decoder_sees_a_bounded_number_at_once(codec: Codec, num_signals: int):
    sizes = []
    with codec.decoder.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0][:, 0].numel())):
        StreamDecoder(codec).push(torch.zeros(num_signals, MAX_FRAMES + 1, dtype=torch.int64))
    assert max(sizes) <= MAX_FRAMES
    assert sum(sizes) == num_signals * (MAX_FRAMES + 1)


def test_more_signals_than_frames_that_are_seen_at_once_are_decoded(codec: Codec):
    codes = torch.zeros(MAX_FRAMES + 1, 1, dtype=torch.int64)
    assert StreamDecoder(codec).push(codes).shape == (MAX_FRAMES + 1, codec.hop_length)


def test_however_much_sound_arrives_the_encoder_sees_a_bounded_stretch_at_once(codec: Codec):
    sizes = []
    with codec.encoder.output.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[1])):
        StreamEncoder(codec).push(torch.zeros((MAX_ENCODED_FRAMES + 1) * 320 + codec.encoder.lookahead_samples))
    assert sizes == [MAX_ENCODED_FRAMES, 1]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int16, torch.int32])
def test_codes_of_any_integer_type_sound_alike(codec: Codec, dtype: torch.dtype):
    codes = torch.tensor([1, 5, 200])
    assert torch.equal(StreamDecoder(codec).push(codes.to(dtype)), StreamDecoder(codec).push(codes))
    assert torch.equal(codec.decode(codes.to(dtype)[None]), codec.decode(codes[None]))


def test_codes_of_which_one_is_wrong_leave_a_stream_as_it_was(codec: Codec):
    decoder, other = StreamDecoder(codec), StreamDecoder(codec)
    with pytest.raises(ModelError, match="got 9999"):
        decoder.push(torch.tensor([7] * MAX_FRAMES + [9999]))
    assert torch.equal(decoder.push(torch.tensor([7, 8])), other.push(torch.tensor([7, 8])))


def test_unusable_input_is_refused(codec: Codec):
    for value in (8000.0, -8000.0):
        with pytest.raises(AudioError, match="samples of 8000, full scale is 1"):
            codec.encode(torch.full((1, 1, 1000), value))
    half = copy.deepcopy(codec).half()
    for use in (lambda: half.encode(torch.zeros(1, 1, 1000)), lambda: half.decode(torch.zeros(1, 3).long()),
                lambda: StreamEncoder(half), lambda: StreamDecoder(half)):  # fmt: skip
        with pytest.raises(ModelError, match=r"must be float32, got torch\.float16; use torch\.autocast"):
            use()
    with pytest.raises(AudioError, match="NaN"):
        StreamEncoder(codec).push(torch.tensor([0.0, float("nan")]))
    with pytest.raises(AudioError, match="NaN"):
        StreamEncoder(codec).push(torch.tensor([[0.0, 0.0], [0.0, float("nan")]]))
    for shape in ((2, 1, 100), ()):
        with pytest.raises(AudioError, match="shape"):
            StreamEncoder(codec).push(torch.zeros(shape))
    for wav in (torch.zeros(100, dtype=torch.int16), torch.zeros(100, dtype=torch.bool), np.zeros(100)):
        with pytest.raises(AudioError, match="audio must be"):
            StreamEncoder(codec).push(wav)
        with pytest.raises(AudioError, match="audio must be"):
            codec.encode(wav[None, None])
    for lengths in (torch.tensor([[100], [50]]), torch.tensor([True, True]), torch.tensor([100j, 50])):
        with pytest.raises(AudioError, match=r"lengths must be integers of shape \(B,\)"):
            codec.encode(torch.zeros(2, 1, 100), lengths)
    with pytest.raises(AudioError, match=r"lengths must be a torch\.Tensor, got list"):
        codec.encode(torch.zeros(2, 1, 100), [100, 50])
    with pytest.raises(ModelError, match=r"as a torch\.Tensor, got ndarray"):
        StreamDecoder(codec).push(np.zeros(1, np.int64))
    with pytest.raises(ModelError, match="got 9999"):
        StreamDecoder(codec).push(torch.tensor([9999]))
