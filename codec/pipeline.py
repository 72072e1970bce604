"""Work in two stages, of which the second can use only one core: both at once, on items that follow each other."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")
Between = TypeVar("Between")
Result = TypeVar("Result")


def in_two_stages(
    items: Sequence[Item], first: Callable[[Item], Between], second: Callable[[Between], Result]
) -> list[Result]:
    """second(first(item)) of each item, either stage in the order of the items.

    One of torch's threads does the second stage while the others do the first for the item after it. Where torch has a
    single thread, or there is a single item, all is done here. torch's number of threads is the process's, so while
    this runs, threads that begin elsewhere get fewer.
    """
    num_threads = torch.get_num_threads()
    if num_threads == 1 or len(items) < 2:
        return [second(first(item)) for item in items]
    with _num_threads(num_threads - 1), ThreadPoolExecutor(1, initializer=lambda: torch.set_num_threads(1)) as pool:
        return [future.result() for future in [pool.submit(second, first(item)) for item in items]]


@contextmanager
def _num_threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
