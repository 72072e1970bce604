"""Training audio: decoded once into a memory-mapped cache, then cut into random windows.

The batch of a step is a function of the seed and the step alone. So a resumed run sees what an uninterrupted one would
have seen, there is no sampler state to save, and every process of a distributed run can cut its own share.
"""

import json
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from codec import audio
from codec.errors import AudioError, ConfigError
from codec.manifest import UNKNOWN_SPEAKER, read_manifest
from codec.output import open_output
from codec.processes import follow_parent

FILES_IN_FLIGHT = 512
"""Files decoded ahead of what is written to the cache, so that memory does not depend on the size of a corpus."""


@dataclass
class DataConfig:
    """Which audio to train on and how to cut it."""

    train: str = ""  # manifest, or folder of sound files whose first folder below it names the speaker
    validation: str = ""  # the same of held-out speech; empty: no validation
    cache: str = "cache"  # where decoded audio is kept
    batch_size: int = 16  # windows per step, over all processes
    window_seconds: float = 3.0
    speaker_balance: float = 0.75  # a speaker with m minutes is drawn with weight m ** speaker_balance
    gain_db: float = 6.0  # windows are scaled by a random gain within +- this

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"data.batch_size must be at least 1, got {self.batch_size}")
        if self.window_seconds <= 0:
            raise ConfigError(f"data.window_seconds must be positive, got {self.window_seconds}")
        if not 0 <= self.speaker_balance <= 1:
            raise ConfigError(f"data.speaker_balance must be between 0 and 1, got {self.speaker_balance}")


class AudioCache:
    """Clips of one sample rate, as 16-bit integers end to end in one memory-mapped file.

    A folder holds `audio.int16` (little endian) and `index.json`, which is written last: without it the cache is
    incomplete and is made again.
    """

    def __init__(self, folder: Path):
        index = json.loads((folder / "index.json").read_text())
        self.sample_rate: int = index["sample_rate"]
        self.paths: list[str] = [clip["path"] for clip in index["clips"]]
        self.speakers: list[str] = [clip["speaker"] for clip in index["clips"]]
        self.offsets = np.array([clip["offset"] for clip in index["clips"]], dtype=np.int64)
        self.lengths = np.array([clip["samples"] for clip in index["clips"]], dtype=np.int64)
        self.audio = np.memmap(folder / "audio.int16", dtype="<i2", mode="r")

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


def open_cache(source: Path, cache_folder: Path, sample_rate: int) -> AudioCache:
    """The cache of all sound files of a manifest or below a folder, made first where it is missing.

    Raises:
        AudioError: the source is missing or has no sound files, or a file cannot be decoded; the cache is damaged.
        CorpusError: the manifest is not one.
        ConfigError: the cache was made at another sample rate, or of other files.
    """
    if not (cache_folder / "index.json").exists():
        _build_cache(source, cache_folder, sample_rate)
    cache = AudioCache(cache_folder)
    if source.exists() and cache.paths != [name for _, name, _ in _sounds(source)]:
        raise ConfigError(
            f"{cache_folder}: was made of other sound files than {source} holds; delete it or choose another data.cache"
        )
    if len(cache.audio) != cache.lengths.sum():
        raise AudioError(f"{cache_folder}: its audio does not have the length of its index; delete the folder")
    if cache.sample_rate != sample_rate:
        raise ConfigError(
            f"{cache_folder}: holds audio at {cache.sample_rate} Hz, the model needs {sample_rate} Hz; "
            "choose another cache folder"
        )
    return cache


def _build_cache(source: Path, cache_folder: Path, sample_rate: int) -> None:
    sounds = _sounds(source)
    cache_folder.mkdir(parents=True, exist_ok=True)
    clips, offset = [], 0
    with open_output(cache_folder / "audio.int16", overwrite=True) as stream:
        with ProcessPoolExecutor(initializer=follow_parent) as pool:  # one per core
            for start in range(0, len(sounds), FILES_IN_FLIGHT):
                some = sounds[start : start + FILES_IN_FLIGHT]
                decoded = pool.map(_decode, [path for path, _, _ in some], [sample_rate] * len(some), chunksize=8)
                try:
                    for (_, name, speaker), samples in zip(some, decoded, strict=True):
                        clips.append({"path": name, "speaker": speaker, "offset": offset, "samples": len(samples)})
                        stream.write(samples.tobytes())
                        offset += len(samples)
                except BrokenProcessPool as error:
                    raise AudioError(f"{source}: a process that decoded audio was killed; start again") from error
    if not offset:
        raise AudioError(f"{source}: its sound files hold no audio")
    with open_output(cache_folder / "index.json", overwrite=True) as stream:
        stream.write(json.dumps({"sample_rate": sample_rate, "clips": clips}).encode())


def _sounds(source: Path) -> list[tuple[Path, str, str]]:
    """Each sound file, its name in the cache and its speaker."""
    if source.is_file():
        return [(utterance.path, utterance.id, utterance.speaker) for utterance in read_manifest(source)]
    if not source.is_dir():
        raise AudioError(f"{source}: no such folder or manifest")
    paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in audio.INPUT_SUFFIXES)
    if not paths:
        raise AudioError(f"{source}: no sound files in it")
    names = [path.relative_to(source) for path in paths]
    speakers = [name.parts[0] if len(name.parts) > 1 else UNKNOWN_SPEAKER for name in names]
    return list(zip(paths, map(str, names), speakers, strict=True))


def _decode(path: Path, sample_rate: int) -> np.ndarray:
    wav, _ = audio.read(path, sample_rate)  # (1, T) float32
    return np.round(np.clip(wav[0], -1, 1) * 32767).astype("<i2")


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

    def batch(self, step: int, rank: int = 0, num_ranks: int = 1) -> Tensor:
        """The windows of one step, or of one process's share of it: (B, 1, T) float32 in [-1, 1]."""
        rng = np.random.default_rng((self.seed, step))
        windows = [self._window(rng) for _ in range(self.config.batch_size)]
        return torch.from_numpy(np.stack(windows[rank::num_ranks]))[:, None]

    def _window(self, rng: np.random.Generator) -> np.ndarray:
        window = np.zeros(self.num_samples, dtype=np.int16)
        filled = 0
        while filled < self.num_samples:
            clip = self.cache.clip(min(int(np.searchsorted(self._cumulative, rng.random())), len(self.cache) - 1))
            start = int(rng.integers(max(len(clip) - self.num_samples, 0) + 1)) if filled == 0 else 0
            piece = clip[start : start + self.num_samples - filled]
            window[filled : filled + len(piece)] = piece
            filled += len(piece)
        gain = 10 ** (rng.uniform(-self.config.gain_db, self.config.gain_db) / 20)
        wav = window.astype(np.float32) / 32768
        return wav * np.float32(min(gain, 0.99 / max(np.abs(wav).max(), 1e-5)))
