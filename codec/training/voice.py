"""Speech as another mouth would say it, or another microphone hear it: formants moved, coloured, or whispered.

A voice is an excitation filtered by a vocal tract. What the tract does is told by spectral envelopes, the beginning of
the cepstrum, up to less than a period of a voice. Plain functions of windows (T,) and a sample rate in Hz.
"""

import functools

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view

SMALLEST = 1e-7
"""Of magnitudes whose logarithm is taken."""
TRACT = 0.0025
"""Seconds of the cepstrum that tell formants, for voices of less than 400 Hz."""
ROUGH_TRACT = 0.00125
"""Seconds that tell no pitch of any voice."""
LARGEST_GAIN = 1.7
"""Of a frequency whose envelope is moved, as a natural logarithm: 15 dB, beyond which noise would be heard."""
RIPPLES = 8
"""Half waves of a response along the mel scale, at most."""


def random_response(sample_rate: int, decibels: float, rng: np.random.Generator) -> np.ndarray:
    """A smooth response, as microphones and rooms differ: natural logarithms of the gains of (F,) frequencies.

    They are spread by `decibels`, as a standard deviation over the mel scale on average of many, broad slopes more than
    narrow ones.
    """
    return (decibels * rng.standard_normal(RIPPLES)).astype(np.float32) @ _ripples(sample_rate)


@functools.cache
def _ripples(sample_rate: int) -> np.ndarray:
    """(RIPPLES, F) cosines over the mel scale, broad ones first, that spread a response by 1 dB."""
    mels = np.log1p(np.linspace(0, sample_rate / 2, sample_rate // 50 + 1) / 700)
    numbers = np.arange(1, RIPPLES + 1)[:, None]
    amplitudes = np.sqrt(2 / np.square(1 / numbers).sum()) / numbers
    return (np.log(10) / 20 * amplitudes * np.cos(np.pi / mels[-1] * numbers * mels)).astype(np.float32)


def move_formants(wav: np.ndarray, sample_rate: int, factor: float, response: np.ndarray | float = 0.0) -> np.ndarray:
    """Move all formants to `factor` times their frequency, pitch and tempo as they are: (T,) -> (T,) float32.

    What a vocal tract 1 / `factor` times as long does, with which recognizers are trained to know more speakers than
    they have heard. Source: vocal tract length perturbation, Jaitly and Hinton, 2013; here of the envelope alone. A
    `random_response` colours the sound in the same go.
    """
    window, spectra = _analyse(wav, sample_rate)
    bins = np.arange(spectra.shape[-1])
    as_at = np.minimum(bins / factor, bins[-1])  # where each bin finds what it is to sound like
    cosines, moved = (_cosines(round(TRACT * sample_rate), places, len(window)) for places in (bins, as_at))
    gains = np.exp(np.clip(_cepstra(spectra, cosines) @ (moved - cosines), -LARGEST_GAIN, LARGEST_GAIN) + response)
    return _synthesize(spectra * gains, window, len(wav))


def whisper(wav: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """Noise in place of what excites the vocal tract: (T,) -> (T,) float32."""
    window, spectra = _analyse(wav, sample_rate)
    _, noise = _analyse(rng.standard_normal(len(wav)), sample_rate)
    excitation = noise / np.sqrt(np.square(window).sum())
    cosines = _cosines(round(ROUGH_TRACT * sample_rate), np.arange(spectra.shape[-1]), len(window))
    return _synthesize(np.exp(_cepstra(spectra, cosines) @ cosines) * excitation, window, len(wav))


def spectrum_of(sound: np.ndarray, size: int) -> np.ndarray:
    """Real (..., T) -> complex (..., size // 2 + 1), by torch, in a sixth of the time that NumPy takes."""
    return torch.fft.rfft(torch.from_numpy(sound), size).numpy()


def sound_of(spectrum: np.ndarray, size: int) -> np.ndarray:
    """The inverse of `spectrum_of`: (..., size // 2 + 1) -> (..., size)."""
    return torch.fft.irfft(torch.from_numpy(spectrum), size).numpy()


def _analyse(wav: np.ndarray, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
    """The root of a Hann window of 40 ms, and spectra (n, F) of frames that start every 20 ms, the first before the
    sound."""
    hop = sample_rate // 50
    window = np.sin(np.pi / (2 * hop) * np.arange(2 * hop)).astype(np.float32)
    num_frames = -(-len(wav) // hop) + 1
    padded = np.zeros((num_frames + 1) * hop, dtype=np.float32)
    padded[hop : hop + len(wav)] = wav
    frames = sliding_window_view(padded, 2 * hop)[::hop] * window
    return window, spectrum_of(frames, 2 * hop)


def _cepstra(spectra: np.ndarray, cosines: np.ndarray) -> np.ndarray:
    """Those coefficients (n, K) of spectra (n, F) to which the cosines (K, F) of whole bins belong."""
    weights = cosines / (2 * spectra.shape[-1] - 2)
    weights[:, [0, -1]] /= 2  # every other bin stands for its mirror image too
    weights[0] *= 2
    return np.log(np.abs(spectra) + SMALLEST) @ weights.T


def _cosines(num_kept: int, bins: np.ndarray, size: int) -> np.ndarray:
    """What each of K coefficients adds to a logarithmic envelope at (F,) bins of `size`, whole or not: (K, F)."""
    # In 32 bits, which takes a tenth of the time.
    steps = (2 * np.pi / size * np.arange(num_kept)).astype(np.float32)
    cosines: np.ndarray = 2 * np.cos(steps[:, None] * bins.astype(np.float32))
    cosines[0] = 1
    return cosines


def _synthesize(spectra: np.ndarray, window: np.ndarray, num_samples: int) -> np.ndarray:
    """Overlap and add, the inverse of `_analyse`."""
    frames = sound_of(spectra, len(window)) * window
    first, second = np.split(frames, 2, axis=1)
    return (second[:-1] + first[1:]).ravel()[:num_samples]
