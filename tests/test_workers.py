"""Work in processes: every answer once, and a crash takes only its own item."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from codec.errors import CodecError, ModelError
from codec.workers import Died, work, work_in_batches

_offset = 0


def prepare(offset: int) -> None:
    global _offset
    _offset = offset


def add(task: int) -> int:
    if task == 3:
        os.kill(os.getpid(), signal.SIGSEGV)
    if task == 99:
        raise ValueError("a mistake of ours")
    return task + _offset


def test_in_this_process():
    assert list(work(add, [1, 2], 0, prepare, (10,))) == [(0, 11), (1, 12)]


def test_crash_takes_only_its_own_item():
    results = dict(work(add, [0, 1, 2, 3, 4, 5, 6, 7], 2, prepare, (10,)))
    assert isinstance(results.pop(3), Died)
    assert results == {number: number + 10 for number in (0, 1, 2, 4, 5, 6, 7)}


@pytest.mark.slow
def test_crashes_at_any_moment_are_survived():
    """Also while other processes are only starting, which is a matter of chance."""
    for _ in range(30):
        results = dict(work(add, list(range(6)), 3, prepare, (10,)))
        assert isinstance(results.pop(3), Died)
        assert results == {number: number + 10 for number in (0, 1, 2, 4, 5)}


def add_all(tasks: list[int]) -> list[int]:
    return [add(task) for task in tasks]


def test_crash_takes_only_its_own_item_of_a_batch():
    results = dict(work_in_batches(add_all, [[0, 1], [2, 3, 4], [5]], 2, prepare, (10,)))
    assert (results[0], results[2]) == ([10, 11], [15])
    first, crashed, last = results[1]
    assert (first, last) == (12, 14)
    assert isinstance(crashed, Died)


def end(offset: int) -> None:
    os._exit(1)


@pytest.mark.parametrize("tasks", [[0], [0, 1]])
def test_processes_that_cannot_begin_are_no_fault_of_an_item(tasks: list[int]):
    with pytest.raises(CodecError, match="end as soon as they begin: memory must suffice"):
        list(work(add, tasks, 1, end, (0,)))


def begin_three_times(starts: Path) -> None:
    with open(starts, "ab") as stream:
        stream.write(b".")
    if starts.stat().st_size > 3:
        os._exit(1)


def test_processes_that_cannot_begin_any_more_are_no_fault_of_an_item(tmp_path: Path):
    """Of four, as each of two crashes is tried again: the last one."""
    with pytest.raises(CodecError, match="end as soon as they begin: memory must suffice"):
        list(work(add, [3, 3], 1, begin_three_times, (tmp_path / "starts",)))


def test_no_more_processes_start_than_there_are_tasks():
    for _ in work(add, [0], 3, prepare, (10,)):
        assert len(multiprocessing.active_children()) == 1


def own_number(task: int) -> int:
    return os.getpid()


def test_process_that_dies_while_nobody_waits_for_it_loses_no_task():
    done = []
    for number, process in work(own_number, range(6), 1, prepare, (0,)):
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
        list(work(add, [99], 1, prepare, (0,)))


def refuse(reason: str) -> None:
    raise ModelError(reason)


@pytest.mark.parametrize("jobs", [0, 1])
def test_exception_of_the_preparation_reaches_the_caller(jobs):
    with pytest.raises(ModelError, match="no weights"):
        list(work(add, [1], jobs, refuse, ("no weights",)))


def test_the_environment_is_as_before(monkeypatch):
    """In which the processes are told to use one thread."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    before = dict(os.environ)
    assert list(work(threads_of_libraries, [0], 1)) == [(0, ("1", "1"))]
    assert dict(os.environ) == before


def threads_of_libraries(task: int) -> tuple[str | None, str | None]:
    return os.environ.get("OMP_NUM_THREADS"), os.environ.get("MKL_NUM_THREADS")


@pytest.mark.parametrize("jobs", [0, 2])
def test_without_tasks_nothing_is_prepared(jobs):
    assert list(work(add, [], jobs, refuse, ("no weights",))) == []


def test_processes_end_with_their_parent():
    """A killed parent cannot end them. They hold its standard output, so this waits until they are gone."""
    code = """
import os, signal
from codec.workers import work
for _ in work(len, [""], 1, len, ("",)):
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

def stay(task):
    print("working", flush=True)
    signal.pause()

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell ignores for what runs in the background
    try:
        list(work(stay, [0], 1, len, ("",)))
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
