"""Work in processes: every answer once, and a crash takes only its own item."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from codec.errors import CodecError, ModelError
from codec.workers import Died, work, work_in_batches


def adding(offset: int) -> Callable[[int], int]:
    return partial(add, offset)


def add(offset: int, task: int) -> int:
    if task == 3:
        os.kill(os.getpid(), signal.SIGSEGV)
    if task == 99:
        raise ValueError("a mistake of ours")
    return task + offset


def test_in_this_process():
    assert list(work(adding, (10,), [1, 2], 0)) == [(0, 11), (1, 12)]


def test_crash_takes_only_its_own_item():
    results = dict(work(adding, (10,), [0, 1, 2, 3, 4, 5, 6, 7], 2))
    assert isinstance(results.pop(3), Died)
    assert results == {number: number + 10 for number in (0, 1, 2, 4, 5, 6, 7)}


@pytest.mark.slow
def test_crashes_at_any_moment_are_survived():
    """Also while other processes are only starting, which is a matter of chance."""
    for _ in range(30):
        results = dict(work(adding, (10,), list(range(6)), 3))
        assert isinstance(results.pop(3), Died)
        assert results == {number: number + 10 for number in (0, 1, 2, 4, 5)}


def adding_all(offset: int) -> Callable[[list[int]], list[int]]:
    return lambda tasks: [add(offset, task) for task in tasks]


def test_crash_takes_only_its_own_item_of_a_batch():
    results = dict(work_in_batches(adding_all, (10,), [[0, 1], [2, 3, 4], [5]], 2))
    assert (results[0], results[2]) == ([10, 11], [15])
    first, crashed, last = results[1]
    assert (first, last) == (12, 14)
    assert isinstance(crashed, Died)


def end() -> None:
    os._exit(1)


@pytest.mark.parametrize("tasks", [[0], [0, 1]])
def test_processes_that_cannot_begin_are_no_fault_of_an_item(tasks: list[int]):
    with pytest.raises(CodecError, match="end as soon as they begin: memory must suffice"):
        list(work(end, (), tasks, 1))


def begin_three_times(starts: Path) -> Callable[[int], int]:
    with open(starts, "ab") as stream:
        stream.write(b".")
    if starts.stat().st_size > 3:
        os._exit(1)
    return adding(0)


def test_processes_that_cannot_begin_any_more_are_no_fault_of_an_item(tmp_path: Path):
    """Of four, as each of two crashes is tried again: the last one."""
    with pytest.raises(CodecError, match="end as soon as they begin: memory must suffice"):
        list(work(begin_three_times, (tmp_path / "starts",), [3, 3], 1))


def test_no_more_processes_start_than_there_are_tasks():
    for _ in work(adding, (10,), [0], 3):
        assert len(multiprocessing.active_children()) == 1


def telling_its_number() -> Callable[[int], int]:
    return lambda task: os.getpid()


def test_process_that_dies_while_nobody_waits_for_it_loses_no_task():
    done = []
    for number, process in work(telling_its_number, (), range(6), 1):
        if not done:
            os.kill(process, signal.SIGKILL)
            while is_there(process):
                time.sleep(0.01)
        done.append(number)
    assert sorted(done) == list(range(6))


def is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_exception_of_a_task_reaches_the_caller():
    with pytest.raises(ValueError, match="a mistake of ours"):
        list(work(adding, (0,), [99], 1))


def refuse(reason: str) -> None:
    raise ModelError(reason)


@pytest.mark.parametrize("jobs", [0, 1])
def test_exception_of_the_preparation_reaches_the_caller(jobs):
    with pytest.raises(ModelError, match="no weights"):
        list(work(refuse, ("no weights",), [1], jobs))


def test_the_environment_is_as_before(monkeypatch):
    """In which processes are told, when they start, to use one thread."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    before = dict(os.environ)
    for result in work(telling_threads_of_libraries, (), [0], 1):
        assert result == (0, ("1", "1"))
        assert dict(os.environ) == before


def telling_threads_of_libraries() -> Callable[[int], tuple[str | None, str | None]]:
    return lambda task: (os.environ.get("OMP_NUM_THREADS"), os.environ.get("MKL_NUM_THREADS"))


def test_a_process_that_may_not_start_others_is_told_that_it_can_do_the_work_itself():
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # of daemons, as the workers of a DataLoader are
        with pytest.raises(CodecError, match="may not start others, as it is a worker itself; jobs=0 needs none"):
            pool.apply(work_in_a_process)


def work_in_a_process() -> None:
    list(work(adding, (0,), [1], 1))


@pytest.mark.parametrize("jobs", [0, 2])
def test_without_tasks_nothing_is_prepared(jobs):
    assert list(work(refuse, ("no weights",), [], jobs)) == []


def test_processes_end_with_their_parent():
    """A killed parent cannot end them. They hold its standard output, so this waits until they are gone."""
    code = """
import operator, os, signal
from codec.workers import work
for _ in work(operator.itemgetter, (0,), ["task"], 1):
    print("working", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "working\n")


def test_what_is_under_way_ends_with_an_interruption(tmp_path):
    """However long it would take. The process that works holds the standard output, so this waits until it is gone."""
    script = tmp_path / "script.py"
    script.write_text("""
import signal
from codec.workers import work

def staying():
    return stay

def stay(task):
    print("working", flush=True)
    signal.pause()

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell ignores for what runs in the background
    try:
        list(work(staying, (), [0], 1))
    except KeyboardInterrupt:
        print("interrupted")
""")
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "working\n"
        process.send_signal(signal.SIGINT)
        try:
            assert process.communicate(timeout=60) == ("interrupted\n", None)
        finally:
            process.kill()


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="needs masks of signals")
def test_processes_hear_nothing_of_an_interruption_from_their_start_on(tmp_path):
    """Which a terminal sends to all of them. While they import what they need, it would end in a traceback."""
    script = tmp_path / "script.py"
    script.write_text("""
import signal
from codec.workers import work

def holds_interruptions(task):
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])

def prepare():
    return holds_interruptions

if __name__ == "__main__":
    (_, held), = work(prepare, (), [0], 1)
    print(held, holds_interruptions(0))
else:
    print(holds_interruptions(0), flush=True)
""")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.split(), done.stderr) == (["True", "False", "False"], "")
