"""The scripts beside the recipe of the boxed model."""

import argparse
import importlib.util
import inspect
import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from codec import audio
from codec.config import compose
from codec.model import weights
from codec.model.codec import Codec, CodecConfig
from codec.model.predictive import PredictiveSimVQ, PredictiveSimVQConfig
from codec.model.quantizer import SimVQConfig
from codec.model.seanet import SEANetEncoderConfig
from codec.model.vocos import VocosDecoderConfig
from codec.streaming import StreamDecoder
from codec.training.doctor import Record
from codec.training.trainer import Trainer

RECIPE = Path(__file__).parents[2] / "recipes" / "stream"
SPEECH = Path(__file__).parents[1] / "data"


def refused(result: tuple[int, str, str]) -> str:
    """The one sentence that a script has ended with."""
    code, output, (sentence, *more) = *result[:2], result[2].splitlines()
    assert (code, output, more) == (2, "", [])
    return sentence


def test_an_average_is_the_weighted_mean_of_all_weights(
    run: Callable, model_directory: Path, other_model_directory: Path, tmp_path: Path
):
    models = model_directory, other_model_directory
    assert run("stream/average.py", *models, "--shares", 0.75, 0.25, "--output", tmp_path / "mean") == (0, "", "")
    one, other, mean = (
        weights.load(path).state_dict() for path in (model_directory, other_model_directory, tmp_path / "mean")
    )
    for name, value in mean.items():
        torch.testing.assert_close(value, (0.75 * one[name] + 0.25 * other[name]).half().float(), rtol=2e-3, atol=1e-6)


def test_models_that_have_no_average_are_named(run: Callable, model_directory: Path, tmp_path: Path):
    wider = tmp_path / "wider"
    wider.mkdir()
    config = json.loads((model_directory / "config.json").read_text())
    config["quantizer"]["delay"] += 1
    (wider / "config.json").write_text(json.dumps(config))
    (wider / "model.safetensors").write_bytes((model_directory / "model.safetensors").read_bytes())
    refusals = {
        (0.5, 0.5): f"{wider} has another configuration",
        (0.5, 0.6): "add up to 1, got",
        ("nan", 1): "add up to 1, got",
    }
    for shares, words in refusals.items():
        arguments = (model_directory, wider, "--shares", *shares, "--output", tmp_path / "mean")
        assert words in refused(run("stream/average.py", *arguments))
    assert not (tmp_path / "mean").exists()


