"""PESQ: what a listener of ITU-T P.862 would say, from 1 to about 4.6."""

import numpy as np

from codec.evaluation.metric import Column, Metric, Pair, Undefined

SAMPLE_RATE = 16000
MIN_SECONDS = 0.25
MAX_UTTERANCES = 40
"""The package has room for 50 utterances in a recording and ends the process when there are more."""

_FRAME = 64  # samples, 4 ms
_MIN_FRAMES = 50  # shorter runs are no utterances, and shorter gaps do not part them


class WidebandPesq(Metric):
    """PESQ wide band (P.862.2) of the `pesq` package, at 16 kHz; identical signals give 4.644.

    Both signals are resampled by the common resampler and otherwise left alone: the package divides both by their
    common peak and aligns level and time itself. A pair without an utterance, or an estimate that is silence, has no
    value. Source of the convention: the evaluation scripts of WavTokenizer and SimVQ.
    """

    name = "pesq_wb"
    columns = (Column("pesq_wb", "PESQ wide band", "higher"),)
    packages = ("pesq",)
    mode = "wb"

    def score(self, pair: Pair) -> dict[str, float]:
        import pesq  # a compiled extension

        pair.require_seconds(MIN_SECONDS)
        reference, estimate = pair.at(SAMPLE_RATE)
        if (count := count_utterances(reference)) > MAX_UTTERANCES:
            raise Undefined(f"has {count} utterances with pauses between them, PESQ takes at most {MAX_UTTERANCES}")
        try:
            value = float(pesq.pesq(SAMPLE_RATE, reference, estimate, self.mode))
        except pesq.NoUtterancesError:
            raise Undefined("PESQ finds no utterance in it") from None
        except ValueError as error:  # the levels of a silent estimate cannot be aligned
            raise Undefined(f"PESQ gives no value ({error})") from error
        except pesq.PesqError as error:
            message = error.args[0] if error.args else type(error).__name__
            reason = message.decode() if isinstance(message, bytes) else str(message)
            raise Undefined(f"PESQ gives no value ({reason})") from error
        if not np.isfinite(value):
            raise Undefined("PESQ gives no value (the estimate has no level)")
        return {self.name: value}


class NarrowbandPesq(WidebandPesq):
    """PESQ narrow band (P.862 with the mapping of P.862.1) of the `pesq` package, fed at 16 kHz like the wide band."""

    name = "pesq_nb"
    columns = (Column("pesq_nb", "PESQ narrow band", "higher"),)
    mode = "nb"


def count_utterances(wav: np.ndarray) -> int:
    """Stretches of sound of at least 0.2 s between pauses of at least 0.2 s, about as P.862 counts them.

    A frame of 4 ms is sound if its power is above the mean of the quieter frames by two standard deviations, where
    "quieter" is found by iteration from the mean of all.

    Args:
        wav: (T,) at 16 kHz.
    """
    powers = np.square(wav[: len(wav) // _FRAME * _FRAME].astype(np.float64)).reshape(-1, _FRAME).mean(axis=1)  # (N,)
    if not np.any(powers):
        return 0
    threshold = powers.mean()
    for _ in range(12):
        quiet = powers[powers <= threshold]
        threshold = 1.001 * (quiet.mean() + 2 * quiet.std()) if len(quiet) else 0.0
    edges = np.flatnonzero(np.diff(np.concatenate([[0], powers > threshold, [0]]).astype(np.int8)))
    count, start, end = 0, None, 0
    for begin, stop in edges.reshape(-1, 2):
        if start is None or begin - end >= _MIN_FRAMES:
            count += start is not None and end - start >= _MIN_FRAMES
            start = begin
        end = stop
    return int(count + (start is not None and end - start >= _MIN_FRAMES))
