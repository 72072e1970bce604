"""The codec as users call it: exact lengths, decode equals the round trip, batches equal single files."""

import copy

import pytest
import torch

from codec.errors import AudioError, ConfigError, ModelError
from codec.model.codec import Codec, CodecConfig
from codec.model.layers import MAX_FRAMES
from codec.model.weights import load


@pytest.fixture(scope="module")
def codec(model_directory) -> Codec:
    """Whose codes depend on those before them, which they do not in a model that has learned nothing."""
    codec = load(model_directory)
    with torch.no_grad():
        codec.quantizer.taps.copy_(noise(*codec.quantizer.taps.shape))
    return codec


def noise(*shape: int) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_rates_of_the_default_model():
    codec = Codec(CodecConfig())
    assert (codec.sample_rate, codec.hop_length, codec.frame_rate) == (24000, 320, 75)
    assert (codec.codebook_size, codec.bits_per_code, codec.bitrate) == (4096, 12, 0.9)
    assert codec.is_streamable


@pytest.mark.parametrize("num_samples", [1, 2, 319, 320, 321, 639, 640, 24000, 24001])
def test_every_length_gives_ceil_frames_and_comes_back_exactly(codec: Codec, num_samples: int):
    wav = noise(1, 1, num_samples)
    codes = codec.encode(wav)
    assert codes.shape == (1, -(-num_samples // 320))
    assert codec.decode(codes, torch.tensor([num_samples])).shape == wav.shape
    assert codec(wav).wav.shape == wav.shape


def test_decode_of_codes_is_the_round_trip_bit_for_bit(codec: Codec):
    wav = noise(2, 1, 20000)
    output = codec(wav)
    assert torch.equal(codec.encode(wav), output.codes)
    assert torch.equal(codec.decode(output.codes)[..., :20000], output.wav)


def test_a_long_recording_goes_through_the_networks_in_pieces(codec: Codec, monkeypatch: pytest.MonkeyPatch):
    wav = noise(1, 1, 320 * (2 * MAX_FRAMES + 5) - 7)
    num_frames = []
    layers = codec.encoder.input, codec.decoder.input
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs: num_frames.append(inputs[0].shape[1])) for layer in layers
    ]
    codes = codec.encode(wav)
    decoded = codec.decode(codes)
    for hook in hooks:
        hook.remove()
    assert len(num_frames) == 6
    assert max(num_frames) <= MAX_FRAMES
    assert torch.equal(codec(wav).wav, decoded[..., : wav.shape[-1]])
    monkeypatch.setattr("codec.model.layers.MAX_FRAMES", 10_000)
    assert torch.equal(codec.encode(wav), codes)
    torch.testing.assert_close(codec.decode(codes), decoded, rtol=0, atol=1e-4)


def test_items_of_a_padded_batch_equal_single_files_whatever_the_padding(codec: Codec):
    lengths = torch.tensor([20000, 1, 6401, 12800])
    wav = noise(4, 1, 20000)
    single = [codec.encode(wav[item : item + 1, :, :length])[0] for item, length in enumerate(lengths)]
    for padding in (0.0, 1.0, -0.5):
        padded = wav.clone()
        for item, length in enumerate(lengths):
            padded[item, :, length:] = padding
        codes = codec.encode(padded, lengths)
        for item, expected in enumerate(single):
            assert torch.equal(codes[item, : len(expected)], expected)
            assert (codes[item, len(expected) :] == -1).all()
    decoded = codec.decode(codes, lengths)
    for item, length in enumerate(lengths):
        alone = codec.decode(single[item][None])[0, :, :length]
        torch.testing.assert_close(decoded[item, :, :length], alone, atol=1e-6, rtol=1e-5)
        assert (decoded[item, :, length:] == 0).all()


def test_an_item_may_end_long_before_the_others(codec: Codec):
    """So long that nothing is left of which an offset could be measured."""
    wav = noise(2, 1, 320 * 320)
    codes = codec.encode(wav, torch.tensor([320 * 320, 640]))
    assert torch.equal(codes[1, :2], codec.encode(wav[1:, :, :640])[0])
    assert (codes[1, 2:] == -1).all()


@pytest.mark.parametrize("lengths", [[1000], [1000, 0], [1000, -1], [1001, 1000], [1000, 1000, 1000]])
def test_lengths_that_do_not_fit_are_refused(codec: Codec, lengths: list[int]):
    with pytest.raises(AudioError, match="lengths must be 2 numbers of samples between 1 and 1000, got"):
        codec.encode(noise(2, 1, 1000), torch.tensor(lengths))


