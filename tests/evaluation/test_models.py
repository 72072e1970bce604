"""Metrics that are models: real loading code, on small random checkpoints, and the real DNSMOS where it is at hand."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from codec.errors import ConfigError, ModelError
from codec.evaluation.metric import Pair, Settings, Undefined
from codec.evaluation.registry import METRICS
from codec.evaluation.text import normalise, num_errors

DNSMOS = Path(__file__).parents[3] / "shared" / "models" / "dnsmos"

needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None,
    reason="transformers is not installed: pip install 'codec[eval]'",
)


# -- transcripts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello,  WORLD!", "hello world"),
        ("Don't stop \u2013 it\u2019s 'fine'.", "don't stop it's fine"),
        ("Straße Ⅳ; \u00e9te\u0301", "strasse iv \u00e9t\u00e9"),
        ("你好,世界", "你好 世界"),
        ("  ... ", ""),
    ],
)
def test_case_punctuation_and_spacing_fall_away(text, expected):
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("reference", "estimate", "errors"),
    [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("abc", "abc", 0), ("ab", "ba", 2), ("abcd", "acbd", 2)],
)
def test_errors_are_the_levenshtein_distance(reference, estimate, errors):
    assert num_errors(reference, estimate) == errors
    assert num_errors(estimate, reference) == errors


def test_error_rate_weighs_by_words():
    from codec.evaluation.statistics import bootstrap_interval, summarise

    summary = summarise([1.0, 0.0], [1.0, 1.0], [1.0, 9.0])
    assert summary["mean"] == pytest.approx(0.1)
    low, high = bootstrap_interval([1.0, *5 * [0.0]], [1.0, *5 * [9.0]])
    assert 0 <= low < 1 / 46 < high <= 1


# -- recognisers


@pytest.fixture(scope="module")
def ctc_model(tmp_path_factory) -> str:
    """A wav2vec 2.0 recogniser that has learned nothing."""
    import json

    import torch

    from codec.evaluation.hub import import_transformers

    transformers = import_transformers()
    folder = tmp_path_factory.mktemp("ctc")
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ'"]
    (folder / "vocab.json").write_text(json.dumps({letter: number for number, letter in enumerate(letters)}))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
    transformers.Wav2Vec2Processor(feature_extractor=extractor, tokenizer=tokenizer).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(vocab_size=len(letters), initializer_range=1.0, **SMALL)
    transformers.Wav2Vec2ForCTC(config).save_pretrained(folder)
    return str(folder)


SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}


@pytest.fixture(scope="module")
def generating_model(tmp_path_factory) -> str:
    """A Whisper that has learned nothing, and whose vocabulary is single bytes."""
    import json

    import torch

    from codec.evaluation.hub import import_transformers

    transformers = import_transformers()
    folder = tmp_path_factory.mktemp("whisper")
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
    vocabulary = {token: number for number, token in enumerate([*special, *"abcdefghijklmnopqrstuvwxyz", "\u0120"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.WhisperTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    extractor = transformers.WhisperFeatureExtractor(feature_size=8)
    transformers.WhisperProcessor(feature_extractor=extractor, tokenizer=tokenizer).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        vocab_size=len(vocabulary), num_mel_bins=8, d_model=16, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
        max_target_positions=12, bos_token_id=0, eos_token_id=0, pad_token_id=0, decoder_start_token_id=1,
        suppress_tokens=[], begin_suppress_tokens=[], init_std=1.0,
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config)
    model.generation_config.max_length = 12
    model.save_pretrained(folder)
    return str(folder)


@needs_transformers
def test_word_errors_are_those_of_the_transcript(ctc_model, pair):
    from codec.evaluation.asr import WordErrors

    metric = WordErrors(Settings(asr_model=ctc_model))
    found = metric.transcribe(pair.at(16000)[1])
    assert found == normalise(found)
    assert found
    right = metric.score(Pair(pair.reference, pair.estimate, 24000, text=found.upper() + "."))
    assert (right["wer"], right["cer"]) == (0, 0)
    assert right["num_words"] == len(found.split())
    wrong = metric.score(Pair(pair.reference, pair.estimate, 24000, text=f"{found} indeed"))
    assert wrong["wer"] == 1 / (len(found.split()) + 1)
    assert wrong["cer"] == len(" indeed") / (len(found) + 7)


@needs_transformers
def test_words_without_a_text_are_undefined(ctc_model, pair):
    from codec.evaluation.asr import WordErrors

    metric = WordErrors(Settings(asr_model=ctc_model))
    for text in (None, " ... "):
        with pytest.raises(Undefined, match="no text beside"):
            metric.score(Pair(pair.reference, pair.estimate, 24000, text=text))


@needs_transformers
def test_relative_errors_of_identical_signals_are_none(ctc_model, pair):
    from codec.evaluation.asr import RelativeWordErrors

    metric = RelativeWordErrors(Settings(asr_model=ctc_model))
    same = metric.score(Pair(pair.reference, pair.reference, 24000))
    assert (same["dwer"], same["dcer"]) == (0, 0)
    assert metric.score(pair)["num_dwords"] == same["num_dwords"]


@needs_transformers
def test_generating_recogniser_takes_30_seconds_at_most(generating_model, pair):
    from codec.evaluation.asr import RelativeWordErrors

    metric = RelativeWordErrors(Settings(asr_model=generating_model))
    assert metric.is_generating
    assert isinstance(metric.transcribe(pair.at(16000)[0]), str)
    long = np.tile(pair.reference, 7)
    with pytest.raises(Undefined, match="takes at most 30 s"):
        metric.score(Pair(long, long, 24000))


# -- speakers


@pytest.fixture(scope="module")
def speaker_model(tmp_path_factory) -> str:
    """A WavLM with x-vectors that has learned nothing."""
    import torch

    from codec.evaluation.hub import import_transformers

    transformers = import_transformers()
    folder = tmp_path_factory.mktemp("speaker")
    torch.manual_seed(0)
    config = transformers.WavLMConfig(**SMALL, tdnn_dim=[16, 16, 24], tdnn_kernel=[5, 3, 1], tdnn_dilation=[1, 2, 1],
                                      xvector_output_dim=12, num_buckets=16, max_bucket_distance=32)  # fmt: skip
    transformers.WavLMForXVector(config).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(folder)
    return str(folder)


@needs_transformers
def test_speaker_is_the_same_as_itself_at_any_level(speaker_model, pair):
    from codec.evaluation.speaker import SpeakerSimilarity

    metric = SpeakerSimilarity(Settings(speaker_model=speaker_model))
    same = metric.score(Pair(pair.reference, pair.reference, 24000))
    assert same["speaker_similarity"] == pytest.approx(1, abs=1e-6)
    assert -1 <= metric.score(pair)["speaker_similarity"] < 1
    with pytest.raises(Undefined, match=r"at least 0\.5 s"):
        metric.score(Pair(pair.reference[:6000], pair.estimate[:6000], 24000))


def score_on_both_devices(metrics: list[str], models: dict[str, str], pair: Pair) -> None:
    for metric in metrics:
        near, far = (METRICS[metric](Settings(device=device, **models)).score(pair) for device in ("cpu", "far"))
        assert far == pytest.approx(near, rel=1e-4)


@needs_transformers
def test_models_compute_where_they_are_told_to(on_far_device, ctc_model, speaker_model, pair):
    models = {"asr_model": ctc_model, "speaker_model": speaker_model}
    on_far_device(score_on_both_devices, ["dwer", "speaker"], models, pair)


@needs_transformers
@pytest.mark.parametrize(("metric", "setting"), [("wer", "asr_model"), ("speaker", "speaker_model")])
def test_model_that_is_none_is_one_sentence(tmp_path, monkeypatch, metric, setting):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="cannot be loaded as") as caught:
        METRICS[metric](Settings(**{setting: str(tmp_path)}))
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(ModelError, match="it was not fetched: allow it with --download"):
        METRICS[metric](Settings(**{setting: "nobody/no-such-model"}))
    for address in ("http://127.0.0.1:9", "http://no address"):
        monkeypatch.setenv("HF_ENDPOINT", address)
        with pytest.raises(ModelError, match=rf"it was not fetched: {address} cannot be reached"):
            METRICS[metric](Settings(**{setting: "nobody/no-such-model"}, allow_download=True))


def test_transformers_that_cannot_be_imported_is_one_sentence(tmp_path, monkeypatch):
    from codec.evaluation.hub import import_transformers

    (tmp_path / "transformers.py").write_text("raise RuntimeError('made for another torch')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "transformers", raising=False)
    with pytest.raises(ConfigError, match=r"^transformers cannot be imported \(made for another torch\)$"):
        import_transformers()


@needs_transformers
def test_model_of_another_kind_is_refused(speaker_model, ctc_model):
    from codec.evaluation.asr import WordErrors

    with pytest.raises(ModelError, match="cannot be loaded as"):
        WordErrors(Settings(asr_model=speaker_model))


@pytest.mark.parametrize(
    ("metric", "option"), [("wer", "--asr-model"), ("dwer", "--asr-model"), ("speaker", "--speaker")]
)
def test_model_that_nobody_named_is_told_with_the_command(metric, option):
    reason, command = METRICS[metric].obstacle(Settings())
    assert reason in ("no model is named", "torch, transformers not installed", "transformers not installed")
    assert option in command or "pip install" in command


@needs_transformers
def test_stored_scores_do_not_outlive_their_model(ctc_model, tmp_path):
    import shutil

    from codec.evaluation.asr import WordErrors

    copy = tmp_path / "copy"
    shutil.copytree(ctc_model, copy)
    before = WordErrors.identity(Settings(asr_model=str(copy)))
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    assert WordErrors.identity(Settings(asr_model=str(copy))) != before


# -- DNSMOS


@pytest.fixture(scope="module")
def dnsmos():
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'codec[eval]'")
    pytest.importorskip("librosa", reason="librosa is not installed: pip install 'codec[eval]'")
    if not DNSMOS.is_dir():
        pytest.skip("the weights of DNSMOS are not at hand: ../shared/models/dnsmos")
    from codec.evaluation.dnsmos import Dnsmos

    return Dnsmos(Settings(dnsmos_weights=DNSMOS))


def test_dnsmos_of_clean_and_noisy_speech(dnsmos, pair):
    noisy = pair.reference + 0.05 * np.random.default_rng(0).standard_normal(len(pair.reference)).astype(np.float32)
    values = dnsmos.score(Pair(pair.reference, noisy, 24000))
    assert values["dnsmos_p808_reference"] > 3.3
    assert values["dnsmos_p808"] < values["dnsmos_p808_reference"] - 0.3
    assert values["dnsmos_bak"] < 2.5
    assert values["dnsmos_ovrl"] < values["dnsmos_ovrl_reference"]


def test_dnsmos_averages_segments_that_begin_every_second(dnsmos, pair):
    wav = np.tile(pair.at(16000)[0], 4)[: 16000 * 23 // 2]
    whole = dnsmos.predict(wav)
    parts = [dnsmos.predict(wav[start * 16000 : start * 16000 + 144160]) for start in range(2)]
    for name, value in whole.items():
        assert value == pytest.approx(np.mean([part[name] for part in parts]), abs=1e-5)


@pytest.mark.parametrize(
    ("seconds", "num"),
    [(9.01, 1), (10, 1), (10.01, 1), (10.99, 1), (11, 2), (11.5, 2), (12, 3), (15.9, 6), (16, 7), (33.9, 7), (34, 8)],
)
def test_dnsmos_takes_the_segments_of_the_published_script(seconds, num):
    """Found by running the loop of `dnsmos_local.py` (microsoft/DNS-Challenge, 6412bc5) on zeros."""
    from codec.evaluation.dnsmos import SEGMENT, segment_starts

    num_samples = round(seconds * 16000)
    starts = segment_starts(num_samples)
    assert len(starts) == num
    assert starts[:7] == [16000 * second for second in range(min(num, 7))]
    assert starts[-1] + SEGMENT <= num_samples


def test_dnsmos_weights_are_the_published_ones(dnsmos):
    from codec.evaluation.dnsmos import Dnsmos

    assert Dnsmos.weights(Settings(dnsmos_weights=DNSMOS))["is_pinned"]


def test_dnsmos_without_weights_is_told(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'codec[eval]'")
    from codec.evaluation.dnsmos import Dnsmos

    monkeypatch.setenv("CODEC_CACHE", str(tmp_path))
    assert "--dnsmos-weights DIR" in Dnsmos.obstacle(Settings())[1]
    with pytest.raises(ModelError, match="no such file"):
        Dnsmos(Settings(dnsmos_weights=tmp_path))
    (tmp_path / "sig_bak_ovr.onnx").write_bytes(b"x")
    with pytest.raises(ModelError, match="is not a network that onnxruntime can load"):
        Dnsmos(Settings(dnsmos_weights=tmp_path))


# -- pitch


@pytest.fixture(scope="module")
def pitch():
    pytest.importorskip("librosa", reason="librosa is not installed: pip install 'codec[eval]'")
    if importlib.util.find_spec("torchcrepe") is None:
        pytest.skip("torchcrepe is not installed: pip install 'codec[eval]'")
    from codec.evaluation.pitch import Pitch

    return Pitch(Settings())


def tones(*frequencies: float, seconds: float = 0.2) -> np.ndarray:
    """Sums of harmonics up to 7 kHz, one after the other; 0 Hz is silence."""
    time = np.arange(round(seconds * 16000)) / 16000
    parts = [
        sum(np.sin(2 * np.pi * frequency * order * time) for order in range(1, int(7000 / frequency))) / 20
        if frequency
        else 0 * time
        for frequency in frequencies
    ]
    return np.concatenate(parts).astype(np.float32)


def test_pitch_of_harmonic_tones(pitch):
    found, periodicity = pitch.track(tones(110, 220))
    assert np.median(found[:10]) == pytest.approx(110, rel=0.012)  # bins are 20 cents, 1.2 %, apart
    assert np.median(found[-10:]) == pytest.approx(220, rel=0.012)
    assert np.median(periodicity) > 0.8


def test_tone_a_semitone_off_is_a_hundred_cents_off(pitch):
    values = pitch.score(Pair(tones(200), tones(200 * 2 ** (1 / 12)), 16000))
    assert values["pitch"] == pytest.approx(100, abs=20)
    assert values["vuv_f1"] > 0.9


@pytest.mark.slow
def test_silence_is_unvoiced_and_half_of_the_voice_is_two_thirds(pitch):
    _, periodicity = pitch.track(tones(0, 0))
    assert np.all(periodicity == 0)
    values = pitch.score(Pair(tones(200, 200), tones(200, 0), 16000))
    assert values["vuv_f1"] == pytest.approx(2 / 3, abs=0.1)  # recall 1/2, precision 1


def test_nothing_voiced_in_both_is_undefined(pitch):
    with pytest.raises(Undefined, match="voiced in both"):
        pitch.score(Pair(tones(200), tones(0) + 1e-3, 16000))
    with pytest.raises(Undefined, match="pitch needs 1024"):
        pitch.score(Pair(tones(200)[:1000], tones(200)[:1000], 16000))


@pytest.mark.slow
def test_batches_of_frames_change_nothing(pitch, monkeypatch):
    from codec.evaluation import pitch as module

    whole = pitch.track(tones(150, 180))
    monkeypatch.setattr(module, "BATCH", 7)
    for expected, found in zip(whole, pitch.track(tones(150, 180)), strict=True):
        assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_track_is_that_of_the_published_scripts(pitch, pair):
    """torchcrepe's own call, torchaudio's spectrogram: everything but the random dither of the pitch."""
    from codec._torchaudio import import_torchaudio

    torchaudio = import_torchaudio()
    import librosa
    import torch
    import torchcrepe

    wav = torch.from_numpy(pair.at(16000)[0][:10000])[None]
    expected_pitch, expected = torchcrepe.predict(
        wav, 16000, fmin=50.0, fmax=550, model="full", return_periodicity=True, pad=False
    )
    spectrogram = torchaudio.functional.spectrogram(
        wav, window=torch.hann_window(1024), n_fft=1024, hop_length=160, win_length=1024, power=2, normalized=False,
        pad=0, center=False,
    )  # fmt: skip
    level = librosa.perceptual_weighting(spectrogram.numpy(), librosa.fft_frequencies(sr=16000, n_fft=1024) + 1e-9)
    expected = np.where(level.mean(axis=1) - 20 < -60, 0, expected.numpy())[0]
    found_pitch, found = pitch.track(wav[0].numpy())
    assert found == pytest.approx(expected, abs=1e-4)
    cents = 1200 * np.log2(found_pitch / expected_pitch[0].numpy())
    assert np.abs(cents).max() < 20.1  # the dither lies within a bin to either side
