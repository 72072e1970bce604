"""Log-mel distance: how far the spectrum is from the original."""

import numpy as np

from codec.evaluation.metric import Column, Metric, Pair
from codec.evaluation.spectra import mel_magnitudes


class MelDistance(Metric):
    """Mean absolute difference of natural log-mel magnitudes; 0 is perfect.

    100 bands on the HTK scale, window 1024, hop 256, magnitude (not power), floor 1e-7, at the pair's own sample rate:
    the reconstruction loss of the published recipe. Depends on level, and on the sample rate: compare at 24 kHz only
    with numbers at 24 kHz. Digital silence meets the floor at -16.1 and weighs much.
    """

    name = "mel"
    columns = (Column("mel", "log-mel L1", "lower", at_own_rate=True),)

    def score(self, pair: Pair) -> dict[str, float]:
        reference, estimate = (
            np.log(np.maximum(mel_magnitudes(wav, pair.sample_rate, 1024, 256, 100), 1e-7))
            for wav in (pair.reference, pair.estimate)
        )
        return {"mel": float(np.abs(reference - estimate).mean(dtype=np.float64))}
