"""Means, their intervals, and what is counted of codes."""

import numpy as np
import pytest

from codec.evaluation.reconstruction import agreement
from codec.evaluation.statistics import bootstrap_interval, summarise
from codec.evaluation.utilisation import CodeCounter


def test_interval_is_that_of_the_central_limit_theorem():
    values = np.random.default_rng(0).normal(3, 2, size=400)
    low, high = bootstrap_interval(values)
    expected = 1.96 * values.std(ddof=1) / 400**0.5
    assert low == pytest.approx(values.mean() - expected, abs=0.02)  # a tenth of the interval
    assert high == pytest.approx(values.mean() + expected, abs=0.02)


def test_interval_of_a_weighted_mean_is_that_of_the_delta_method():
    generator = np.random.default_rng(0)
    values = generator.normal(3, 2, size=400)
    weights = np.exp(0.25 * values)  # which move the mean by twice the interval
    mean = np.average(values, weights=weights)
    expected = 1.96 * np.linalg.norm(weights * (values - mean)) / weights.sum()
    low, high = bootstrap_interval(values, weights.tolist())
    assert low == pytest.approx(mean - expected, abs=0.05)  # a tenth of the interval
    assert high == pytest.approx(mean + expected, abs=0.05)


def test_interval_is_the_same_again_and_needs_six_values():
    values = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values[:5]) is None
    assert bootstrap_interval([]) is None


@pytest.mark.parametrize(("num", "share"), [(6, 0.925), (10, 0.925), (30, 0.93)])
def test_interval_holds_the_true_mean_about_as_often_as_it_says(num: int, share: float):
    draws = np.random.default_rng(0).normal(size=(2000, num))
    hits = [low <= 0 <= high for low, high in map(bootstrap_interval, draws)]
    assert share < np.mean(hits) < 0.965


def test_speakers_are_drawn_as_a_whole():
    """People differ, and each one's files hardly: 300 files of 30 say as much as 30 files."""
    generator = np.random.default_rng(0)
    hits = []
    for _ in range(200):
        voices = generator.normal(size=30)
        values = np.repeat(voices, 10) + generator.normal(scale=0.3, size=300)
        low, high = bootstrap_interval(values, speakers=[f"{number}" for number in range(30) for _ in range(10)])
        hits.append(low <= 0 <= high)
    assert 0.91 < np.mean(hits) < 0.98


def test_interval_by_speakers_is_that_of_their_sums():
    values, weights = np.random.default_rng(0).normal(size=(2, 12))
    weights = np.exp(weights)
    speakers = [name for name in "abcdef" for _ in range(2)]
    sums, shares = (values * weights).reshape(6, 2).sum(1), weights.reshape(6, 2).sum(1)
    expected = bootstrap_interval(sums / shares, shares)
    assert bootstrap_interval(values, weights, speakers) == pytest.approx(expected)


def test_files_are_drawn_where_few_speakers_are_known():
    values = np.random.default_rng(0).normal(size=12)
    alone = bootstrap_interval(values)
    for speakers in (["a"] * 12, list("abcde") * 2 + ["a", "b"], ["unknown"] * 12):
        assert bootstrap_interval(values, speakers=speakers) == alone
    assert bootstrap_interval(values, speakers=list("abcdef") * 2) != alone


def test_large_sets_are_resampled_in_parts(monkeypatch):
    from codec.evaluation import statistics

    values = np.random.default_rng(0).normal(size=100)
    whole = bootstrap_interval(values)
    monkeypatch.setattr(statistics, "_VALUES_AT_ONCE", 700)
    assert bootstrap_interval(values) == whole


def test_summary_has_plain_and_weighted_means():
    summary = summarise([1.0, 3.0], [1.0, 3.0])
    assert summary["mean"] == 2.0
    assert summary["weighted_mean"] == 2.5
    assert summary["median"] == 2.0
    assert summary["num"] == 2


def test_summary_of_nothing_has_no_mean():
    assert summarise([], []) == {"num": 0}


def test_code_statistics_of_an_even_and_of_a_collapsed_codebook():
    counter = CodeCounter(8)
    counter.add(np.arange(8))
    counter.add(np.arange(8))
    even = counter.statistics()
    assert even["utilisation"] == 1.0
    assert even["perplexity"] == pytest.approx(8)
    assert even["entropy"] == pytest.approx(3)
    assert even["entropy_share"] == pytest.approx(1)
    assert even["num_codes"] == 16
    two = CodeCounter(8)
    two.add(np.array([3, 5]))
    assert two.statistics()["entropy_share"] == pytest.approx(1 / 3)  # one bit of three
    collapsed = CodeCounter(8)
    collapsed.add(np.zeros(10, np.int64))
    assert collapsed.statistics()["utilisation"] == 0.125
    assert collapsed.statistics()["perplexity"] == 1.0
    assert collapsed.statistics()["entropy"] == 0.0


def test_code_statistics_of_nothing():
    assert CodeCounter(8).statistics() == {"num_codes": 0, "codebook_size": 8}


def test_agreement_counts_missing_frames_as_different():
    assert agreement(np.array([1, 2, 3, 4]), np.array([1, 2, 0, 4])) == 0.75
    assert agreement(np.array([1, 2, 3, 4]), np.array([1, 2])) == 0.5
    assert agreement(np.array([], np.int64), np.array([], np.int64)) == 1.0
