"""Training audio: decoded once into a memory-mapped cache, then cut into random windows.

The batch of a step is a function of the seed and the step alone. So a resumed run sees what an uninterrupted one would
have seen, there is no sampler state to save, and every process of a distributed run can cut its own share.

A recording tells nothing beyond half its sample rate, so each window comes with the bandwidth in which it
may be compared with anything.
"""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from codec import audio
from codec.errors import AudioError, ConfigError
from codec.limits import too_small
from codec.manifest import UNKNOWN_SPEAKER, read_manifest
from codec.output import open_output
from codec.processes import follow_parent
from codec.training.degradation import degrade

INDEX_NAME = "clips.json"
VERSION = 2  # of the cache; one of another version is made again
Progress = Callable[[str, int, int], None]
FILES_IN_FLIGHT = 512
"""Files decoded ahead of what is written to the cache, so that memory does not depend on the size of a corpus."""

LARGEST_SPEED_CHANGE = 0.5
PASS_BAND = 0.91
"""Of half a sample rate: where the resampler's filter begins to fall."""


class Batch(NamedTuple):
    """The windows of a step."""

    wav: Tensor  # (B, 1, T) float32 in [-1, 1]
    bandwidth: Tensor | None  # (B,) Hz up to which each recording reaches; None where all fill the band

    def to(self, device: torch.device) -> "Batch":
        """On the device, without waiting for it."""
        bandwidth = None if self.bandwidth is None else self.bandwidth.to(device, non_blocking=True)
        return Batch(self.wav.to(device, non_blocking=True), bandwidth)

    def pin_memory(self) -> "Batch":
        """In memory that a GPU can copy from by itself."""
        return Batch(self.wav.pin_memory(), None if self.bandwidth is None else self.bandwidth.pin_memory())


@dataclass
class DataConfig:
    """Which audio to train on and how to cut it."""

    train: Any = (
        ""  # manifest, or folder of sound files whose first folder below it names the speaker; or a list of them
    )
    validation: str = ""  # the same of held-out speech; empty: no validation
    cache: str = "cache"  # where decoded audio is kept
    batch_size: int = 16  # windows per step, over all processes
    window_seconds: float = 3.0
    speaker_balance: float = 0.75  # a speaker with m minutes is drawn with weight m ** speaker_balance
    gain_db: float = 6.0  # windows are scaled by a random gain within +- this
    speed: float = 0.0  # windows are played up to this share slower or faster, with pitch and formants
    degraded: float = 0.0  # share of windows that are recorded badly: in noise, a room, a narrow band, too soft ...
    workers: int = 0  # processes that cut windows; 0: threads of the training process, which do for a CPU

    @property
    def sources(self) -> list[Path]:
        """`train` as a list, empty where it is."""
        return [Path(place) for place in self._places() if place and isinstance(place, str)]

    def __post_init__(self) -> None:
        mistakes = too_small(self, "data", {0: ("gain_db", "workers"), 1: ("batch_size",)})
        if not all(isinstance(place, str) for place in self._places()):
            mistakes.append(f"data.train must be a path or a list of paths, got {self.train!r}")
        if self.window_seconds <= 0:
            mistakes.append(f"data.window_seconds must be positive, got {self.window_seconds}")
        for name, most in (("speaker_balance", 1), ("degraded", 1), ("speed", LARGEST_SPEED_CHANGE)):
            if not 0 <= getattr(self, name) <= most:
                mistakes.append(f"data.{name} must be between 0 and {most}, got {getattr(self, name)}")
        if mistakes:
            raise ConfigError("; ".join(mistakes))

    def _places(self) -> list[Any]:
        return self.train if isinstance(self.train, list) else [self.train]


class NoCache(AudioError):
    """A folder holds no complete cache, or one of another version."""


class AudioCache:
    """Clips of one sample rate, as 16-bit integers end to end in one memory-mapped file.

    A folder holds `audio.int16` (little endian) and `clips.json`, which is written last: without it the cache is
    incomplete and is made again.

    Raises:
        NoCache: there is none, or one of another version.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        path = folder / INDEX_NAME
        index = json.loads(path.read_text()) if path.exists() else {}
        if index.get("version") != VERSION:
            raise NoCache(f"{folder}: holds no audio cache of this version; train with it as data.cache to make one")
        self.sample_rate: int = index["sample_rate"]
        self.paths: list[str] = [clip["path"] for clip in index["clips"]]
        self.speakers: list[str] = [clip["speaker"] for clip in index["clips"]]
        self.offsets = np.array([clip["offset"] for clip in index["clips"]], dtype=np.int64)
        self.lengths = np.array([clip["samples"] for clip in index["clips"]], dtype=np.int64)
        self.file_sizes: list[int] = [clip["bytes"] for clip in index["clips"]]
        self.bandwidths = np.array([clip["bandwidth"] for clip in index["clips"]])
        """Hz, at most half the cache's sample rate."""
        self.audio = np.memmap(folder / "audio.int16", dtype="<i2", mode="r")

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        """Another process opens the same files."""
        return AudioCache, (self.folder,)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def seconds(self) -> float:
        """Duration of all clips together."""
        return float(self.lengths.sum()) / self.sample_rate

    def clip(self, index: int) -> np.ndarray:
        """One clip: (T,) int16."""
        start = self.offsets[index]
        return self.audio[start : start + self.lengths[index]]


