"""Training audio, cut from a cache into random windows.

A window is a function of the seed, the step and its number in the batch alone. So a resumed run sees what an
uninterrupted one would have seen, there is no sampler state to save, and every process of a distributed run cuts its
own share and nothing else.

A recording tells nothing beyond half its sample rate, so each window comes with the bandwidth in which it
may be compared with anything.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from codec import audio
from codec.limits import not_positive, refuse, too_large, too_small
from codec.manifest import is_unknown
from codec.training.cache import AudioCache, bandwidth_of
from codec.training.degradation import degrade
from codec.training.voice import move_formants, random_response

LARGEST_CHANGE = 0.5
"""Of speed and of formants, as a share."""
STRONGEST_COLORATION = 20.0
"""dB; far beyond what microphones do."""
LONGEST_WINDOW = 24 * 3600.0  # seconds
_MOST = {"gain_db": 100.0, "window_seconds": LONGEST_WINDOW, "workers": 1000}


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

    train: Any = ""  # manifest, or folder of sound files, in it a folder for each speaker; or a list of both
    validation: str = ""  # the same of held-out speech; empty: no validation
    cache: str = "cache"  # where decoded audio is kept
    batch_size: int = 16  # windows per step, over all processes
    window_seconds: float = 3.0
    speaker_balance: float = 0.75  # a speaker with m minutes is drawn with weight m ** speaker_balance
    gain_db: float = 6.0  # windows are scaled by a random gain within +- this
    speed: float = 0.0  # windows are played up to this share slower or faster, with pitch and formants
    formants: float = 0.0  # formants are moved by up to this share up or down, the pitch stays
    coloration: float = 0.0  # dB by which windows are filtered, as if by other microphones, as a standard deviation
    degraded: float = 0.0  # share of windows that are recorded badly: in noise, a room, a narrow band, too soft ...
    workers: int = 0  # processes that cut windows; 0: threads of the training process, which do for a CPU

    @property
    def sources(self) -> list[Path]:
        """`train` as a list, empty where it is."""
        return [Path(place) for place in self._places() if place and isinstance(place, str)]

    def __post_init__(self) -> None:
        for name in ("validation", "cache"):
            setattr(self, name, os.path.expanduser(getattr(self, name) or ""))  # as shells do not behind "="
        places = [os.path.expanduser(place) if isinstance(place, str) else place for place in self._places()]
        self.train = places if isinstance(self.train, list) else places[0]
        mistakes = too_small(self, "data", {0: ("gain_db", "workers"), 1: ("batch_size",)})
        mistakes += too_large(self, "data", _MOST)
        mistakes += not_positive(self, "data", ("window_seconds",))
        if not all(isinstance(place, str) for place in self._places()):
            mistakes.append(f"data.train must be a path or a list of paths, got {self.train!r}")
        if not self.cache:
            mistakes.append("data.cache must name a folder, it is empty")
        for name, most in (
            ("speaker_balance", 1),
            ("degraded", 1),
            ("speed", LARGEST_CHANGE),
            ("formants", LARGEST_CHANGE),
            ("coloration", STRONGEST_COLORATION),
        ):
            if not 0 <= getattr(self, name) <= most:
                mistakes.append(f"data.{name} must be between 0 and {most}, got {getattr(self, name)}")
        refuse(mistakes)

    def _places(self) -> list[Any]:
        return self.train if isinstance(self.train, list) else [self.train]


class WindowSampler:
    """Random windows of a cache, a batch for every step.

    Speakers are drawn by their minutes to the power of `speaker_balance`, then clips of the speaker by their length. A
    clip whose speaker is not known (the name is or ends in "unknown") counts as its own speaker.
    Windows longer than what is left of a clip go on with further clips.
    """

    def __init__(self, cache: AudioCache, config: DataConfig, seed: int):
        self.cache = cache
        self.config = config
        self.seed = seed
        self.num_samples = round(config.window_seconds * cache.sample_rate)
        names = [f"{speaker} {clip}" if is_unknown(speaker) else speaker for clip, speaker in enumerate(cache.speakers)]
        _, speaker_of_clip = np.unique(names, return_inverse=True)
        samples_of_speaker = np.bincount(speaker_of_clip, weights=cache.lengths)
        weight = cache.lengths * samples_of_speaker[speaker_of_clip] ** (config.speaker_balance - 1.0)
        self._cumulative = np.cumsum(weight / weight.sum())

    def batch(self, step: int, rank: int = 0, num_ranks: int = 1) -> Batch:
        """The windows of one step, or of one process's share of it."""
        numbers = range(rank, self.config.batch_size, num_ranks)
        windows = [self._window(np.random.default_rng((self.seed, step, number))) for number in numbers]
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
            bandwidth = min(bandwidth * played_at / sample_rate, bandwidth_of(played_at, sample_rate))
        if self.config.formants or self.config.coloration:
            change = np.log1p(self.config.formants)
            factor = np.exp(rng.uniform(-change, change))
            wav = move_formants(wav, sample_rate, factor, random_response(sample_rate, self.config.coloration, rng))
        if self.config.degraded and rng.random() < self.config.degraded:
            wav = degrade(wav, sample_rate, rng)
        gain = 10 ** (rng.uniform(-self.config.gain_db, self.config.gain_db) / 20)
        return wav * np.float32(min(gain, 0.99 / max(np.abs(wav).max(), 1e-5))), bandwidth
