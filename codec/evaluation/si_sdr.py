"""Scale-invariant signal-to-distortion ratio."""

import numpy as np

from codec.evaluation.metric import Column, Metric, Pair, Undefined


class SiSdr(Metric):
    """10 log10 of the energy of the estimate's projection on the reference over that of the rest, in dB.

    Both are made free of their mean first. Generative codecs do not keep the waveform's phase, so low and negative
    values are usual and say little about how they sound. Source: Le Roux et al., arXiv:1811.02508.
    """

    name = "si_sdr"
    columns = (Column("si_sdr", "SI-SDR", "higher", "dB", digits=2, at_own_rate=True),)

    def score(self, pair: Pair) -> dict[str, float]:
        reference, estimate = (
            wav.astype(np.float64) - wav.mean(dtype=np.float64) for wav in (pair.reference, pair.estimate)
        )
        energy = float(reference @ reference)
        if energy == 0 or not np.any(estimate):
            raise Undefined("a signal is constant, so there is nothing to project")
        projection = reference * (float(reference @ estimate) / energy)
        rest = estimate - projection
        signal, distortion = float(projection @ projection), float(rest @ rest)
        if signal == 0 or distortion <= 1e-14 * signal:
            kind = "the reference itself, up to its level" if signal else "orthogonal to the reference"
            raise Undefined(f"the estimate is {kind}: SI-SDR is infinite")
        return {"si_sdr": 10 * float(np.log10(signal / distortion))}
