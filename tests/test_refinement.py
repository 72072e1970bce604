"""Refined codes: better by measures that are not the loss, the same however a signal arrives, codes like any other."""

import copy
import pickle
import shutil
from pathlib import Path
from typing import SupportsIndex

import numpy as np
import pytest
import torch
from pesq import pesq
from pystoi import stoi
from torch import Tensor

import codec
from codec import cli, refinement
from codec.audio import read, resample, write
from codec.bitstream import read_codes
from codec.errors import AudioError, ConfigError, ModelError
from codec.evaluation.evaluate import Options, evaluate_folders
from codec.model import weights
from codec.model.codec import Codec, CodecConfig
from codec.model.seanet import SEANetEncoderConfig
from codec.model.vocos import VocosDecoderConfig
from codec.refinement import Listener, RefiningEncoder

HOP = 320


@pytest.fixture(scope="module")
def boxed() -> Codec:
    return weights.load("stream")


@pytest.fixture(scope="module")
def tiny(model_directory: Path) -> Codec:
    return weights.load(model_directory)


@pytest.fixture(scope="module")
def wav(speech: Path) -> Tensor:
    """2.2 s of speech."""
    return torch.from_numpy(read(speech)[0][0, :52800])


@pytest.fixture
def sound(wav: Tensor, tmp_path: Path) -> Path:
    """The first second of it, in a folder of its own."""
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "speech.wav", wav[:24000].numpy(), 24000)
    return tmp_path / "data" / "speech.wav"


def refine(model: Codec, wav: Tensor, steps: SupportsIndex, piece: int | None = None) -> Tensor:
    encoder = RefiningEncoder(model, steps)
    return torch.cat([*(encoder.push(part) for part in wav.split(piece or max(len(wav), 1))), encoder.flush()])


def decode(model: Codec, codes: Tensor, num_samples: int) -> Tensor:
    return model.decode(codes[None])[0, 0, :num_samples]


def test_refined_codes_sound_better_by_measures_that_are_not_the_loss(boxed: Codec, speech: Path) -> None:
    wav = torch.from_numpy(read(speech)[0][0])
    plain, refined = boxed.encode(wav[None, None])[0], refine(boxed, wav, steps=8)
    scores = []
    for codes in (plain, refined):
        reference, estimate = (resample(sound.numpy(), 24000, 16000) for sound in (wav, decode(boxed, codes, len(wav))))
        scores.append((pesq(16000, reference, estimate, "wb"), stoi(reference, estimate, 16000)))
    (pesq_before, stoi_before), (pesq_after, stoi_after) = scores
    assert pesq_after > pesq_before + 0.02
    assert stoi_after > stoi_before + 0.006


def test_each_step_may_only_lower_the_loss(tiny: Codec, wav: Tensor) -> None:
    wav, listener = wav[24000:], Listener(24000)
    choices = [tiny.encode(wav[None, None])[0], *(refine(tiny, wav, steps) for steps in (1, 8))]
    losses = [listener(wav, decode(tiny, codes, len(wav))) for codes in choices]
    assert losses[1] <= losses[0]
    assert losses[2] < losses[0]


