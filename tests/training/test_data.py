"""The cache holds what the files hold, and a window is a function of seed, step and its number alone."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import BaseContext
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from codec.config import compose
from codec.errors import AudioError, ConfigError
from codec.manifest import Utterance, write_manifest
from codec.preparation.folder import prepare_folder
from codec.preparation.outcome import PreparationConfig
from codec.training.cache import AudioCache, bandwidth_of, open_cache
from codec.training.data import DataConfig, WindowSampler
from codec.training.voice import move_formants


@pytest.fixture(scope="module")
def cache(training_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> AudioCache:
    return open_cache([training_folder], tmp_path_factory.mktemp("cache"), 24000)


def sampler(cache: AudioCache, seed: int = 0, **settings: float) -> WindowSampler:
    return WindowSampler(cache, DataConfig(batch_size=6, window_seconds=0.3, **settings), seed)  # type: ignore[arg-type]


def test_clips_of_16_bits_are_cached_as_they_are(cache: AudioCache, training_folder: Path):
    assert len(cache) == 9
    for index, path in enumerate(cache.paths):
        wav, _ = soundfile.read(training_folder / path, dtype="int16")
        assert np.array_equal(cache.clip(index), wav)
        assert cache.speakers[index] == Path(path).parts[0]


def test_full_scale_saturates_in_a_cache(tmp_path: Path):
    (tmp_path / "audio").mkdir()
    wav = np.array([1.0, -1.0, 1.5, -1.5, 0.5, 0.0], dtype=np.float32)
    soundfile.write(tmp_path / "audio" / "loud.wav", wav, 24000, subtype="FLOAT")
    cache = open_cache([tmp_path / "audio"], tmp_path / "cache", 24000)
    assert cache.clip(0).tolist() == [32767, -32768, 32767, -32768, 16384, 0]


def test_many_files_are_decoded_by_fresh_processes_and_a_few_here(
    training_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pools: list[tuple[int, str]] = []

    class Pool(ProcessPoolExecutor):
        def __init__(self, num_processes: int, context: BaseContext, *arguments: object):
            pools.append((num_processes, context.get_start_method()))
            super().__init__(num_processes, context, *arguments)

    monkeypatch.setattr("codec.training.cache.ProcessPoolExecutor", Pool)
    monkeypatch.setattr("codec.training.cache.num_cores", lambda: 2)
    open_cache([training_folder], tmp_path / "few", 24000)
    assert pools == []
    monkeypatch.setattr("codec.training.cache.SMALL", 0)
    monkeypatch.setattr("codec.training.cache.FILES_IN_FLIGHT", 4)
    open_cache([training_folder], tmp_path / "many", 24000)
    assert pools == [(2, "spawn")]
    for name in ("clips.json", "audio.int16"):
        assert (tmp_path / "few" / name).read_bytes() == (tmp_path / "many" / name).read_bytes()


def test_processes_that_decode_have_no_torch():
    code = "import codec.training.cache, sys; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"


def test_a_cache_is_made_once(cache: AudioCache, training_folder: Path, tmp_path: Path):
    first = open_cache([training_folder], tmp_path, 24000)
    modified = (tmp_path / "audio.int16").stat().st_mtime_ns
    second = open_cache([training_folder], tmp_path, 24000)
    assert (tmp_path / "audio.int16").stat().st_mtime_ns == modified
    assert first.paths == second.paths


def test_what_a_killed_process_has_left_of_a_cache_is_removed_and_not_what_another_is_writing(
    training_folder: Path, tmp_path: Path
):
    for name, age in ((".old.part", 2 * 3600), (".new.part", 60)):
        (tmp_path / name).write_bytes(b"sound")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    open_cache([training_folder], tmp_path, 24000)
    assert [path.name for path in tmp_path.glob(".*")] == [".new.part"]


def test_a_cache_that_may_be_there_is_not_made_again(
    training_folder: Path, tmp_path: Path, make_stale: Callable[[Path], None]
):
    open_cache([training_folder], tmp_path, 24000)
    modified = (tmp_path / "audio.int16").stat().st_mtime_ns
    make_stale(tmp_path / "clips.json")
    with pytest.raises(AudioError, match="Stale file handle"):
        open_cache([training_folder], tmp_path, 24000)
    assert (tmp_path / "audio.int16").stat().st_mtime_ns == modified


def test_a_cache_of_another_rate_is_refused(training_folder: Path, tmp_path: Path):
    open_cache([training_folder], tmp_path, 24000)
    with pytest.raises(ConfigError, match="24000 Hz, the model needs 16000 Hz"):
        open_cache([training_folder], tmp_path, 16000)


def test_a_cache_of_other_files_is_refused(training_folder: Path, tmp_path: Path):
    shutil.copytree(training_folder, tmp_path / "audio")
    open_cache([tmp_path / "audio"], tmp_path / "cache", 24000)
    next((tmp_path / "audio" / "first").iterdir()).unlink()
    with pytest.raises(ConfigError, match="other sound files"):
        open_cache([tmp_path / "audio"], tmp_path / "cache", 24000)


def test_a_cache_of_another_corpus_with_the_same_names_is_refused(training_folder: Path, tmp_path: Path):
    shutil.copytree(training_folder, tmp_path / "audio")
    open_cache([tmp_path / "audio"], tmp_path / "cache", 24000)
    path = next((tmp_path / "audio" / "first").iterdir())
    wav, rate = soundfile.read(path)
    soundfile.write(path, wav[: len(wav) // 2], rate)
    with pytest.raises(ConfigError, match="other sound files"):
        open_cache([tmp_path / "audio"], tmp_path / "cache", 24000)
    path.unlink()
    shutil.rmtree(tmp_path / "audio")  # what is decoded is enough
    assert len(open_cache([tmp_path / "audio"], tmp_path / "cache", 24000)) > 1


def test_missing_files_of_a_manifest_are_counted_and_what_is_done_is_told(training_folder: Path, tmp_path: Path):
    shutil.copytree(training_folder, tmp_path / "audio")
    prepare_folder(tmp_path / "audio", tmp_path, config=PreparationConfig(jobs=0))
    told: list[tuple[str, int, int]] = []
    open_cache([tmp_path / "all.tsv"], tmp_path / "whole", 24000, lambda *values: told.append(values))
    assert told == [("decoded", number, 9) for number in range(1, 10)]
    gone = sorted((tmp_path / "audio" / "first").iterdir())[:2]
    for path in gone:
        path.unlink()
    with pytest.raises(AudioError, match=rf"{gone[0].name}: is not there, and so are 1 more of 9; codec prepare check"):
        open_cache([tmp_path / "all.tsv"], tmp_path / "cache", 24000)
    assert not (tmp_path / "cache").exists()


def test_a_link_to_nothing_in_a_folder_is_named_as_one(training_folder: Path, tmp_path: Path):
    shutil.copytree(training_folder, tmp_path / "audio")
    (tmp_path / "audio" / "first" / "gone.wav").symlink_to("nowhere")
    with pytest.raises(AudioError, match=r"gone\.wav: is not there; mend or remove this link"):
        open_cache([tmp_path / "audio"], tmp_path / "cache", 24000)


@pytest.mark.parametrize(
    ("name", "content"),
    [("clips.json", b'{"version": 3, "cl'), ("clips.json", b"[]"), ("clips.json", b'{"version": 3}'),
     ("audio.int16", b""), ("audio.int16", None), ("audio.int16", b"12")],
)  # fmt: skip
def test_a_damaged_cache_is_named(training_folder: Path, tmp_path: Path, name: str, content: bytes | None):
    open_cache([training_folder], tmp_path, 24000)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(AudioError, match=r"delete the folder"):
        open_cache([training_folder], tmp_path, 24000)


@pytest.mark.parametrize(
    "changes",
    [
        *({"samples": -1}, {"samples": 10**30}, {"samples": None}, {"speaker": 5}),
        *({"bandwidth": "wide"}, {"bandwidth": None}, {"bandwidth": -1}),
    ],
    ids=str,
)
def test_a_cache_with_a_damaged_clip_is_named(training_folder: Path, tmp_path: Path, changes: dict):
    open_cache([training_folder], tmp_path, 24000)
    index = json.loads((tmp_path / "clips.json").read_text())
    if changes == {"samples": -1}:  # all together are as long as the audio
        index["clips"][1]["samples"] += index["clips"][0]["samples"] + 1
    index["clips"][0] |= changes
    (tmp_path / "clips.json").write_text(json.dumps(index))
    with pytest.raises(AudioError, match=r"delete the folder"):
        open_cache([training_folder], tmp_path, 24000)


def test_clips_lie_end_to_end_whatever_an_index_says(cache: AudioCache, training_folder: Path, tmp_path: Path):
    """Indexes of earlier versions have a place for each, and one beyond the audio was waited for without end."""
    open_cache([training_folder], tmp_path, 24000)
    index = json.loads((tmp_path / "clips.json").read_text())
    for clip in index["clips"]:
        clip["offset"] = 10**9
    (tmp_path / "clips.json").write_text(json.dumps(index))
    same = open_cache([training_folder], tmp_path, 24000)
    assert all(np.array_equal(same.clip(number), cache.clip(number)) for number in range(len(cache)))


def test_a_cache_of_another_version_is_made_again(training_folder: Path, tmp_path: Path):
    open_cache([training_folder], tmp_path, 24000)
    index = json.loads((tmp_path / "clips.json").read_text())
    (tmp_path / "clips.json").write_text(json.dumps({"sample_rate": 24000, "clips": [{"path": "old"}]}))
    open_cache([training_folder], tmp_path, 24000)
    assert json.loads((tmp_path / "clips.json").read_text()) == index


def test_a_batch_depends_on_seed_and_step_only(cache: AudioCache):
    assert torch.equal(sampler(cache).batch(7).wav, sampler(cache).batch(7).wav)
    assert not torch.equal(sampler(cache).batch(7).wav, sampler(cache).batch(8).wav)
    assert not torch.equal(sampler(cache).batch(7).wav, sampler(cache, seed=1).batch(7).wav)


def test_the_shares_of_all_processes_are_the_batch(cache: AudioCache):
    windows = sampler(cache)
    shares = [windows.batch(5, rank, 3).wav for rank in range(3)]
    joined = torch.stack(shares, dim=1).flatten(0, 1)
    assert torch.equal(joined, windows.batch(5).wav)


class Watched(AudioCache):
    """Counts the clips that are read."""

    num_read = 0

    def clip(self, index: int) -> np.ndarray:
        self.num_read += 1
        return super().clip(index)


def test_a_process_reads_the_clips_of_its_own_windows_only(cache: AudioCache):
    watched = Watched(cache.folder)
    sampler(watched).batch(5)
    num_read = watched.num_read
    for rank in range(3):
        sampler(watched).batch(5, rank, 3)
    assert watched.num_read == 2 * num_read


def test_a_share_of_the_windows_is_degraded(cache: AudioCache):
    plain, some = (sampler(cache, gain_db=0.0, degraded=share) for share in (0.0, 0.3))
    changed = torch.cat([(plain.batch(step).wav != some.batch(step).wav).any(dim=-1) for step in range(50)])
    assert 0.2 < float(changed.float().mean()) < 0.4  # 300 windows: four standard errors are 0.1
    assert some.batch(0).wav.dtype == torch.float32
    assert max(float(some.batch(step).wav.abs().max()) for step in range(50)) < 1


def test_formants_are_moved_by_at_most_their_share(cache: AudioCache):
    """Each window is what some factor within the share makes of it."""
    plain, moved = (sampler(cache, gain_db=0.0, formants=share).batch(3).wav[:, 0].numpy() for share in (0.0, 0.1))
    factors = np.exp(np.linspace(-np.log(1.1), np.log(1.1), 401))
    chosen = []
    for before, after in zip(plain, moved, strict=True):
        errors = [np.abs(move_formants(before, 24000, factor) - after).max() for factor in factors]
        assert min(errors) < 0.01 * np.abs(before).max() < np.abs(after - before).max()
        chosen.append(factors[np.argmin(errors)])
    assert min(chosen) < 1 < max(chosen)


def test_coloration_spreads_levels_by_so_many_decibels(cache: AudioCache):
    """As a standard deviation over the mel scale, of twenty bands that are equally wide there."""
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 12000 / 700), 21) / 2595) - 1)
    levels = []
    for coloration in (0.0, 4.0):
        wav = torch.cat([sampler(cache, gain_db=0.0, coloration=coloration).batch(step).wav for step in range(20)])
        power = np.abs(np.fft.rfft(wav[:, 0].numpy())) ** 2
        bins = (edges[:-1] * wav.shape[-1] / 24000).astype(int)
        levels.append(10 * np.log10(np.add.reduceat(power, bins, axis=1)))
    spread = np.sqrt((levels[1] - levels[0]).var(axis=1).mean())
    assert spread == pytest.approx(4.0, rel=0.15)


def test_windows_are_scaled_as_a_whole_by_gains_of_so_many_decibels(cache: AudioCache):
    plain, scaled = (torch.cat([sampler(cache, gain_db=db).batch(step).wav for step in range(10)]) for db in (0.0, 6.0))
    gains = scaled.norm(dim=-1, keepdim=True) / plain.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(scaled, gains * plain)
    decibels = 20 * gains.log10()
    assert -6.01 < decibels.min() < -4
    assert 3 < decibels.max() < 6.01


def test_windows_are_full_and_within_full_scale(cache: AudioCache):
    batch = sampler(cache, gain_db=30.0).batch(0).wav
    assert batch.shape == (6, 1, 7200)
    assert batch.abs().max() < 1
    # Real speech all along: no window ends in padding.
    assert (batch[..., -480:].abs().amax(dim=-1) > 0).all()


def test_a_corrected_speaker_of_a_manifest_counts_at_once(tmp_path: Path):
    soundfile.write(tmp_path / "a.wav", np.full(2400, 0.1), 24000)
    for speaker in ("anna", "ben"):
        write_manifest(tmp_path / "list.tsv", [Utterance("a", tmp_path / "a.wav", 2400, 24000, speaker, "train")])
        assert open_cache([tmp_path / "list.tsv"], tmp_path / "cache", 24000).speakers == [speaker]


@pytest.mark.parametrize(
    ("speaker", "balance", "expected"),
    [
        ("common", 0.0, (1 / 2, 1 / 18, 8 / 18)),  # of the speakers half each, of a speaker's clips by their length
        ("common", 1.0, (1 / 10, 1 / 10, 8 / 10)),  # by the length of clips
        ("corpus_unknown", 0.0, (1 / 3, 1 / 3, 1 / 3)),  # each a speaker of its own
    ],
)
def test_speakers_are_balanced_as_configured(speaker: str, balance: float, expected: tuple[float, ...], tmp_path: Path):
    rng = np.random.default_rng(0)
    levels = (0.9, 0.3, 0.1)
    for name, seconds, level in zip(("rare", speaker, speaker), (1, 1, 8), levels, strict=True):
        (tmp_path / "audio" / name).mkdir(parents=True, exist_ok=True)
        noise = rng.uniform(-level, level, seconds * 24000)
        soundfile.write(tmp_path / "audio" / name / f"{seconds}.wav", noise, 24000)
    windows = sampler(open_cache([tmp_path / "audio"], tmp_path / "cache", 24000), speaker_balance=balance, gain_db=0.0)
    peaks = torch.cat([windows.batch(step).wav for step in range(100)]).abs().amax(dim=-1)
    shares = [float((peaks / level).log().abs().lt(0.1).float().mean()) for level in levels]
    assert shares == pytest.approx(expected, abs=0.08)  # 600 draws: four standard errors


@pytest.fixture
def ramp(tmp_path: Path) -> AudioCache:
    """A clip of a second whose samples tell where they are."""
    (tmp_path / "ramp").mkdir()
    soundfile.write(tmp_path / "ramp" / "ramp.wav", np.arange(24000, dtype=np.int16), 24000)
    return open_cache([tmp_path / "ramp"], tmp_path / "cache-of-ramp", 24000)


def test_windows_are_cut_as_they_are_from_all_of_a_clip(ramp: AudioCache):
    windows = torch.cat([sampler(ramp, gain_db=0.0).batch(step).wav[:, 0] for step in range(20)]) * 32768
    torch.testing.assert_close(windows - windows[:, :1], torch.arange(7200.0).expand_as(windows), rtol=0, atol=0)
    assert windows[:, 0].min() < 0.05 * 24000
    assert windows[:, -1].max() > 0.95 * 24000


def test_a_window_as_long_as_a_clip_is_the_clip(ramp: AudioCache):
    windows = WindowSampler(ramp, DataConfig(batch_size=20, window_seconds=1.0, gain_db=0.0), 0).batch(0).wav[:, 0]
    assert torch.equal(windows * 32768, torch.arange(24000.0).expand_as(windows))


def test_windows_of_any_speed_are_full(ramp: AudioCache):
    windows = WindowSampler(ramp, DataConfig(batch_size=60, window_seconds=7201 / 24000, speed=0.5), 0)
    assert windows.batch(0).wav.shape == (60, 1, 7201)


@pytest.fixture
def tones(tmp_path: Path) -> list[Path]:
    """Two speakers: one of 24 kHz with a tone of 1 kHz, one of 16 kHz with a tone of 2 kHz."""
    for name, rate, hz in (("wide", 24000, 1000), ("narrow", 16000, 2000)):
        (tmp_path / name / name).mkdir(parents=True)
        tone = 0.5 * np.sin(2 * np.pi * hz * np.arange(2 * rate) / rate)
        soundfile.write(tmp_path / name / name / "tone.wav", tone, rate)
    return [tmp_path / "wide", tmp_path / "narrow"]


def test_windows_know_how_far_their_recording_reaches(tones: list[Path], tmp_path: Path):
    cache = open_cache(tones, tmp_path / "cache", 24000)
    assert cache.speakers == ["wide", "narrow"]
    batch = WindowSampler(cache, DataConfig(batch_size=40, window_seconds=0.5), 0).batch(0)
    assert batch.bandwidth is not None
    frequencies = torch.fft.rfft(batch.wav[:, 0]).abs().argmax(dim=1) * 2
    assert set(zip(frequencies.tolist(), batch.bandwidth.tolist(), strict=True)) == {(1000, 12000), (2000, 0.91 * 8000)}
    wide = open_cache(tones[:1], tmp_path / "wide-cache", 24000)
    assert WindowSampler(wide, DataConfig(batch_size=2, window_seconds=0.5), 0).batch(0).bandwidth is None


def test_sound_is_whole_up_to_half_its_rate_unless_it_was_raised():
    assert bandwidth_of(48000, 24000) == bandwidth_of(24000, 24000) == 12000
    assert bandwidth_of(16000, 24000) == 0.91 * 8000


def test_windows_of_several_recordings_reach_as_far_as_the_narrowest(tones: list[Path], tmp_path: Path):
    cache = open_cache(tones, tmp_path / "cache", 24000)
    batch = WindowSampler(cache, DataConfig(batch_size=40, window_seconds=5), 0).batch(0)  # two and a half of them
    assert batch.bandwidth is not None
    has_narrow = torch.fft.rfft(batch.wav[:, 0]).abs()[:, 2000 * 5] > 500  # 1 s, softened most, has 3000
    assert 0 < has_narrow.sum() < 40
    assert torch.equal(batch.bandwidth, torch.where(has_narrow, 0.91 * 8000, 12000.0))


def test_speed_moves_pitch_and_band_by_at_most_its_share(tones: list[Path], tmp_path: Path):
    cache = open_cache(tones, tmp_path / "cache", 24000)
    batch = WindowSampler(cache, DataConfig(batch_size=60, window_seconds=0.5, speed=0.2), 0).batch(0)
    assert batch.wav.shape == (60, 1, 12000)
    frequencies = torch.fft.rfft(batch.wav[:, 0] * torch.hann_window(12000), n=48000).abs().argmax(dim=1) / 2
    assert batch.bandwidth is not None
    is_wide = frequencies < 1500
    for tone, mine, band in ((1000, is_wide, 12000), (2000, ~is_wide, 0.91 * 8000)):
        speeds = frequencies[mine] / tone
        assert 1 / 1.2 - 0.001 < float(speeds.min()) < 0.9
        assert 1.1 < float(speeds.max()) < 1.2 + 0.001
        expected = torch.where(speeds < 1, 0.91, 1.0) * speeds * band if tone == 1000 else speeds * band
        is_clear = (speeds - 1).abs() > 1e-3  # whether it is slower
        torch.testing.assert_close(
            batch.bandwidth[mine][is_clear], expected.clamp(max=12000)[is_clear], rtol=2e-3, atol=0
        )


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"gain_db": -1.0}, "data.gain_db must be at least 0"),
        ({"workers": -1}, "data.workers must be at least 0"),
        ({"batch_size": 0}, "data.batch_size must be at least 1"),
        ({"window_seconds": 0.0}, "data.window_seconds must be"),
        ({"speaker_balance": 1.1}, "data.speaker_balance must be between 0 and 1"),
        ({"speed": 0.6}, "data.speed must be between 0 and 0.5"),
        ({"coloration": 21}, "data.coloration must be between 0 and 20"),
        ({"degraded": -0.1}, "data.degraded must be between 0 and 1"),
        ({"train": ["a", 3]}, "data.train must be a path or a list"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], sentence: str):
    with pytest.raises(ConfigError, match=sentence):
        DataConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("train", ["[3]", "[null]", "[a,3]", "[{a: 1}]"])
def test_what_is_no_path_is_refused_with_the_other_mistakes(train: str):
    with pytest.raises(ConfigError, match=r"data\.train must be a path or a list of paths, got .*window_seconds"):
        compose([f"data.train={train}", "data.window_seconds=0.001"])
