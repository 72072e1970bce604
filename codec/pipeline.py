"""Work in two stages, of which the second can use only one core: both at once, on items that follow each other."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Between = TypeVar("Between")
Result = TypeVar("Result")


def in_two_stages(
    items: Sequence[Item], first: Callable[[Item], Between], second: Callable[[Between], Result]
) -> list[Result]:
    """second(first(item)) of each item, either stage in the order of the items.

    One of torch's threads does the second stage while the others do the first for the items after it. Where torch has a
    single thread, or there is a single item, all is done here.
    """
    num_threads = torch.get_num_threads()
    if num_threads == 1 or len(items) < 2:
        return [second(first(item)) for item in items]
    with ThreadPoolExecutor(max_workers=1) as pool:
        pool.submit(_use_one_core).result()
        torch.set_num_threads(num_threads - 1)
        try:
            futures = [pool.submit(second, first(item)) for item in items]
        finally:
            torch.set_num_threads(num_threads)
        return [future.result() for future in futures]


def _use_one_core() -> None:
    """In the calling thread. torch keeps a number for each thread, which counts once torch was asked for it there."""
    torch.get_num_threads()
    torch.set_num_threads(1)
