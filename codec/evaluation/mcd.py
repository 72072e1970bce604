"""Mel-cepstral distortion."""

import math

import numpy as np

from codec.evaluation.metric import Column, Metric, Pair
from codec.evaluation.spectra import mel_magnitudes

NUM_BANDS = 80
NUM_COEFFICIENTS = 13
FLOOR = 1e-5


class MelCepstralDistortion(Metric):
    """Mean over frames of 10 / ln 10 * sqrt(2 sum_k (c_k - c'_k)^2), k = 1..13, in dB; 0 is perfect.

    c_k = 2 / 80 sum_m L_m cos(pi k (m + 1/2) / 80) of 80 natural log-mel magnitudes L (HTK scale, window 1024, hop 256,
    floor 1e-5) at the pair's own sample rate. So the distortion of a frame is the root-mean-square difference, in dB
    over mel bands, of two smoothed spectra whose level was made equal (c_0 is left out). Frames are compared where they
    stand, without time warping. Numbers from a WORLD or SPTK front end, or with c_0, do not compare.
    """

    name = "mcd"
    columns = (Column("mcd", "MCD (log-mel DCT, c1-c13)", "lower", "dB", at_own_rate=True),)

    def score(self, pair: Pair) -> dict[str, float]:
        reference, estimate = (
            np.log(np.maximum(mel_magnitudes(wav, pair.sample_rate, 1024, 256, NUM_BANDS), FLOOR)) @ _dct()
            for wav in (pair.reference, pair.estimate)
        )  # (N, 13)
        distances = np.sqrt(2 * np.square(reference - estimate, dtype=np.float64).sum(axis=1))  # (N,)
        return {"mcd": float(10 / math.log(10) * distances.mean())}


def _dct() -> np.ndarray:
    """(M, 13): from log magnitudes to c_1 .. c_13."""
    bands, orders = np.arange(NUM_BANDS)[:, None], np.arange(1, NUM_COEFFICIENTS + 1)
    return 2 / NUM_BANDS * np.cos(np.pi * (bands + 0.5) * orders / NUM_BANDS)
