"""STOI: how much of the words gets through, from 0 to 1."""

import warnings

import numpy as np

from codec.evaluation.metric import Column, Metric, Pair, Undefined


class Stoi(Metric):
    """Short-time objective intelligibility of the `pystoi` package, at the pair's own sample rate.

    The package resamples to 10 kHz itself, and leaves out frames 40 dB below the loudest. With fewer than 30 frames
    left (about 0.4 s of speech) there is no value; the package would return 1e-5.
    Source: Taal et al., 2011; the convention is that of the scripts of WavTokenizer and SimVQ.
    """

    name = "stoi"
    columns = (Column("stoi", "STOI", "higher"),)
    packages = ("pystoi", "scipy")
    is_extended = False

    def score(self, pair: Pair) -> dict[str, float]:
        from pystoi import stoi

        if not np.any(pair.reference) or not np.any(pair.estimate):
            raise Undefined("one of both is digital silence")
        # The extended variant adds noise of 1e-16 from numpy's global generator.
        state = np.random.get_state()
        np.random.seed(0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", RuntimeWarning)
                value = float(stoi(pair.reference, pair.estimate, pair.sample_rate, extended=self.is_extended))
        except (RuntimeWarning, ValueError) as error:
            raise Undefined("STOI needs 30 frames (about 0.4 s) of speech, there are fewer") from error
        finally:
            np.random.set_state(state)
        if not np.isfinite(value):
            raise Undefined("STOI gives no value")
        return {self.name: value}


class ExtendedStoi(Stoi):
    """Extended STOI of the `pystoi` package: also falls when bands no longer move together. Conditions as for STOI.

    Source: Jensen and Taal, 2016.
    """

    name = "estoi"
    columns = (Column("estoi", "ESTOI", "higher"),)
    is_extended = True