def imported(script: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(script, RECIPE / f"{script}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def export() -> ModuleType:
    script = imported("export")
    if torch.__version__ < script.LEAST_TORCH:
        pytest.skip(f"exporting needs torch {script.LEAST_TORCH} or newer")
    return script


def runnable(program: torch.export.ExportedProgram) -> Callable:
    """A program as a function, without checks of what it is given: those of torch 2.9 fail."""
    has_checks = "check_guards" in inspect.signature(program.module).parameters
    return program.module(check_guards=False) if has_checks else program.module()


def test_exported_steps_are_those_of_a_stream(export: ModuleType, model_directory: Path):
    model = weights.load(model_directory)
    first, following = map(runnable, export.programs(export.DecoderStep(model), 2, is_batch=True))
    for num_signals in (2, 5):
        codes = torch.randint(model.codebook_size, (num_signals, 8), generator=torch.Generator().manual_seed(0))
        stream, memory = StreamDecoder(model), []
        for some in codes.split(2, dim=1):
            wav, *memory = following(some, *memory) if memory else first(some)
            torch.testing.assert_close(wav, stream.push(some), rtol=0, atol=1e-5)
        for code in (-1, model.codebook_size):
            with pytest.raises(IndexError):
                following(torch.full_like(some, code), *memory)


@pytest.fixture
def small_codec(request: pytest.FixtureRequest, model_directory: Path, speech: Path) -> Codec:
    """A random model with few codes, so that no two sequences are so nearly equal that rounding decides."""
    config = replace(weights.load(model_directory).config, quantizer=request.param)
    torch.manual_seed(0)
    model = Codec(config).eval()
    with torch.no_grad():
        model.quantizer.match(model.encoder(torch.from_numpy(audio.read(speech, model.sample_rate)[0])[None]))
    if isinstance(model.quantizer, PredictiveSimVQ):  # as 0, which it is then, the network tells nothing
        torch.nn.init.normal_(model.quantizer.expect.weight, std=0.1)
    return model


def encoded_by_steps(model: Codec, wav: torch.Tensor, first: Callable, following: Callable) -> torch.Tensor:
    """Codes of whole signals (B, T), two at a time, as the script says that programs are used."""
    hop, ahead, num_frames = model.hop_length, model.encoder.lookahead_samples, model.num_frames(wav.shape[1])
    wav = F.pad(wav, (0, num_frames * hop + ahead - wav.shape[1]), value=32768.0)
    codes, due, *memory = first(wav[:, : 2 * hop + ahead].contiguous())
    parts = [codes]
    for some in wav[:, 2 * hop + ahead :].split(2 * hop, dim=1):
        codes, due, *memory = following(some.contiguous(), *memory)
        parts.append(codes)
    assert all(tensor.is_contiguous() for tensor in (codes, due, *memory))
    codes = torch.cat([*parts, due], dim=1)
    delay = codes.shape[1] - num_frames
    assert (codes[:, :delay] == -1).all()
    return codes[:, delay:]


@pytest.mark.parametrize(
    "small_codec",
    [
        PredictiveSimVQConfig(codebook_size=64, memory=3, context_width=5, num_paths=4, delay=3),
        PredictiveSimVQConfig(codebook_size=64, num_paths=1, delay=0),
        SimVQConfig(codebook_size=64),
    ],
    indirect=True,
)
def test_exported_steps_give_the_codes_of_whole_signals(export: ModuleType, small_codec: Codec, speech: Path):
    first, following = map(runnable, export.programs(export.EncoderStep(small_codec), 2, is_batch=True))
    samples = torch.from_numpy(audio.read(speech, small_codec.sample_rate)[0])[0]
    for num_signals in (2, 5):
        wav = samples[: num_signals * 11900].view(num_signals, -1)  # 37.2 hops
        expected = small_codec.encode(wav[:, None])
        assert len(expected.unique()) > 20
        torch.testing.assert_close(encoded_by_steps(small_codec, wav, first, following), expected)


@pytest.mark.parametrize("small_codec", [PredictiveSimVQConfig(codebook_size=64)], indirect=True)
def test_codes_by_onnx_runtime_are_those_of_whole_signals(
    export: ModuleType, small_codec: Codec, speech: Path, tmp_path: Path
):
    step, programs = export.EncoderStep(small_codec), []
    for number, program in enumerate(export.programs(step, 2, is_batch=False)):
        path = tmp_path / f"{number}.onnx"
        path.write_bytes(export.onnx_file(program, step.outputs))
        programs.append(export.load_onnx(str(path)))
    wav = torch.from_numpy(audio.read(speech, small_codec.sample_rate)[0])[:, 30000:41900].clone()
    wav[:, 7000:9500] = 0  # behind loud sound, whose energy must not hide how quiet it is
    wav[:, 11000:] *= 1e-4
    expected = small_codec.encode(wav[None])
    torch.testing.assert_close(encoded_by_steps(small_codec, wav, *programs), expected)


@pytest.mark.usefixtures("export")
@pytest.mark.parametrize(
    ("override", "words"), [("model=wavtokenizer-75", "of the stream family"), ("model/quantizer=fsq", "not FSQ")]
)
def test_models_whose_encoding_cannot_be_exported_are_refused(override: str, words: str, run: Callable, tmp_path: Path):
    weights.save(Codec(compose([override]).model).eval(), tmp_path / "model")
    arguments = tmp_path / "exported", "--encode", "--model", tmp_path / "model"
    assert words in refused(run("stream/export.py", *arguments))
    assert not (tmp_path / "exported").exists()


def test_onnx_files_run_by_onnx_runtime_are_those_of_a_stream(
    export: ModuleType, model_directory: Path, tmp_path: Path
):
    model, path = weights.load(model_directory), tmp_path / "next.onnx"
    step = export.DecoderStep(model)
    _, following = export.programs(step, 2, is_batch=False)
    path.write_bytes(export.onnx_file(following, step.outputs))
    program = export.load_onnx(str(path))
    codes = torch.randint(model.codebook_size, (1, 40), generator=torch.Generator().manual_seed(0))
    stream = StreamDecoder(model)
    stream.push(codes[:, :2])
    memory = list(itertools.chain(*stream.state_dict().values()))
    for some in codes[:, 2:].split(2, dim=1):
        wav, *memory = program(some, *memory)
        torch.testing.assert_close(wav, stream.push(some), rtol=0, atol=1e-5)
    for mine, theirs in zip(memory, itertools.chain(*stream.state_dict().values()), strict=True):
        if mine.dtype == torch.float64:  # pitch and phase among them, and what they depend on
            torch.testing.assert_close(mine[:, :2], theirs[:, :2], rtol=0, atol=1e-11)
    for wrong in (codes[:, :1], torch.full((1, 2), model.codebook_size)):
        with pytest.raises(Exception, match="INVALID_ARGUMENT"):
            program(wrong, *memory)


def test_replacements_for_onnx_runtime_are_the_operations_of_torch():
    export, generator = imported("export"), torch.Generator().manual_seed(0)
    x = torch.linspace(-40, 40, 10001, dtype=torch.float64)
    torch.testing.assert_close(export.gelu(x), F.gelu(x), rtol=0, atol=1e-14)
    torch.testing.assert_close(export.cos(x), torch.cos(x), rtol=0, atol=1e-14)
    image = torch.randn(2, 6, 1, 9, dtype=torch.float64, generator=generator)
    weight, bias = (torch.randn(*size, dtype=torch.float64, generator=generator) for size in ((4, 6, 1, 1), (4,)))
    torch.testing.assert_close(export.conv2d(image, weight, bias, [2, 1]), F.conv2d(image, weight, bias, (2, 1)))
    frames = torch.randn(2, 3, 40, generator=generator)
    spectra = torch.fft.rfft(frames)
    torch.testing.assert_close(export.rfft(frames), spectra, rtol=0, atol=1e-5)
    torch.testing.assert_close(export.rfft(frames, 64), torch.fft.rfft(frames, 64), rtol=0, atol=1e-5)
    spectra = spectra * 1j  # with imaginary parts where there can be none, which count for nothing
    torch.testing.assert_close(export.irfft(spectra, 40), torch.fft.irfft(spectra, 40), rtol=0, atol=1e-6)


def test_a_torch_that_cannot_export_is_named(run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "__version__", type(torch.__version__)("2.7.1+cpu"))
    assert "needs torch 2.8 or newer, this is 2.7.1+cpu" in refused(run("stream/export.py", tmp_path / "exported"))
    assert not (tmp_path / "exported").exists()


@pytest.mark.usefixtures("export")
@pytest.mark.parametrize("package", ["onnxscript", "onnxruntime"])
def test_export_names_the_packages_that_onnx_needs(
    package: str, run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, package, None)
    sentence = refused(run("stream/export.py", tmp_path / "exported", "--onnx"))
    assert sentence.startswith("codec: --onnx needs ")
    assert package in sentence
    assert not (tmp_path / "exported").exists()


def test_a_model_with_a_scaled_latent_sounds_the_same(model_directory: Path, speech: Path):
    model, scaled = weights.load(model_directory), weights.load(model_directory)
    factors = torch.tensor([0.25, 2.0, 1.0, 0.5]).repeat(model.quantizer.codebook_dim // 4)  # which round nothing
    imported("balance").scale_latent(scaled, factors)
    wav = torch.from_numpy(audio.read(speech, model.sample_rate)[0])[None]
    with torch.inference_mode():
        latent, codes = model.encoder(wav), model.encode(wav)
        assert torch.equal(scaled.encoder(wav), latent * factors[:, None])
        torch.testing.assert_close(scaled.decoder(latent * factors[:, None]), model.decoder(latent))
        torch.testing.assert_close(scaled.decode(codes), model.decode(codes))
        assert not torch.equal(scaled.encode(wav), codes)


def test_a_balanced_latent_is_scaled_by_the_factors_told(
    run: Callable, model_directory: Path, speech: Path, tmp_path: Path
):
    (tmp_path / "speaker").mkdir()
    (tmp_path / "speaker" / "speech.flac").write_bytes(speech.read_bytes())
    settings = (
        *(f"data.train={tmp_path / 'speaker'}", f"data.cache={tmp_path / 'cache'}", "data.batch_size=1"),
        *("data.window_seconds=0.5", "training.device=cpu", "training.adversarial_seconds=0.2"),
    )
    arguments = (model_directory, "--output", tmp_path / "balanced", "--batches", 2, *settings)
    code, output, errors = run("stream/balance.py", *arguments)
    assert code == 0, errors
    factors = torch.tensor([float(word) for word in output.split()[1:]])
    assert factors.prod() == pytest.approx(1, rel=0.02)  # of rounded numbers
    assert factors.std() > 0.01
    model, balanced = weights.load(model_directory), weights.load(tmp_path / "balanced")
    wav = torch.from_numpy(audio.read(speech, model.sample_rate)[0])[None]
    with torch.inference_mode():
        torch.testing.assert_close(balanced.encoder(wav), model.encoder(wav) * factors[:, None], rtol=5e-3, atol=5e-3)


def test_what_cannot_be_balanced_is_refused(run: Callable, tmp_path: Path):
    torch.manual_seed(0)
    other = Codec(CodecConfig(quantizer=SimVQConfig(codebook_size=8))).eval()
    weights.save(other, tmp_path / "simvq")
    arguments = (tmp_path / "simvq", "--output", tmp_path / "balanced", "data.train=nowhere")
    sentence = "only a stream model with a predictive quantizer can be balanced"
    assert sentence in refused(run("stream/balance.py", *arguments))


@pytest.mark.parametrize(
    ("script", "arguments", "reason"),
    [
        ("conditions.py", [SPEECH], "takes 16000 Hz, and the conditions are made at 24000 Hz"),
        ("probe.py", ["--data", SPEECH], "only a stream model can be probed, it has a pitch"),
    ],
)
def test_models_that_a_script_cannot_judge_are_refused(
    script: str, arguments: list[object], reason: str, run: Callable, tmp_path: Path
):
    encoder = SEANetEncoderConfig(latent_dim=8, num_filters=4)
    decoder = VocosDecoderConfig(latent_dim=8, width=16, inner_width=24, num_blocks=1, num_groups=4)
    quantizer = SimVQConfig(codebook_size=16, codebook_dim=8)
    weights.save(Codec(CodecConfig(16000, encoder, quantizer, decoder)), tmp_path / "other")
    sentence = refused(run(f"stream/{script}", *arguments, "--model", tmp_path / "other"))
    assert sentence == f"codec: {tmp_path / 'other'}: {reason}"


@pytest.fixture(scope="module")
def release() -> ModuleType:
    return imported("release")


def test_what_goes_wrong_in_a_release_leaves_the_old_one(release: ModuleType, tmp_path: Path):
    old, picture, new, new_picture = (tmp_path / name for name in ("old", "picture", "new", "new picture"))
    (old / "deep").mkdir(parents=True)
    (old / "deep" / "weights").write_text("old")
    picture.write_text("old")
    with pytest.raises(KeyboardInterrupt), release.replaced_as_a_whole(old, picture, new, new_picture):
        (old / "deep" / "weights").write_text("new")
        (old / "more").write_text("new")
        picture.write_text("new")
        new.mkdir()
        new_picture.write_text("new")
        raise KeyboardInterrupt
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["deep", "old", "picture", "weights"]
    assert (old / "deep" / "weights").read_text() == "old"
    assert picture.read_text() == "old"
    with release.replaced_as_a_whole(old, picture):
        (old / "deep" / "weights").write_text("new")
        picture.write_text("new")
    assert (old / "deep" / "weights").read_text() == "new"
    assert picture.read_text() == "new"


def test_pictures_of_a_release_are_of_any_sound_files(release: ModuleType, speech: Path, tmp_path: Path):
    audio.write(tmp_path / "speech.wav", *audio.read(speech))
    release.draw_samples(tmp_path, tmp_path / "samples.png")
    assert (tmp_path / "samples.png").read_bytes().startswith(b"\x89PNG")


def test_scores_of_a_single_file_have_no_interval(release: ModuleType):
    column = {"label": "PESQ", "unit": "", "mean": 2.0, "digits": 2, "num": 1, "low": None, "high": None}
    metrics = {"a": column, "b": column | {"unit": "dB", "num": 9, "low": 1.5, "high": 2.5}}
    rows = ["| PESQ | 2.00 |  | 1 |", "| PESQ (dB) | 2.00 | 1.50 .. 2.50 | 9 |"]
    assert release.score_rows({"metrics": metrics}) == rows


def test_a_card_tells_the_data_that_it_is_given_and_what_the_runs_did(release: ModuleType):
    config = {"data": {"batch_size": 4, "window_seconds": 1.5}, "training": {"log_every": 50}}
    series = {"loss/adversarial": [(50, 1.0), (100, 1.0)]}
    records = [Record(Path(name), config, series) for name in ("first", "second")]
    summary = {"metrics": {}, "num_scored": 1, "num_utterances": 2, "seconds": 3.0}
    codes = {"perplexity": 9.0, "entropy": 3.0, "utilisation": 0.5}
    arguments = argparse.Namespace(test_name="speech", hardware="an abacus", dnsmos_weights=None)
    arguments.earlier_steps, arguments.earlier_adversarial_steps, arguments.earlier_hours = 300, 30, 7
    card = release.card(
        records,
        release.joined_curves(records),
        summary | {"codes": codes},
        codes | {"hours": 2.5},
        "2.5 h of one speaker\n(CC0-1.0).\n",
        arguments,
    )
    assert "- Data: 2.5 h of one speaker\n  (CC0-1.0).\n- Steps: 300 in earlier releases, then\n" in card
    assert "  100 of 4 windows of 1.5 s, 100 of 4 windows of 1.5 s;\n" in card
    assert f"  {7 + 200 * 4 * 1.5 / 3600:.0f} h of audio seen." in card
    assert "took part in 200 of these steps and in\n  30 of the earlier ones." in card
    assert "LibriVox" not in card


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("probe.py", ["--data", ".", "--paths", 0], "--paths: must be at least 1, got 0"),
        ("probe.py", ["--data", ".", "--delay", -1], "--delay: must be at least 0, got -1"),
        ("benchmark.py", ["--hours", -1], "--hours: must be a number from 0 on, got -1"),
        ("benchmark.py", ["--hours", "nan"], "--hours: must be a number from 0 on, got nan"),
        ("benchmark.py", ["--model", "nowhere"], "unknown model 'nowhere'; boxed models: stream; or give"),
        ("release.py", ["run", "--test", "nowhere", "--data", "x", "--hardware", "x"], "nowhere: no such folder"),
        ("release.py", ["nowhere", "--test", SPEECH, "--data", "x", "--hardware", "x"], "there is no such folder"),
    ],
)
def test_arguments_out_of_range_are_refused_at_once(run: Callable, script: str, arguments: list[object], words: str):
    code, output, errors = run(f"stream/{script}", *arguments)
    assert (code, output) == (2, "")
    assert words in errors.splitlines()[-1]


def test_memory_is_measured_with_a_piece_of_sound_at_least(tmp_path: Path):
    imported("benchmark").write_noise(tmp_path / "noise.wav", hours=0.001)
    assert audio.info(tmp_path / "noise.wav").num_samples == 10 * 24000


def test_a_rate_is_what_the_run_has_logged(run: Callable, speech: Path, tmp_path: Path):
    """Twice as many steps a second and windows a step make four times the rate, whatever a window costs."""
    (tmp_path / "speaker").mkdir()
    (tmp_path / "speaker" / "speech.flac").write_bytes(speech.read_bytes())
    rates = []
    for factor in (1, 2):
        run_folder = tmp_path / f"run{factor}"
        settings = [
            *(f"data.train={tmp_path / 'speaker'}", f"data.cache={tmp_path / 'cache'}"),
            *(f"training.run={run_folder}", f"data.batch_size={factor}", "data.window_seconds=0.5", "adversary=small"),
            *("training.steps=1", "mel.resolutions=[[256,64,20]]", "training.adversarial_seconds=0.2"),
            *("model.encoder.width=16", "model.encoder.num_blocks=1", "model.decoder.width=24"),
            *("model.decoder.num_blocks=1", "model.decoder.num_attention=1", "training.device=cpu"),
        ]
        Trainer(compose(settings)).fit()
        with open(run_folder / "log.jsonl", "a") as log:
            log.writelines(json.dumps({"step": step, "steps_per_second": 3.0 * factor}) + "\n" for step in (50, 100))
        _, output, _ = run("stream/training_rate.py", run_folder, "--data", tmp_path / "speaker", "--peak", 1e10)
        assert output.startswith(f"{3 * factor:.1f} steps/s, {1.5 * factor**2:.0f} s of audio a second, ")
        rates.append(float(output.splitlines()[1].split()[0]))
    assert rates[0] > 0
    assert abs(rates[1] / rates[0] - 4) < 0.2


def test_what_is_no_run_has_no_rate(run: Callable, tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model": 1}')
    (tmp_path / "log.jsonl").write_text('{"step": 50, "steps_per_second": 3.0}\n')
    for folder, words in ((tmp_path / "nowhere", "there is no such folder"), (tmp_path, "must be a JSON object")):
        assert words in refused(run("stream/training_rate.py", folder, "--data", tmp_path))
