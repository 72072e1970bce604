"""Work in two stages, of which the second can use only one core: both at once, on items that follow each other."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Between = TypeVar("Between")
Result = TypeVar("Result")

_in_stages = threading.Lock()
"""torch has one number of threads for all threads to come: two callers that lower it would each restore the other's."""


def in_two_stages(
    items: Sequence[Item], first: Callable[[Item], Between], second: Callable[[Between], Result]
) -> list[Result]:
    """second(first(item)) of each item, either stage in the order of the items.

    One of torch's threads does the second stage while the others do the first for the items after it. Where torch has a
    single thread, there is a single item, or another caller is at it, all is done here.
    """
    num_threads = torch.get_num_threads()
    if num_threads == 1 or len(items) < 2 or not _in_stages.acquire(blocking=False):
        return [second(first(item)) for item in items]
    with ThreadPoolExecutor(max_workers=1) as pool:
        try:
            pool.submit(_use_one_core).result()
            torch.set_num_threads(num_threads - 1)
            _promise_to_threads_to_come(num_threads)
            futures = [pool.submit(second, first(item)) for item in items]
        finally:
            torch.set_num_threads(num_threads)
            _in_stages.release()
        return [future.result() for future in futures]


def _use_one_core() -> None:
    """In the calling thread. torch keeps a number for each thread, which counts once torch was asked for it there."""
    torch.get_num_threads()
    torch.set_num_threads(1)


def _promise_to_threads_to_come(num_threads: int) -> None:
    """Those that begin while the stages run shall find as many of torch's threads as if none did."""
    another = threading.Thread(target=torch.set_num_threads, args=(num_threads,))
    another.start()
    another.join()
