"""Means and how far to trust them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

NUM_RESAMPLES = 2000
FEWEST = 6
"""Values of which an interval can be told: five that agree in sign do so by chance in 1 of 16 cases, more than 5 %."""
SEED = 0
_VALUES_AT_ONCE = 1 << 20


def bootstrap_interval(
    values: Sequence[float] | np.ndarray, weights: Sequence[float] | None = None
) -> tuple[float, float] | None:
    """95 % interval of the (weighted) mean: percentiles over 2000 resamples of the files, from a fixed seed.

    None for fewer than six values. Up to ten, intervals are narrower than they should be: they cover 90 %.
    """
    data = np.asarray(values, dtype=np.float64)
    if len(data) < FEWEST:
        return None
    generator = np.random.default_rng(SEED)
    means: list[float] = []
    step = max(1, _VALUES_AT_ONCE // len(data))
    for start in range(0, NUM_RESAMPLES, step):
        picked = generator.integers(len(data), size=(min(step, NUM_RESAMPLES - start), len(data)))
        if weights is None:
            means.extend(data[picked].mean(axis=1))
        else:
            shares = np.asarray(weights, dtype=np.float64)[picked]
            means.extend((data[picked] * shares).sum(axis=1) / shares.sum(axis=1))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def summarise(
    values: Sequence[float], seconds: Sequence[float], weights: Sequence[float] | None = None
) -> dict[str, Any]:
    """What a column's values say together.

    Args:
        values: of the files that have one.
        seconds: durations of the same files.
        weights: of the same files in the mean, all positive; None weighs them alike, which is the published convention
            of everything but error rates.

    Returns:
        num, mean, low and high (95 %, see `bootstrap_interval`), median, std,
        weighted_mean (by duration), min, max; only num where there are no values.
    """
    if not len(values):
        return {"num": 0}
    data = np.asarray(values, dtype=np.float64)
    low, high = bootstrap_interval(data, weights) or (None, None)
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
