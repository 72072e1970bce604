"""The same work for many items in several processes, where one that dies takes only its item with it."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, TypeVar

from codec.errors import CodecError
from codec.processes import follow_parent, starting_processes

Task = TypeVar("Task")
Result = TypeVar("Result")


_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_starting = threading.Lock()
"""Held while the environment tells processes that start to use one thread, as all threads share it."""


class Died(Exception):
    """The process that worked on an item has ended without an answer: a crash in compiled code, or killed."""


def work(
    prepare: Callable[..., Callable[[Task], Result]], arguments: tuple[Any, ...], tasks: Sequence[Task], jobs: int
) -> Iterator[tuple[int, Result | Died]]:
    """Results as they come, with the number of their task.

    Args:
        prepare: of the module level, called once in every process with `arguments`; gives the function that does a
            task there. What either raises ends everything.
        arguments: see `prepare`.
        tasks: each is sent to one process.
        jobs: number of processes, one thread each, of which no more start than there are tasks; 0 does the work in
            this process.

    Raises:
        CodecError: processes end as soon as they begin, or may not be started here.
    """
    if not tasks:
        return
    if jobs == 0:
        function = prepare(*arguments)
        for number, task in enumerate(tasks):
            yield number, function(task)
        return
    suspects = []
    with _Processes(min(jobs, len(tasks)), prepare, arguments) as processes:
        for number, result in processes.share(tasks, range(len(tasks))):
            if isinstance(result, Died):
                suspects.append(number)
            else:
                yield number, result
    if suspects:  # tried again alone, as all together may have taken too much memory
        with _Processes(1, prepare, arguments) as processes:
            yield from processes.share(tasks, suspects)


def work_in_batches(
    prepare: Callable[..., Callable[[Sequence[Task]], Sequence[Result]]],
    arguments: tuple[Any, ...],
    batches: Sequence[Sequence[Task]],
    jobs: int,
) -> Iterator[tuple[int, Sequence[Result | Died]]]:
    """The same for tasks that are done several at a time: a result of each, with the number of their batch.

    Those of a batch whose process has died are done one at a time, so that a crash costs only the one at fault.
    """
    for number, results in work(prepare, arguments, batches, jobs):
        if not isinstance(results, Died):
            yield number, results
        elif len(batches[number]) == 1:
            yield number, [results]
        else:
            singly = dict(work_in_batches(prepare, arguments, [[task] for task in batches[number]], jobs))
            yield number, [singly[place][0] for place in range(len(singly))]


class _Processes:
    """Processes that do one task at a time, each in a pool of its own, so that one that dies harms no other.

    They start from scratch, because a copy of a process with threads can hang.
    """

    def __init__(self, jobs: int, prepare: Callable[..., Any], arguments: tuple[Any, ...]):
        if multiprocessing.current_process().daemon:
            raise CodecError("this process may not start others, as it is a worker itself; jobs=0 needs none")
        self._prepare, self._arguments = prepare, arguments
        self._pools = [self._new_pool() for _ in range(jobs)]

    def __enter__(self) -> "_Processes":
        return self

    def __exit__(self, *exception: object) -> None:
        for pool in self._pools:
            if exception[0] is not None:  # nobody waits for what is under way, which may take hours
                for process in list(pool._processes.values()):  # `terminate_workers` from Python 3.14 on
                    process.terminate()
            pool.shutdown(cancel_futures=True)

    def share(self, tasks: Sequence[Any], numbers: Sequence[int]) -> Iterator[tuple[int, Any]]:
        """The results of the tasks of these numbers, as they come."""
        _require_start(self._pools)
        waiting, idle = list(numbers)[::-1], list(range(len(self._pools)))
        running: dict[Future[Any], tuple[int, int]] = {}
        while waiting or running:
            while waiting and idle:
                place, number = idle.pop(), waiting.pop()
                try:
                    future = self._pools[place].submit(_do, tasks[number])
                except BrokenProcessPool:  # it has died, of its last task or without one
                    self._renew(place)
                    future = self._pools[place].submit(_do, tasks[number])
                running[future] = place, number
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                place, number = running.pop(future)
                try:
                    result = future.result()
                except BrokenProcessPool:
                    result = Died("the process that worked on it has died")
                idle.append(place)
                yield number, result

    def _new_pool(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(1, context, initializer=_begin, initargs=(self._prepare, self._arguments))

    def _renew(self, place: int) -> None:
        self._pools[place].shutdown()
        self._pools[place] = self._new_pool()
        _require_start([self._pools[place]])


def _require_start(pools: Sequence[ProcessPoolExecutor]) -> None:
    """Start all processes, and refuse what would fail with every item, and so is no fault of any."""
    with _starting:
        # One thread each, of the libraries too; they read this when they are imported.
        before = {name: os.environ.get(name) for name in _THREADS}
        os.environ.update(dict.fromkeys(_THREADS, "1"))
        try:
            with starting_processes():
                starting = [pool.submit(os.getpid) for pool in pools]
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
    try:
        starting[0].result()
    except BrokenProcessPool as error:
        raise CodecError(
            "the processes that share the work end as soon as they begin: memory must suffice for each of them, and a "
            "script must start them below `if __name__ == '__main__':`; in Python, jobs=0 needs none"
        ) from error


_function: Callable[[Any], Any]  # of a process that `_Processes` has started


def _begin(prepare: Callable[..., Callable[[Any], Any]], arguments: tuple[Any, ...]) -> None:
    global _function
    follow_parent()
    try:
        _function = prepare(*arguments)
    except Exception as error:  # raised with the first task, because here it would look like a crash
        _function = partial(_fail, error)


def _fail(error: Exception, _: object) -> None:
    raise error


def _do(task: Any) -> Any:
    return _function(task)