def open_cache(
    sources: Sequence[Path], cache_folder: Path, sample_rate: int, progress: Progress | None = None
) -> AudioCache:
    """The cache of all sound files of manifests or below folders, made first where it is missing.

    Args:
        sources: manifests and folders.
        cache_folder: is made.
        sample_rate: Hz.
        progress: called with "decoded", files done and files in all.

    Raises:
        AudioError: a source is missing or has no sound files, or files are missing or cannot be decoded; the cache is
            damaged.
        CorpusError: the manifest is not one.
        ConfigError: the cache was made at another sample rate, or of other files.
    """
    try:
        cache = AudioCache(cache_folder)
    except NoCache:
        _build_cache(sources, cache_folder, sample_rate, progress)
        cache = AudioCache(cache_folder)
    if all(source.exists() for source in sources) and not _holds(cache, _all_sounds(sources)):
        raise ConfigError(
            f"{cache_folder}: was made of other sound files than {_joined(sources)} holds; delete it or choose another "
            "data.cache"
        )
    if len(cache.audio) != cache.lengths.sum():
        raise AudioError(f"{cache_folder}: its audio does not have the length of its index; delete the folder")
    if cache.sample_rate != sample_rate:
        raise ConfigError(
            f"{cache_folder}: holds audio at {cache.sample_rate} Hz, the model needs {sample_rate} Hz; "
            "choose another cache folder"
        )
    return cache


def _holds(cache: AudioCache, sounds: list[tuple[Path, str, str]]) -> bool:
    """Whether a cache was made of these files: of their names and, as two corpora may share those, their sizes."""
    return cache.paths == [name for _, name, _ in sounds] and all(
        not path.exists() or path.stat().st_size == size
        for (path, _, _), size in zip(sounds, cache.file_sizes, strict=True)
    )


def _build_cache(
    sources: Sequence[Path], cache_folder: Path, sample_rate: int, progress: Progress | None = None
) -> None:
    sounds = _all_sounds(sources)
    if missing := [path for path, _, _ in sounds if not path.is_file()]:
        more = f", and so are {len(missing) - 1} more of {len(sounds)}" if len(missing) > 1 else ""
        raise AudioError(f"{missing[0]}: is not there{more}; codec prepare check tells which a manifest misses")
    cache_folder.mkdir(parents=True, exist_ok=True)
    clips, offset = [], 0
    with open_output(cache_folder / "audio.int16", overwrite=True) as stream:
        with ProcessPoolExecutor(initializer=follow_parent) as pool:  # one per core
            for start in range(0, len(sounds), FILES_IN_FLIGHT):
                some = sounds[start : start + FILES_IN_FLIGHT]
                decoded = pool.map(_decode, [path for path, _, _ in some], [sample_rate] * len(some), chunksize=8)
                try:
                    for (path, name, speaker), (samples, bandwidth) in zip(some, decoded, strict=True):
                        clip = {"path": name, "bytes": path.stat().st_size, "speaker": speaker, "offset": offset}
                        clips.append(clip | {"samples": len(samples), "bandwidth": bandwidth})
                        stream.write(samples.tobytes())
                        offset += len(samples)
                        if progress:
                            progress("decoded", len(clips), len(sounds))
                except BrokenProcessPool as error:
                    raise AudioError(
                        f"{_joined(sources)}: a process that decoded audio was killed; start again"
                    ) from error
    if not offset:
        raise AudioError(f"{_joined(sources)}: its sound files hold no audio")
    with open_output(cache_folder / INDEX_NAME, overwrite=True) as stream:
        stream.write(json.dumps({"version": VERSION, "sample_rate": sample_rate, "clips": clips}).encode())


def _joined(sources: Sequence[Path]) -> str:
    return ", ".join(map(str, sources))


