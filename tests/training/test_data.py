"""The cache holds what the files hold, and a step's batch is a function of seed and step alone."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from codec.errors import ConfigError
from codec.training.data import AudioCache, DataConfig, WindowSampler, open_cache


@pytest.fixture(scope="module")
def cache(training_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> AudioCache:
    return open_cache(training_folder, tmp_path_factory.mktemp("cache"), 24000)


def sampler(cache: AudioCache, seed: int = 0, **settings: float) -> WindowSampler:
    return WindowSampler(cache, DataConfig(batch_size=6, window_seconds=0.3, **settings), seed)  # type: ignore[arg-type]


def test_every_clip_is_cached_to_16_bits(cache: AudioCache, training_folder: Path):
    assert len(cache) == 9
    for index, path in enumerate(cache.paths):
        wav, _ = soundfile.read(training_folder / path, dtype="float32")
        assert np.abs(cache.clip(index) / 32768 - wav).max() <= 1.01 / 32768
        assert cache.speakers[index] == Path(path).parts[0]


def test_a_cache_is_made_once(cache: AudioCache, training_folder: Path, tmp_path: Path):
    first = open_cache(training_folder, tmp_path, 24000)
    modified = (tmp_path / "audio.int16").stat().st_mtime_ns
    second = open_cache(training_folder, tmp_path, 24000)
    assert (tmp_path / "audio.int16").stat().st_mtime_ns == modified
    assert first.paths == second.paths


def test_a_cache_of_another_rate_is_refused(training_folder: Path, tmp_path: Path):
    open_cache(training_folder, tmp_path, 24000)
    with pytest.raises(ConfigError, match="24000 Hz, the model needs 16000 Hz"):
        open_cache(training_folder, tmp_path, 16000)


def test_a_cache_of_other_files_is_refused(training_folder: Path, tmp_path: Path):
    shutil.copytree(training_folder, tmp_path / "audio")
    open_cache(tmp_path / "audio", tmp_path / "cache", 24000)
    next((tmp_path / "audio" / "first").iterdir()).unlink()
    with pytest.raises(ConfigError, match="other sound files"):
        open_cache(tmp_path / "audio", tmp_path / "cache", 24000)


def test_a_batch_depends_on_seed_and_step_only(cache: AudioCache):
    assert torch.equal(sampler(cache).batch(7), sampler(cache).batch(7))
    assert not torch.equal(sampler(cache).batch(7), sampler(cache).batch(8))
    assert not torch.equal(sampler(cache).batch(7), sampler(cache, seed=1).batch(7))


def test_the_shares_of_all_processes_are_the_batch(cache: AudioCache):
    windows = sampler(cache)
    shares = [windows.batch(5, rank, 3) for rank in range(3)]
    joined = torch.stack(shares, dim=1).flatten(0, 1)
    assert torch.equal(joined, windows.batch(5))


def test_windows_are_full_and_within_full_scale(cache: AudioCache):
    batch = sampler(cache, gain_db=30.0).batch(0)
    assert batch.shape == (6, 1, 7200)
    assert batch.abs().max() < 1
    # Real speech all along: no window ends in padding.
    assert (batch[..., -480:].abs().amax(dim=-1) > 0).all()


def test_speakers_are_balanced_as_configured(tmp_path: Path):
    """With exponent 0 two known speakers are drawn alike, whatever their minutes; with 1 by their minutes."""
    rng = np.random.default_rng(0)
    for name, seconds, level in (("rare", 1, 0.5), ("common", 9, 0.05)):
        (tmp_path / "audio" / name).mkdir(parents=True)
        for clip in range(seconds):
            noise = rng.uniform(-level, level, 24000)
            soundfile.write(tmp_path / "audio" / name / f"{clip}.wav", noise, 24000)
    cache = open_cache(tmp_path / "audio", tmp_path / "cache", 24000)
    for balance, expected in ((0.0, 0.5), (1.0, 0.1)):
        windows = sampler(cache, speaker_balance=balance, gain_db=0.0)
        loud = torch.cat([windows.batch(step) for step in range(100)]).abs().amax(dim=-1) > 0.1
        # 600 draws: four standard errors are at most 0.08.
        assert abs(float(loud.float().mean()) - expected) < 0.08