@pytest.mark.parametrize("piece", [1000, None])
def test_codes_do_not_depend_on_how_the_signal_arrives(
    piece: int | None, tiny: Codec, wav: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refinement, "SEGMENT_FRAMES", 48)
    monkeypatch.setattr(refinement, "FRAMES_AHEAD", 8)
    wav = wav[:40001]
    encoder = RefiningEncoder(tiny, 1)
    expected = torch.cat([encoder.push(wav), encoder.flush()])
    assert len(expected) == -(-len(wav) // HOP)
    assert torch.equal(refine(tiny, wav, 1, piece), expected)
    assert torch.equal(torch.cat([encoder.push(wav), encoder.flush()]), expected), "a flushed encoder is as new"


def test_each_segment_goes_on_from_the_codes_before_it(
    boxed: Codec, wav: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Codes of a predictive quantizer mean nothing without those before them, and segments must not be heard."""
    monkeypatch.setattr(refinement, "SEGMENT_FRAMES", 60)
    encoder, listener = RefiningEncoder(boxed, 2), Listener(24000)
    whole = torch.cat([encoder.push(wav), encoder.flush()])
    plain = boxed.encode(wav[None, None])[0]
    assert listener(wav, decode(boxed, whole, len(wav))) < listener(wav, decode(boxed, plain, len(wav)))


def test_without_steps_of_any_size_codes_are_those_of_the_encoder(
    boxed: Codec, wav: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("SEGMENT_FRAMES", 60), ("STEP_SIZE", 0.0), ("PULL", 0.0)):
        monkeypatch.setattr(refinement, name, value)
    with torch.inference_mode():  # which is left for the time being
        codes = refine(boxed, wav, 1)
    same = (codes == boxed.encode(wav[None, None])[0]).float().mean()
    assert same > 0.98  # where a segment ends, other ways on are given up earlier


def test_codes_come_five_seconds_at_a_time_half_a_second_after_their_sound(boxed: Codec) -> None:
    encoder, needed = RefiningEncoder(boxed, 0), (384 + 32) * HOP + boxed.encoder.lookahead_samples
    assert needed / 24000 == pytest.approx(5.12 + 0.5, abs=0.01)
    assert len(encoder.push(torch.zeros(needed - 1))) == 0
    assert len(encoder.push(torch.zeros(1))) == 384


def test_each_stretch_is_heard_with_what_was_before_it_and_what_lies_ahead(
    tiny: Codec, wav: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refinement, "SEGMENT_FRAMES", 48)
    monkeypatch.setattr(refinement, "FRAMES_AHEAD", 8)
    heard, wav = [], wav[:40001]  # 126 frames
    encoder = RefiningEncoder(tiny, 0)
    encoder.listener = lambda *wavs: heard.append(wavs) or torch.zeros(())  # type: ignore[assignment]
    sound = decode(tiny, torch.cat([encoder.push(wav), encoder.flush()]), len(wav))
    for (reference, estimate), (start, now, end) in zip(heard, [(0, 0, 56), (8, 48, 104), (56, 96, 126)], strict=True):
        assert torch.equal(reference, wav[start * HOP : end * HOP])
        assert len(estimate) == len(reference)
        before = (now - start) * HOP
        torch.testing.assert_close(estimate[:before], sound[start * HOP : now * HOP], atol=1e-5, rtol=1e-4)


def test_every_step_goes_on_behind_the_codes_that_are_decided(
    boxed: Codec, wav: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("SEGMENT_FRAMES", 60), ("STEP_SIZE", 0.0), ("PULL", 0.0)):
        monkeypatch.setattr(refinement, name, value)
    heard: list[Tensor] = []
    encoder = RefiningEncoder(boxed, 2)
    listener = encoder.listener
    encoder.listener = lambda *wavs: heard.append(wavs[1].detach()) or listener(*wavs)  # type: ignore[assignment]
    encoder.push(wav)
    assert len(heard) == 6  # of each of two stretches what it is and what two steps without length make of it
    for first, second, third in (heard[:3], heard[3:]):
        assert torch.equal(first, second)
        assert torch.equal(first, third)


def test_nothing_is_kept_that_leads_to_a_gradient(tiny: Codec, wav: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would grow with the signal."""
    monkeypatch.setattr(refinement, "SEGMENT_FRAMES", 48)
    monkeypatch.setattr(refinement, "FRAMES_AHEAD", 8)
    encoder = RefiningEncoder(tiny, 1)
    assert len(encoder.push(wav[:30000].clone().requires_grad_())) == 48
    assert not any(kept.requires_grad for kept in (encoder._wav, *encoder._before))


@pytest.mark.parametrize("num_samples", [0, 1, 320, 321, 5000])
def test_signals_of_any_length_have_their_codes(num_samples: int, tiny: Codec, wav: Tensor) -> None:
    assert len(refine(tiny, wav[:num_samples], 1)) == -(-num_samples // HOP)


def test_silence_can_be_refined(tiny: Codec) -> None:
    assert len(refine(tiny, torch.zeros(20000), 2)) == 63


def test_what_is_no_sound_is_refused(tiny: Codec) -> None:
    encoder = RefiningEncoder(tiny, 1)
    with pytest.raises(AudioError, match="NaN"):
        encoder.push(torch.full((100,), torch.nan))
    with pytest.raises(AudioError, match=r"shape \(T,\)"):
        encoder.push(torch.zeros(2, 100))


@pytest.mark.parametrize("steps", [-1, 1001, 2.0, "4", True, None])
def test_steps_that_cannot_be_meant_are_refused(steps: object, tiny: Codec, speech: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="to 1000 steps"):
        codec.encode_file(speech, tmp_path / "out.codes", model=tiny, refine=steps)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="to 1000 steps"):
        Options(refine=steps)  # type: ignore[arg-type]


def test_any_integer_is_a_number_of_steps(tiny: Codec, wav: Tensor) -> None:
    wav = wav[:5000] + 0.3  # an offset that ends with the signal is no step
    assert torch.equal(refine(tiny, wav, np.int64(2)), refine(tiny, wav, 2))
    assert torch.equal(refine(tiny, wav, 0), tiny.encode(wav[None, None])[0])


def test_what_goes_wrong_leaves_the_encoder_as_it_was(
    tiny: Codec, wav: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refinement, "SEGMENT_FRAMES", 48)
    monkeypatch.setattr(refinement, "FRAMES_AHEAD", 8)
    encoder, expected = RefiningEncoder(tiny, 1), refine(tiny, wav[:40000], 1)
    start = encoder.push(wav[:10000])
    branches, calls = (copy.copy(encoder), copy.deepcopy(encoder)), iter(range(1000))
    assert all(branch.codec is tiny for branch in branches)
    with pytest.raises(TypeError, match=r"a RefiningEncoder cannot be pickled, since its model would go along$"):
        pickle.dumps(encoder)

    def fail(*_: object) -> None:
        if next(calls) == 5:  # in the second segment
            raise MemoryError

    hook = tiny.decoder.register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        encoder.push(wav[10000:40000])
    hook.remove()
    codes = torch.cat([start, encoder.push(wav[10000:40000]), encoder.flush()])
    assert torch.equal(codes, expected)
    for branch in branches:
        assert torch.equal(torch.cat([start, branch.push(wav[10000:40000]), branch.flush()]), expected)


def test_codes_are_refined_in_16_bit_arithmetic_too(tiny: Codec, sound: Path, tmp_path: Path) -> None:
    report = codec.encode_file(sound, tmp_path / "out.npy", model=tiny, refine=1, precision="bf16")
    assert report.num_frames == 75


def test_models_without_gradients_or_with_other_noise_each_time_are_refused(tiny: Codec) -> None:
    with torch.inference_mode():
        made = Codec(tiny.config)
    with pytest.raises(ModelError, match="made outside"):
        RefiningEncoder(made.eval(), 1)
    with pytest.raises(ModelError, match=r"in eval mode; call model\.eval\(\)"):
        RefiningEncoder(copy.deepcopy(tiny).train(), 1)


def test_model_that_was_loaded_in_inference_mode_is_like_any_other(tiny: Codec, wav: Tensor, tmp_path: Path) -> None:
    with torch.inference_mode():
        weights.save(tiny, tmp_path / "model")
        model = weights.load(tmp_path / "model")
    assert torch.equal(refine(model, wav[:9000], 1), refine(tiny, wav[:9000], 1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_defaults_of_torch_change_nothing(tiny: Codec, wav: Tensor, dtype: torch.dtype) -> None:
    expected = refine(tiny, wav[:9000], 1)
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            encoder = RefiningEncoder(tiny, 1)
            assert torch.equal(torch.cat([encoder.push(wav[:9000]), encoder.flush()]), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_model_that_looks_at_whole_clips_is_refused(
    speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(speech, tmp_path / "one.flac")
    shutil.copy(speech, tmp_path / "two.flac")
    decoder = VocosDecoderConfig(latent_dim=16, width=16, inner_width=24, num_blocks=1, num_groups=4)
    config = CodecConfig(encoder=SEANetEncoderConfig(latent_dim=16, num_filters=4), decoder=decoder)
    with pytest.raises(ModelError, match="only for models that stream"):
        RefiningEncoder(Codec(config).eval(), 1)
    weights.save(Codec(config), tmp_path / "model")
    for command in (
        ["encode", str(tmp_path), str(tmp_path / "out")],
        ["roundtrip", str(speech), str(tmp_path / "out.wav")],
        ["evaluate", "--data", str(tmp_path)],
        ["tokenize", str(tmp_path), str(tmp_path / "out")],
    ):
        assert cli.run([*command, "--model", str(tmp_path / "model"), "--refine", "1"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "only for models that stream" in line


def test_commands_refine(model_directory: Path, sound: Path, tmp_path: Path, tiny: Codec) -> None:
    target, options = tmp_path / "out.codes", ["--model", str(model_directory), "--device", "cpu", "--refine", "1"]
    assert cli.run(["encode", str(sound), str(target), *options]) == 0
    assert (read_codes(target).codes == refine(tiny, torch.from_numpy(read(sound)[0][0]), 1).numpy()).all()
    assert cli.run(["roundtrip", str(sound), str(tmp_path / "out.wav"), *options]) == 0
    heard = torch.from_numpy(read(tmp_path / "out.wav")[0][0])
    expected = decode(tiny, torch.from_numpy(read_codes(target).codes).long(), len(heard)).clamp(-1, 1)
    torch.testing.assert_close(heard, expected, atol=1e-3, rtol=0)


def test_evaluation_of_folders_has_no_codes_to_refine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["evaluate", str(tmp_path), str(tmp_path), "--refine", "2"]) == 2
    assert "--refine is for the codes of --model" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="no codes to refine"):
        evaluate_folders(tmp_path, tmp_path, options=Options(refine=2))


def test_evaluation_says_that_codes_were_refined(
    model_directory: Path, sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, refined = (tmp_path / name for name in ("plain", "refined"))
    for output, more in ((plain, []), (refined, ["--refine", "1"])):
        options = ["--metrics", "mel", "--jobs", "0", "--output", str(output), *more]
        assert cli.run(["evaluate", "--model", str(model_directory), "--data", str(sound.parent), *options]) == 0
    table = capsys.readouterr().out
    assert table.count("refined in 1 step") == 1
    names = [f"{folder}/codes/speech.codes" for folder in (plain, refined)]
    assert (read_codes(names[0]).codes != read_codes(names[1]).codes).any()
    assert cli.run(["evaluate", "--compare", str(plain), str(refined)]) == 0
    a, b = capsys.readouterr().out.splitlines()[:2]
    assert a.startswith("A: ")
    assert "refined" not in a
    assert b.startswith("B: ")
    assert "refined in 1 step" in b
    shutil.copytree(refined, tmp_path / "again")  # to go on there without refining
    options = ["--metrics", "mel", "--jobs", "0", "--output", str(tmp_path / "again")]
    assert cli.run(["evaluate", "--model", str(model_directory), "--data", str(sound.parent), *options]) == 0
    assert (read_codes(tmp_path / "again" / "codes" / "speech.codes").codes == read_codes(names[0]).codes).all()