def _all_sounds(sources: Sequence[Path]) -> list[tuple[Path, str, str]]:
    return [sound for source in sources for sound in _sounds(source)]


def _sounds(source: Path) -> list[tuple[Path, str, str]]:
    """Each sound file, its name in the cache and its speaker."""
    if source.is_file():
        return [(utterance.path, utterance.id, utterance.speaker) for utterance in read_manifest(source)]
    paths = audio.find_sounds(source)
    names = [path.relative_to(source) for path in paths]
    speakers = [name.parts[0] if len(name.parts) > 1 else UNKNOWN_SPEAKER for name in names]
    return list(zip(paths, map(str, names), speakers, strict=True))


def _decode(path: Path, sample_rate: int) -> tuple[np.ndarray, float]:
    """Samples as 16-bit integers, and the bandwidth in Hz."""
    with audio.SoundReader(path, sample_rate) as sound:
        wav = np.concatenate(list(sound))  # (T,) float32
    bandwidth = _bandwidth(sound.info.sample_rate, sample_rate)
    return np.round(np.clip(wav, -1, 1) * 32767).astype("<i2"), bandwidth


def _bandwidth(own_rate: float, sample_rate: int) -> float:
    """Up to which frequency sound of a rate is whole after it was brought to another, Hz."""
    return sample_rate / 2 if own_rate >= sample_rate else PASS_BAND * own_rate / 2


class WindowSampler:
    """Random windows of a cache, a batch for every step.

    Speakers are drawn by their minutes to the power of `speaker_balance`, then clips of the speaker by their length. A
    clip without a known speaker (its folder is named `unknown` or ends in `_unknown`) counts as its own speaker.
    Windows longer than what is left of a clip go on with further clips.
    """

    def __init__(self, cache: AudioCache, config: DataConfig, seed: int):
        self.cache = cache
        self.config = config
        self.seed = seed
        self.num_samples = round(config.window_seconds * cache.sample_rate)
        names = [
            f"{UNKNOWN_SPEAKER} {clip}" if speaker.endswith(UNKNOWN_SPEAKER) else speaker
            for clip, speaker in enumerate(cache.speakers)
        ]
        _, speaker_of_clip = np.unique(names, return_inverse=True)
        samples_of_speaker = np.bincount(speaker_of_clip, weights=cache.lengths)
        weight = cache.lengths * samples_of_speaker[speaker_of_clip] ** (config.speaker_balance - 1.0)
        self._cumulative = np.cumsum(weight / weight.sum())

    def batch(self, step: int, rank: int = 0, num_ranks: int = 1) -> Batch:
        """The windows of one step, or of one process's share of it."""
        rng = np.random.default_rng((self.seed, step))
        windows = [self._window(rng) for _ in range(self.config.batch_size)][rank::num_ranks]
        wav = torch.from_numpy(np.stack([wav for wav, _ in windows]))[:, None]
        bandwidth = torch.tensor([bandwidth for _, bandwidth in windows], dtype=torch.float32)
        return Batch(wav, bandwidth if (bandwidth < self.cache.sample_rate / 2).any() else None)

    def _window(self, rng: np.random.Generator) -> tuple[np.ndarray, float]:
        """Samples (T,) float32 and bandwidth."""
        sample_rate, change = self.cache.sample_rate, np.log1p(self.config.speed)
        played_at = round(sample_rate * np.exp(rng.uniform(-change, change))) if change else sample_rate
        window = np.zeros(-(-self.num_samples * played_at // sample_rate), dtype=np.int16)
        bandwidth = sample_rate / 2
        filled = 0
        while filled < len(window):
            index = min(int(np.searchsorted(self._cumulative, rng.random())), len(self.cache) - 1)
            clip = self.cache.clip(index)
            start = int(rng.integers(max(len(clip) - len(window), 0) + 1)) if filled == 0 else 0
            piece = clip[start : start + len(window) - filled]
            window[filled : filled + len(piece)] = piece
            filled += len(piece)
            bandwidth = min(bandwidth, self.cache.bandwidths[index])
        wav = window.astype(np.float32) / 32768
        if played_at != sample_rate:
            wav = audio.resample(wav, played_at, sample_rate)[: self.num_samples]
            bandwidth = min(bandwidth * played_at / sample_rate, _bandwidth(played_at, sample_rate))
        if self.config.degraded and rng.random() < self.config.degraded:
            wav = degrade(wav, sample_rate, rng)
        gain = 10 ** (rng.uniform(-self.config.gain_db, self.config.gain_db) / 20)
        return wav * np.float32(min(gain, 0.99 / max(np.abs(wav).max(), 1e-5))), bandwidth
