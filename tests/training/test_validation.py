"""What validation scores: the averaged weights, on the clips it says, as `codec evaluate` would."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import codec
from codec.config import compose
from codec.errors import AudioError
from codec.evaluation.mel import MelDistance
from codec.evaluation.metric import Pair, Settings
from codec.model.codec import Codec
from codec.training.cache import AudioCache, open_cache
from codec.training.trainer import Trainer
from codec.training.validation import validate

RATE = 24000


def clips(folder: Path, seconds: list[float]) -> AudioCache:
    """A cache of noises of 16 bits, so long and in this order."""
    (folder / "audio").mkdir()
    rng = np.random.default_rng(0)
    for number, length in enumerate(seconds):
        wav = rng.integers(-3000, 3000, round(length * RATE), dtype=np.int16)
        soundfile.write(folder / "audio" / f"{number}.wav", wav, RATE)
    return open_cache([folder / "audio"], folder / "cache", RATE)


def mel_distance(model: Codec, wav: np.ndarray) -> float:
    """Of the round trip of samples (T,), within full scale."""
    with torch.no_grad():
        estimate = model(torch.from_numpy(wav)[None, None]).wav[0, 0].numpy()
    return MelDistance(Settings()).score(Pair(wav, np.clip(estimate, -1, 1), RATE))["mel"]


def test_clips_lie_at_equal_distances_among_those_that_are_long_enough_and_are_cut(
    model_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("codec.training.validation.MAX_SECONDS", 0.75)
    monkeypatch.setattr("codec.training.validation.NUM_EXAMPLES", 9)
    monkeypatch.setattr("codec.training.validation._metrics", list)  # which take their time
    cache = clips(tmp_path, [0.1, 1, 0.6, 1, 0.49, 0.5])
    long_enough = [1, 2, 3, 5]
    for most, chosen in ((1, [1]), (2, [1, 5]), (4, long_enough), (9, long_enough)):
        expected = [cache.clip(index)[: round(0.75 * RATE)] for index in chosen]
        examples = validate(codec.load(model_directory), cache, most).examples
        for (reference, estimate), clip in zip(examples, expected, strict=True):
            assert np.array_equal(reference.numpy() * 32768, clip)
            assert estimate.shape == reference.shape


def test_without_a_clip_that_is_long_enough_it_says_so(model_directory: Path, tmp_path: Path):
    with pytest.raises(AudioError, match=r"data\.validation: no clip has at least 0\.5 s"):
        validate(codec.load(model_directory), clips(tmp_path, [0.1, 0.49]), 2)


def test_scores_are_means_over_clips_of_sound_within_full_scale(model_directory: Path, tmp_path: Path):
    model = codec.load(model_directory)
    with torch.no_grad():
        model.decoder.filters.bias += 6  # of logarithms: so loud that much of it is cut off
    cache = clips(tmp_path, [0.5, 1])
    result = validate(model, cache, 2)
    expected = [mel_distance(model, cache.clip(index).astype(np.float32) / 32768) for index in range(2)]
    assert result.scores["mel"] == pytest.approx(np.mean(expected), rel=1e-6)
    assert [estimate.abs().max() for _, estimate in result.examples] == [1, 1]


def test_a_run_is_scored_by_its_averaged_weights(tiny_run: list[str], training_folder: Path, tmp_path: Path):
    """Which after a few long steps are far from the last ones."""
    validation = [
        f"data.validation={training_folder}",
        "training.validation_clips=1",
        "training.adversarial_start=1000",
    ]
    steps = [
        "training.steps=4",
        "training.quantizer_start=-1",
        "training.learning_rate=1e-2",
        "training.warmup_steps=0",
    ]
    trainer = Trainer(compose([*tiny_run, *validation, *steps]))
    trainer.fit()
    scored = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    (score,) = (record["validation/mel"] for record in scored if "validation/mel" in record)
    assert trainer.held_out is not None
    wav = trainer.held_out.clip(0).astype(np.float32) / 32768
    averaged, last = (
        mel_distance(model, wav) for model in (codec.load(tmp_path / "run" / "last"), trainer.codec.eval())
    )
    assert score == pytest.approx(averaged, rel=1e-4)
    assert score != pytest.approx(last, rel=2e-3)