def test_an_offset_is_not_heard(codec: Codec):
    wav = noise(1, 1, 20000)
    num_complete = (20000 - codec.encoder.lookahead_samples) // 320  # later windows are nearly empty
    with torch.inference_mode():
        expected, latent = codec.encoder(wav)[..., :num_complete], codec.encoder(wav + 0.3)[..., :num_complete]
    torch.testing.assert_close(latent, expected, atol=1e-3, rtol=0)


def test_an_offset_that_ends_is_forgotten_after_four_seconds(codec: Codec):
    wav = noise(1, 1, 320 * 500)
    shifted = wav + 0.3 * (torch.arange(wav.shape[-1]) < 320 * 20)
    with torch.inference_mode():
        differing = (codec.encoder(shifted) != codec.encoder(wav)).any(dim=1).nonzero()[:, 1]
    assert differing.max() == pytest.approx(20 + 4 * 75, abs=8)  # of lookahead, and what convolutions look back


def test_a_compiled_codec_gives_the_same(codec: Codec):
    model, wav = copy.deepcopy(codec).train(), noise(1, 1, 1600)
    outputs = []
    for call in (model, torch.compile(model, backend="eager")):  # which needs no C++ compiler
        torch.manual_seed(0)  # the decoder's noise
        outputs.append(call(wav))
    assert torch.equal(outputs[0].codes, outputs[1].codes)
    torch.testing.assert_close(outputs[0].wav, outputs[1].wav)
    outputs[1].wav.square().mean().backward()
    assert next(model.encoder.parameters()).grad.any()


def test_items_of_similar_lengths_are_decoded_at_once(codec: Codec):
    lengths = 320 * torch.tensor([100, 700, 0, 90, 37, 36, 690, 680])
    shapes = []
    with codec.decoder.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0][:, 0].shape)):
        codec.decode(torch.zeros(8, 700, dtype=torch.int64), lengths)
    assert shapes == [(2, 700), (1, 680), (3, 100), (1, 36)]  # no more than 1536 frames, no padding of 64


def test_codes_do_not_depend_on_the_batch_order(codec: Codec):
    wav = noise(3, 1, 5000)
    assert torch.equal(codec.encode(wav).flip(0), codec.encode(wav.flip(0)))


@pytest.mark.parametrize(
    ("wav", "message"),
    [
        (torch.zeros(1, 1, 0), "at least one sample"),
        (torch.zeros(24000), r"shape \(B, 1, T\)"),
        (torch.zeros(1, 2, 24000), r"shape \(B, 1, T\)"),
        (torch.full((1, 1, 100), float("nan")), "NaN"),
        (torch.zeros(1, 1, 100, device="meta"), "audio must be a dense tensor with values, got .* on device meta"),
        (torch.zeros(1, 1, 100).to_sparse(), r"dense tensor with values, got torch\.sparse_coo"),
    ],
    ids=["empty", "rank", "stereo", "NaN", "without values", "sparse"],
)
@pytest.mark.parametrize("is_training", [False, True], ids=["eval", "training"])
def test_unusable_audio_is_refused(codec: Codec, wav: torch.Tensor, message: str, is_training: bool):
    with pytest.raises(AudioError, match=message):
        codec.encode(wav)
    with pytest.raises(AudioError, match=message):
        copy.deepcopy(codec).train(is_training)(wav)


def test_weights_of_16_bits_are_refused(codec: Codec):
    with pytest.raises(ModelError, match=r"must be float32, got torch\.float16; use torch\.autocast"):
        copy.deepcopy(codec).half()(noise(1, 1, 640).half())
    in_part = copy.deepcopy(codec)
    in_part.decoder.half()
    with pytest.raises(ModelError, match=r"must be float32, got torch\.float16; use torch\.autocast"):
        in_part.decode(torch.zeros(1, 3).long())


def test_silence_in_sound_has_a_gradient(codec: Codec):
    """Through the encoder, as where a latent is part of another model's loss."""
    wav = torch.cat([noise(1, 1, 6400), torch.zeros(1, 1, 6400)], dim=2).requires_grad_()
    codec.encoder(wav).square().sum().backward()
    assert torch.isfinite(wav.grad).all()
    assert wav.grad.abs().max() > 0


