"""Multi-resolution STFT distance."""

import numpy as np

from codec.evaluation.metric import Column, Metric, Pair, Undefined
from codec.evaluation.spectra import magnitudes

RESOLUTIONS = ((512, 128), (1024, 256), (2048, 512))
FLOOR = 1e-5


class StftDistance(Metric):
    """Spectral convergence plus log-magnitude difference, averaged over three resolutions; 0 is perfect.

    Convergence is ||S - S'|| / ||S|| with Frobenius norms; the other term the mean absolute difference of natural
    logarithms of magnitudes raised to 1e-5. Window and hop 512 / 128, 1024 / 256, 2048 / 512, at the pair's own sample
    rate. Depends on level. A silent reference has no value.
    Source: Parallel WaveGAN, arXiv:1910.11480, equations 4 to 6.
    """

    name = "stft"
    columns = (Column("stft", "multi-resolution STFT", "lower", at_own_rate=True),)

    def score(self, pair: Pair) -> dict[str, float]:
        terms = []
        for n_fft, hop_length in RESOLUTIONS:
            reference, estimate = (magnitudes(wav, n_fft, hop_length) for wav in (pair.reference, pair.estimate))
            energy = float(np.square(reference, dtype=np.float64).sum())
            if not energy:
                raise Undefined("the reference is digital silence")
            error = float(np.square(reference - estimate, dtype=np.float64).sum())
            convergence = (error / energy) ** 0.5
            logs = [np.log(np.maximum(spectrum, FLOOR)) for spectrum in (reference, estimate)]
            terms.append(convergence + float(np.abs(logs[0] - logs[1]).mean(dtype=np.float64)))
        return {"stft": sum(terms) / len(terms)}
