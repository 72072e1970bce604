"""The one resampler of all metrics: the windowed sinc behind the published numbers.

The same filter as `torchaudio.functional.resample` with all its defaults, in numpy. Encoding and decoding do not use
it; they have a steeper one (`codec.audio.resample`).
"""

import functools
import math

import numpy as np

DESCRIPTION = "sinc, Hann window over 6 zero crossings to either side, cut-off at 0.99 of the lower Nyquist frequency"

_ZERO_CROSSINGS = 6
_ROLL_OFF = 0.99


def resample(wav: np.ndarray, source_rate: int, target_rate: int) -> np.ndarray:
    """Bring samples to another rate.

    Output sample k is sum over n of wav[n] s sinc(s (n - k r)) cos^2(pi s (n - k r) / 12), where r = source / target
    rate and s = 0.99 min(1, 1 / r); terms with |s (n - k r)| >= 6 are zero, and so is everything beyond the ends.

    Args:
        wav: (T,) float.
        source_rate: its sample rate, Hz.
        target_rate: Hz.

    Returns:
        (T',) float32, T' = ceil(T * target_rate / source_rate).
    """
    if source_rate == target_rate:
        return np.asarray(wav, dtype=np.float32)
    divisor = math.gcd(source_rate, target_rate)
    source, target = source_rate // divisor, target_rate // divisor
    kernels = _kernels(source, target)  # (target, num_taps)
    num_taps = kernels.shape[1]
    num_samples = -(-len(wav) * target // source)
    num_periods = -(-num_samples // target)
    # Of phase p, output q * target + p, the first tap lies num_taps // 2 - 1 samples before floor(q * source + p * r).
    padded = np.zeros(num_periods * source + num_taps + source)
    padded[num_taps // 2 - 1 :][: len(wav)] = wav
    frames = np.lib.stride_tricks.sliding_window_view(padded, num_taps)
    output = np.empty((num_periods, target), dtype=np.float32)
    for phase in range(target):
        output[:, phase] = frames[phase * source // target :: source][:num_periods] @ kernels[phase]
    return output.reshape(-1)[:num_samples]


@functools.lru_cache(maxsize=8)
def _kernels(source: int, target: int) -> np.ndarray:
    """Taps of every phase of the output: (target, num_taps)."""
    scale = _ROLL_OFF * min(1.0, target / source)
    reach = math.ceil(_ZERO_CROSSINGS / scale)
    taps = np.arange(-reach, reach + 2)
    fractions = np.arange(target) * source % target / target  # of an input sample, behind the tap numbered 0
    t = np.clip(scale * (taps - fractions[:, None]), -_ZERO_CROSSINGS, _ZERO_CROSSINGS)
    return scale * np.sinc(t) * np.cos(np.pi * t / (2 * _ZERO_CROSSINGS)) ** 2
