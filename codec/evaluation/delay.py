"""By how much a codec's output is late. Scores that compare sample by sample, or frame by frame, suffer from it."""

import numpy as np

from codec.evaluation.metric import Pair

MAX_SECONDS = 0.05
NOTICEABLE = 12
"""Samples, half a millisecond: a smaller delay harms no score, and delays that differ less are the same."""
CLEAR = 0.25
"""Correlation from which a delay is believed; where a codec invents the waveform, most files stay below it."""


def delay_of(pair: Pair) -> int | None:
    """Samples by which the estimate comes after the reference, negative where it comes before.

    The place of the largest correlation of both waveforms within 50 ms, over the whole utterance; None where that
    correlation is weak, because the codec does not keep the waveform.
    """
    reference, estimate = (wav - wav.mean() for wav in (pair.reference, pair.estimate))
    reach = round(MAX_SECONDS * pair.sample_rate)
    size = 1 << (len(reference) + reach).bit_length()
    spectrum = np.fft.rfft(estimate, size) * np.conj(np.fft.rfft(reference, size))
    correlation = np.fft.irfft(spectrum, size)
    lags = np.arange(-reach, reach + 1)
    best = int(lags[np.argmax(correlation[lags])])
    scale = float(np.linalg.norm(reference) * np.linalg.norm(estimate))
    return best if scale > 0 and correlation[best] > CLEAR * scale else None
