"""Spectra that several distances share, in numpy, so that a worker process needs no torch. Shapes: T samples, N frames,
F frequency bins, M mel bands."""

import functools
from typing import Any

import numpy as np

from codec.evaluation.metric import Undefined


def magnitudes(wav: np.ndarray, n_fft: int, hop_length: int) -> np.ndarray:
    """Magnitude STFT with a periodic Hann window, centred with reflection: (T,) -> (N, F) float32, N = T // hop + 1.

    Raises:
        Undefined: T <= n_fft // 2, so there is not enough to reflect.
    """
    if len(wav) <= n_fft // 2:
        raise Undefined(f"has {len(wav)} samples, a spectrum of {n_fft} needs more than {n_fft // 2}")
    padded = np.pad(wav.astype(np.float32), n_fft // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::hop_length]  # (N, n_fft)
    return np.abs(np.fft.rfft(frames * _window(n_fft))).astype(np.float32)


def mel_magnitudes(wav: np.ndarray, sample_rate: int, n_fft: int, hop_length: int, num_mels: int) -> np.ndarray:
    """Magnitudes gathered by triangles of unit height on the HTK mel scale, 0 Hz to half the rate: (T,) -> (N, M)."""
    return magnitudes(wav, n_fft, hop_length) @ mel_filters(sample_rate, n_fft, num_mels)


@functools.lru_cache(maxsize=8)
def mel_filters(sample_rate: int, n_fft: int, num_mels: int, scale: str = "htk") -> np.ndarray:
    """Triangular filters from 0 Hz to half the sample rate whose corners are equally spaced on a mel scale.

    Args:
        sample_rate: Hz.
        n_fft: STFT length; there are n_fft // 2 + 1 bins.
        num_mels: number of filters, at least 1.
        scale: one of `MEL_SCALES`; filters on "htk" have unit height, those on "slaney" unit area over Hz.

    Returns:
        (F, M) float32, F = n_fft // 2 + 1. A filter narrower than the bin spacing can be all zeros.
    """
    to_mel, to_hz = MEL_SCALES[scale]
    corners = to_hz(np.linspace(0, to_mel(sample_rate / 2), num_mels + 2))  # (M + 2,) Hz
    bins = np.linspace(0, sample_rate / 2, n_fft // 2 + 1)[:, None]  # (F, 1) Hz
    rising = (bins - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - bins) / (corners[2:] - corners[1:-1])
    filters = np.clip(np.minimum(rising, falling), 0, None)
    if scale == "slaney":
        filters *= 2 / (corners[2:] - corners[:-2])
    return filters.astype(np.float32)


def _hz_to_htk(hz: Any) -> Any:
    return 2595 * np.log10(1 + hz / 700)


def _htk_to_hz(mel: Any) -> Any:
    return 700 * (10 ** (mel / 2595) - 1)


# The Slaney scale: linear to 1000 Hz (15 mel), then 27 equal steps for every factor of 6.4 in frequency.
_SLANEY_STEP = np.log(6.4) / 27


def _hz_to_slaney(hz: Any) -> Any:
    return np.where(hz < 1000, hz * 3 / 200, 15 + np.log(np.maximum(hz, 1000) / 1000) / _SLANEY_STEP)


def _slaney_to_hz(mel: Any) -> Any:
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp(_SLANEY_STEP * (mel - 15)))


MEL_SCALES = {"htk": (_hz_to_htk, _htk_to_hz), "slaney": (_hz_to_slaney, _slaney_to_hz)}
"""From Hz, and back, as floats or arrays of them."""


@functools.lru_cache(maxsize=8)
def _window(n_fft: int) -> np.ndarray:
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)).astype(np.float32)
