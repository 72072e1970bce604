"""Two stages at the same time: the results of one after the other, and torch's threads as they were."""

import threading
from collections.abc import Iterator

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