def test_a_training_loop_without_value_checks_looks_at_no_samples(codec: Codec):
    """So that it does not wait for the device; the loss tells."""
    model = copy.deepcopy(codec).train()
    model.quantizer.checks_values = False
    assert not model(torch.full((1, 1, 640), torch.nan)).quantizer_loss.isfinite()
    with pytest.raises(AudioError, match=r"shape \(B, 1, T\)"):
        model(torch.zeros(640))


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.zeros(1, 0, dtype=torch.int64), "at least one code"),
        (torch.zeros(5, dtype=torch.int64), r"shape \(B, N\)"),
        (torch.zeros(1, 5), "must be integers"),
        (torch.zeros(1, 5, dtype=torch.bool), "must be integers"),
        (torch.tensor([[0, 4096]]), "got 4096"),
        (torch.tensor([[0, -1]]), "got -1"),
        (torch.zeros(1, 5, dtype=torch.int64, device="meta"), "codes must be a dense tensor with values, got .* meta"),
        (torch.zeros(1, 5, dtype=torch.int64).to_sparse(), r"dense tensor with values, got torch\.sparse_coo"),
    ],
    ids=["empty", "rank", "floats", "truth values", "too large", "negative", "without values", "sparse"],
)
def test_unusable_codes_are_refused(codec: Codec, codes: torch.Tensor, message: str):
    with pytest.raises(ModelError, match=message):
        codec.decode(codes)
    if codes.ndim == 2 and codes.numel():
        with pytest.raises(ModelError, match=message):
            codec.decode(codes, torch.tensor([codes.shape[1] * codec.hop_length]))


def test_a_config_survives_json(codec: Codec):
    assert CodecConfig.from_dict(codec.config.to_dict()) == codec.config


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("encoder", "kind"), "magic", "encoder.kind must be one of"),
        (("encoder", "width"), "wide", "encoder.width must be of type int"),
        (("encoder", "width"), 10**20, r"encoder\.width must lie within \+-2\*\*31, got 1"),
        (("encoder",), {"kind": "seanet", "strides": [2, "a"]}, r"encoder\.strides must be of type list\[int\], got"),
        (("encoder",), {"kind": "seanet", "strides": [2, 10**20]}, r"encoder\.strides must lie within"),
        (("decoder", "lowest_pitch"), 10**400, r"decoder\.lowest_pitch must lie within"),
        (("decoder", "colour"), 3, "decoder.colour is not a setting"),
        (("quantizer", "codebook_size"), 1, "codebook_size must be at least 2"),
        (("decoder", "n_fft"), 1000, "multiple"),
        (("decoder",), {"kind": "vocos", "n_fft": 0}, r"decoder\.n_fft must be at least 1, got 0"),
        (("encoder", "short_n_fft"), 100, "short_n_fft"),
        (("encoder", "num_blocks"), 2**31, r"encoder\.num_blocks must be at most 1024"),
        (("encoder", "lookahead"), 2**31, r"encoder\.lookahead must be at most 1024"),
        (("encoder",), {"kind": "seanet", "num_lstm_layers": 2**31}, r"encoder\.num_lstm_layers must be at most 1024"),
        (("quantizer", "delay"), 2**31, r"quantizer\.delay must be at most 1024"),
        (("quantizer", "num_paths"), 2**31, r"quantizer\.num_paths must be at most 1024"),
        (("decoder", "num_blocks"), 2**31, r"decoder\.num_blocks must be at most 1024"),
        (("decoder",), {"kind": "vocos", "num_blocks": 2**31}, r"decoder\.num_blocks must be at most 1024"),
        (("sample_rate",), "24 kHz", "sample_rate"),
        (("sample_rate",), 1_000_001, "sample_rate must be a whole number of Hz from 1 to 1000000, got 1000001"),
    ],
)
def test_mistakes_in_a_config_are_named(codec: Codec, path: tuple[str, ...], value: object, message: str):
    values = copy.deepcopy(codec.config.to_dict())
    node = values
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    with pytest.raises(ConfigError, match=message):
        CodecConfig.from_dict(values)


def test_mistakes_in_several_parts_are_named_together(codec: Codec):
    values = copy.deepcopy(codec.config.to_dict())
    values["encoder"]["short_n_fft"], values["decoder"]["n_fft"], values["quantizer"]["memory"] = 100, 1000, 0
    with pytest.raises(ConfigError, match=r"encoder\.short_n_fft .*; quantizer\.memory .*; decoder\.n_fft "):
        CodecConfig.from_dict(values)


def test_unknown_parts_are_named_in_the_order_in_which_they_stand(codec: Codec):
    unknown = list("hbgdfcea")
    with pytest.raises(ConfigError, match=".*; ".join(f"{name} is no part of a model" for name in unknown)):
        CodecConfig.from_dict(codec.config.to_dict() | dict.fromkeys(unknown))


@pytest.mark.parametrize(("part", "name"), [("decoder", "latent_dim"), ("decoder", "hop_length")])
def test_parts_that_do_not_fit_together_are_refused(codec: Codec, part: str, name: str):
    values = copy.deepcopy(codec.config.to_dict())
    values[part][name] //= 2
    with pytest.raises(ConfigError, match="must"):
        Codec(CodecConfig.from_dict(values))
