"""Spectra that several distances share, in numpy, so that a worker process needs no torch. Shapes: T samples, N frames,
F frequency bins, M mel bands."""

import functools

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
    return magnitudes(wav, n_fft, hop_length) @ htk_filters(sample_rate, n_fft, num_mels)


@functools.lru_cache(maxsize=8)
def htk_filters(sample_rate: int, n_fft: int, num_mels: int) -> np.ndarray:
    """Triangles whose corners are equally spaced on mel = 2595 log10(1 + f / 700): (F, M) float32."""
    highest = 2595 * np.log10(1 + sample_rate / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, highest, num_mels + 2) / 2595) - 1)  # (M + 2,) Hz
    bins = np.linspace(0, sample_rate / 2, n_fft // 2 + 1)[:, None]  # (F, 1) Hz
    rising = (bins - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - bins) / (corners[2:] - corners[1:-1])
    return np.clip(np.minimum(rising, falling), 0, None).astype(np.float32)


@functools.lru_cache(maxsize=8)
def _window(n_fft: int) -> np.ndarray:
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)).astype(np.float32)
