"""Means and how far to trust them."""

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from codec.manifest import is_unknown

NUM_RESAMPLES = 2000
FEWEST = 6
"""Values of which an interval can be told: five that agree in sign do so by chance in 1 of 16 cases, more than 5 %."""
SEED = 0
_VALUES_AT_ONCE = 1 << 20


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    weights: Sequence[float] | None = None,
    speakers: Sequence[str] | None = None,
) -> tuple[float, float] | None:
    """95 % interval of the (weighted) mean: percentiles over 2000 resamples of the speakers, from a fixed seed.

    All files of a speaker are drawn together, as they are alike: drawn one by one, hundreds of files would promise more
    than the few dozen people in them can tell. With fewer than six known speakers, files are drawn instead; of fewer
    than six files there is no interval: None. Resamples of few vary too little, so the percentiles are those that give
    normal values Student's interval.

    Source: Hesterberg, arXiv:1411.5279 (expanded percentiles).

    Args:
        values: of the files.
        weights: of the same files, all positive; None weighs them alike.
        speakers: of the same files, see `codec.manifest.is_unknown`; None: another one for each.
    """
    data = np.asarray(values, dtype=np.float64)
    if len(data) < FEWEST:
        return None
    shares: np.ndarray = np.ones(len(data)) if weights is None else np.asarray(weights, dtype=np.float64)
    numbers = list(range(len(data))) if speakers is None else _numbered(speakers)
    if len(set(numbers)) < FEWEST:
        numbers = list(range(len(data)))
    sums: np.ndarray = np.bincount(numbers, data * shares)
    shares = np.bincount(numbers, shares)
    generator = np.random.default_rng(SEED)
    means: list[float] = []
    step = max(1, _VALUES_AT_ONCE // len(sums))
    for start in range(0, NUM_RESAMPLES, step):
        picked = generator.integers(len(sums), size=(min(step, NUM_RESAMPLES - start), len(sums)))
        means.extend(sums[picked].sum(axis=1) / shares[picked].sum(axis=1))
    tail = _tail(len(sums))
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)


def _numbered(speakers: Sequence[str]) -> list[int]:
    """A number from 0 on for each speaker; who is unknown may be anybody, and gets another one in each place."""
    numbers: dict[tuple[str, int], int] = {}
    keys = [(speaker, place if is_unknown(speaker) else -1) for place, speaker in enumerate(speakers)]
    return [numbers.setdefault(key, len(numbers)) for key in keys]


def _tail(num: int) -> float:
    """Percentage of resamples of `num` values to leave out at either end; 2.5 for many."""
    z, freedom = NormalDist().inv_cdf(0.975), num - 1
    # Student's quantile, by its expansion around the normal one.
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return 100 * NormalDist().cdf(-t * (num / freedom) ** 0.5)


def summarise(
    values: Sequence[float],
    seconds: Sequence[float],
    weights: Sequence[float] | None = None,
    speakers: Sequence[str] | None = None,
) -> dict[str, Any]:
    """What a column's values say together.

    Args:
        values: of the files that have one.
        seconds: durations of the same files.
        weights: of the same files in the mean, all positive; None weighs them alike, which is the published convention
            of everything but error rates.
        speakers: of the same files, see `bootstrap_interval`.

    Returns:
        num, mean, low and high (95 %, see `bootstrap_interval`), median, std,
        weighted_mean (by duration), min, max; only num where there are no values.
    """
    if not len(values):
        return {"num": 0}
    data = np.asarray(values, dtype=np.float64)
    low, high = bootstrap_interval(data, weights, speakers) or (None, None)
    return {
        "num": len(data),
        "mean": float(np.average(data, weights=weights)),
        "low": low,
        "high": high,
        "median": float(np.median(data)),
        "std": float(data.std(ddof=1)) if len(data) > 1 else None,
        "weighted_mean": float(np.average(data, weights=seconds)),
        "min": float(data.min()),
        "max": float(data.max()),
    }
