"""Two stages at the same time: the results of one after the other, and torch's threads as they were."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from codec.pipeline import in_two_stages


@pytest.fixture(params=[1, 2, 3])
def num_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_both_stages_see_the_items_in_order(num_threads: int):
    seen: list[int] = []

    def second(item: int) -> int:
        seen.append(item)
        return 10 * item

    assert in_two_stages(range(6), lambda item: item + 1, second) == [10, 20, 30, 40, 50, 60]
    assert seen == [1, 2, 3, 4, 5, 6]
    assert in_two_stages([], lambda item: item, second) == []
    assert torch.get_num_threads() == num_threads


def test_the_second_stage_runs_beside_the_first():
    """Neither could end if it had to wait for the end of the other."""
    torch.set_num_threads(2)
    second_began, first_is_at_next = threading.Event(), threading.Event()

    def first(item: int) -> int:
        if item == 1:
            assert second_began.wait(60)
            first_is_at_next.set()
        return item

    def second(item: int) -> int:
        second_began.set()
        assert first_is_at_next.wait(60)
        assert torch.get_num_threads() == 1
        return item

    try:
        assert in_two_stages([0, 1], first, second) == [0, 1]
    finally:
        torch.set_num_threads(1)


def test_the_stages_share_torchs_threads_and_a_single_item_takes_all():
    def threads(*_: object) -> int:
        return torch.get_num_threads()

    torch.set_num_threads(3)
    try:
        assert in_two_stages([0, 1], threads, lambda of_first: (of_first, threads())) == [(2, 1), (2, 1)]
        assert in_two_stages([0], threads, lambda of_first: (of_first, threads())) == [(3, 3)]
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("stage", [0, 1], ids=["first", "second"])
def test_an_error_of_either_stage_arrives(num_threads: int, stage: int):
    def fail(item: int) -> int:
        if item == 2:
            raise ValueError("item 2")
        return item

    stages = [fail, int] if stage == 0 else [int, fail]
    with pytest.raises(ValueError, match="item 2"):
        in_two_stages([0, 1, 2, 3], *stages)
    assert torch.get_num_threads() == num_threads


def test_callers_at_the_same_time_leave_torch_its_threads():
    """Two, of which the second begins within the first and ends after it, as requests to a server do."""
    torch.set_num_threads(4)
    first_is_on, second_is_on, first_has_ended = threading.Event(), threading.Event(), threading.Event()

    def of_the_first(item: int) -> int:
        first_is_on.set()
        assert second_is_on.wait(60)
        return item

    def of_the_second(item: int) -> int:
        second_is_on.set()
        assert first_has_ended.wait(60)
        return item

    try:
        with ThreadPoolExecutor(2) as pool:
            early = pool.submit(in_two_stages, [0, 1], of_the_first, int)
            assert first_is_on.wait(60)
            late = pool.submit(lambda: (torch.get_num_threads(), in_two_stages([0, 1], of_the_second, int)))
            assert early.result(60) == [0, 1]
            first_has_ended.set()
            assert late.result(60) == (4, [0, 1])
            with ThreadPoolExecutor(1) as new:
                assert new.submit(torch.get_num_threads).result() == 4
    finally:
        torch.set_num_threads(1)
