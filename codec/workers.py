"""The same work for many items in several processes, where one that dies takes only its item with it."""

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from codec.errors import CodecError
from codec.processes import follow_parent

Task = TypeVar("Task")
Result = TypeVar("Result")


_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


class Died(Exception):
    """The process that worked on an item has ended without an answer: a crash in compiled code, or killed."""


def num_cores() -> int:
    """Cores that this process may use."""
    with contextlib.suppress(AttributeError):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def work(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    jobs: int,
    prepare: Callable[..., None] | None = None,
    arguments: tuple[Any, ...] = (),
) -> Iterator[tuple[int, Result | Died]]:
    """Results as they come, with the number of their task.

    Args:
        function: called with each task, of the module level or a `partial` of such; what it raises ends everything.
        tasks: each is sent to one process.
        jobs: number of processes, one thread each, of which no more start than there are tasks; 0 does the work in
            this process.
        prepare: called once in every process with `arguments`, if given; what it raises ends everything.
        arguments: see `prepare`.

    Raises:
        CodecError: processes end as soon as they begin.
    """
    if not tasks:
        return
    if jobs == 0:
        if prepare:
            prepare(*arguments)
        for number, task in enumerate(tasks):
            yield number, function(task)
        return
    waiting = list(range(len(tasks)))[::-1]
    suspects: list[int] = []
    while waiting or suspects:
        # After a crash those that were under way are tried alone, so that the one at fault is known.
        alone = bool(suspects)
        queue = suspects if alone else waiting
        with _Pool(1 if alone else min(jobs, len(queue)), prepare, arguments) as pool:
            running: dict[Future[Result], int] = {}
            _require_start(pool)
            try:
                while queue or running:
                    while queue and len(running) < (1 if alone else 2 * jobs):
                        number = queue[-1]
                        # Refused where a process has died meanwhile: then the task is still to be done.
                        running[pool.submit(_do, function, tasks[number])] = number
                        queue.pop()
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        result = future.result()
                        yield running.pop(future), result
            except BrokenProcessPool:
                lost = [number for future, number in running.items() if not _has_result(future)]
                finished = [(number, future) for future, number in running.items() if _has_result(future)]
                for number, future in finished:
                    yield number, future.result()
                if alone:
                    for number in lost:
                        yield number, Died("the process that worked on it has died")
                else:
                    suspects = lost[::-1]


def work_in_batches(
    function: Callable[[Sequence[Task]], Sequence[Result]],
    batches: Sequence[Sequence[Task]],
    jobs: int,
    prepare: Callable[..., None] | None = None,
    arguments: tuple[Any, ...] = (),
) -> Iterator[tuple[int, Sequence[Result | Died]]]:
    """The same for tasks that are done several at a time: a result of each, with the number of their batch.

    Those of a batch whose process has died are done one at a time, so that a crash costs only the one at fault.
    """
    for number, results in work(function, batches, jobs, prepare, arguments):
        if not isinstance(results, Died):
            yield number, results
        elif len(batches[number]) == 1:
            yield number, [results]
        else:
            singly = dict(work_in_batches(function, [[task] for task in batches[number]], jobs, prepare, arguments))
            yield number, [singly[place][0] for place in range(len(singly))]


def _require_start(pool: ProcessPoolExecutor) -> None:
    """Refuse what would fail with every item, and so is no fault of any."""
    try:
        pool.submit(os.getpid).result()
    except BrokenProcessPool as error:
        raise CodecError(
            "the processes that share the work end as soon as they begin: memory must suffice for each of them, and a "
            "script must start them below `if __name__ == '__main__':`; in Python, jobs=0 needs none"
        ) from error


def _has_result(future: "Future[Any]") -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


class _Pool:
    """Processes that start from scratch, because a copy of a process with threads can hang."""

    def __init__(self, jobs: int, prepare: Callable[..., None] | None, arguments: tuple[Any, ...]):
        # One thread each, of the libraries too; they read this when they are imported.
        self._environment = {name: os.environ.get(name) for name in _THREADS}
        os.environ.update(dict.fromkeys(_THREADS, "1"))
        self._pool = ProcessPoolExecutor(
            jobs,
            multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(prepare, arguments),
        )

    def __enter__(self) -> ProcessPoolExecutor:
        return self._pool

    def __exit__(self, *exception: object) -> None:
        if exception[0] is not None:  # nobody waits for what is under way, which may take hours
            for process in list(self._pool._processes.values()):  # `terminate_workers` from Python 3.14 on
                process.terminate()
        self._pool.shutdown(cancel_futures=True)
        for name, value in self._environment.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


_mistake: BaseException | None = None


def _begin(prepare: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    global _mistake
    follow_parent()
    try:
        if prepare:
            prepare(*arguments)
    except Exception as error:  # raised with the first task, because here it would look like a crash
        _mistake = error


def _do(function: Callable[[Task], Result], task: Task) -> Result:
    if _mistake is not None:
        raise _mistake
    return function(task)
