"""Choices depend on ids and the seed, never on the order in which files were found."""

import dataclasses
import random
from collections import Counter
from pathlib import Path

import pytest

from codec.errors import ConfigError
from codec.manifest import Utterance, is_unknown
from codec.preparation.outcome import PreparationConfig
from codec.preparation.selection import Candidate, Filters, hold_out, select, shared_speakers, subset
from codec.preparation.survey import Measurement


def corpus(**clips_of: int) -> list[Utterance]:
    return [
        Utterance(f"{speaker}-{clip}", Path(f"{speaker}-{clip}.wav"), 24000, 24000, speaker, "train")
        for speaker, count in clips_of.items()
        for clip in range(count)
    ]


MANY = corpus(anna=40, ben=5, cleo=1, dan=30, unknown=4)
FINE = Measurement(1, 1, "", 48000, 24000, 1, 0.5, 0.2, 0.0)


@pytest.mark.parametrize("count", [1, 3, 10, 1000])
def test_subset_is_balanced_and_independent_of_the_order(count):
    chosen = subset(MANY, count, seed=3)
    shuffled = random.Random(0).sample(MANY, len(MANY))
    assert chosen == subset(shuffled, count, seed=3)
    assert len(chosen) == min(count, len(MANY))
    counts = Counter(u.speaker for u in chosen)
    available = Counter(u.speaker for u in MANY)
    for speaker, number in available.items():  # nobody could be given more without taking from one who has more
        assert counts[speaker] >= min(number, max(counts.values()) - 1)


def test_larger_subset_contains_the_smaller_and_the_seed_matters():
    assert set(subset(MANY, 10)) < set(subset(MANY, 20))
    assert subset(MANY, 10, seed=0) != subset(MANY, 10, seed=1)


def test_held_out_lists_share_no_speaker_and_nothing_is_lost():
    utterances = corpus(**{f"s{number}": 3 + number % 5 for number in range(40)}, unknown=20)
    lists = hold_out(utterances, {"dev": 0.1, "test": 0.2})
    assert not shared_speakers(lists)
    assert sorted(u.id for part in lists.values() for u in part) == sorted(u.id for u in utterances)
    assert len(lists["dev"]) == pytest.approx(0.1 * len(utterances), abs=7)
    assert len(lists["test"]) == pytest.approx(0.2 * len(utterances), abs=7)
    assert sum(is_unknown(u.speaker) for u in lists["train"]) == 20
    shuffled = hold_out(utterances[::-1], {"dev": 0.1, "test": 0.2})
    assert {u.speaker for u in shuffled["dev"]} == {u.speaker for u in lists["dev"]}


def test_every_list_gets_a_speaker_where_there_are_enough():
    lists = hold_out(corpus(anna=10, ben=10, cleo=10), {"dev": 0.9, "test": 0.05})
    assert {name: len(part) for name, part in lists.items()} == {"train": 10, "dev": 10, "test": 10}


def test_a_list_that_is_held_out_of_a_small_corpus_is_not_empty():
    lists = hold_out(corpus(anna=1, ben=1, cleo=1), {"dev": 0.1})
    assert {name: len(part) for name, part in lists.items()} == {"train": 2, "dev": 1}


@pytest.mark.parametrize("seed", range(10))
def test_a_speaker_with_half_of_the_corpus_is_not_held_out_while_others_suffice(seed):
    utterances = corpus(anna=500, ben=490, **{f"s{number}": 1 + number % 5 for number in range(40)})
    assert len(hold_out(utterances, {"dev": 0.05}, seed)["dev"]) == pytest.approx(0.05 * len(utterances), abs=3)


def test_a_list_stays_small_where_a_further_speaker_would_be_too_many():
    utterances = corpus(anna=132, ben=128, **dict.fromkeys("cdefg", 1))
    assert len(hold_out(utterances, {"dev": 0.1})["dev"]) == 5


@pytest.mark.parametrize("utterances", [corpus(anna=50), corpus(unknown=50)], ids=["one speaker", "nobody known"])
def test_single_utterances_are_drawn_where_speakers_are_too_few(utterances):
    lists = hold_out(utterances, {"dev": 0.1, "test": 0.1})
    assert {name: len(part) for name, part in lists.items()} == {"train": 40, "dev": 5, "test": 5}


def test_unknown_speakers_are_not_shared():
    groups = {"a": corpus(anna=1, unknown=1, vctk_unknown=1), "b": corpus(anna=1, unknown=1, vctk_unknown=1)}
    assert shared_speakers(groups) == ["a and b have 1 speaker in common, anna"]


@pytest.mark.parametrize("order", [1, -1])
def test_which_of_two_duplicates_is_kept_does_not_depend_on_their_order(order):
    candidates = [Candidate(Path(name), "1", "anna", "train") for name in ("1.flac", "1.wav")]
    utterances, rejections = select(candidates[::order], [FINE, FINE], None)
    assert [utterance.path.name for utterance in utterances] == ["1.flac"]
    assert [(rejection.path.name, rejection.reason) for rejection in rejections] == [("1.wav", "duplicate")]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"num_samples": 11999}, "short"),
        ({"num_samples": 12000}, None),
        ({"num_samples": 960_001}, "long"),
        ({"silent_share": 0.91}, "silent"),
        ({"silent_share": 0.9}, None),
        ({"clipped_share": 0.011}, "clipped"),
        ({"peak": -1.0, "silent_share": -1.0, "clipped_share": -1.0}, None),
    ],
)
def test_filters_drop_what_is_beyond_their_limits(changes, reason):
    verdict = Filters().verdict(dataclasses.replace(FINE, **changes))
    assert (verdict and verdict[0]) == reason


def test_a_duration_that_is_hardly_too_long_is_told_so_that_it_differs_from_the_limit():
    verdict = Filters().verdict(dataclasses.replace(FINE, num_samples=960_480))
    assert verdict == ("long", "lasts 40.020 s, at most 40 s are wanted")


def test_the_share_that_is_clipped_is_told_with_the_limit():
    verdict = Filters(max_clipped=0.02).verdict(dataclasses.replace(FINE, clipped_share=0.0312))
    assert verdict == ("clipped", "3.12 % of its samples are at full scale, at most 2 % is wanted")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_seconds": -1.0}, "min_seconds must be at least 0"),
        ({"min_seconds": 5.0, "max_seconds": 5.0}, "below max_seconds, got 5 and 5"),
        ({"max_silent": 1.1}, "max_silent must be between 0 and 1, got 1.1"),
        ({"max_clipped": float("nan")}, "max_clipped must be between 0 and 1"),
        ({"max_silent": -1.0, "max_clipped": 7.0}, "max_silent must be .*, got -1; max_clipped must be .*, got 7"),
    ],
)
def test_impossible_filters_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Filters(**settings)


def test_an_impossible_number_of_processes_is_refused():
    with pytest.raises(ConfigError, match="jobs must be at least 0, got -1"):
        PreparationConfig(jobs=-1)
