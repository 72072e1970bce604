"""Any step's batch can be had at any time, and a failing read is tried again."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from codec.errors import AudioError
from codec.training.cache import open_cache
from codec.training.data import Batch, DataConfig, WindowSampler
from codec.training.distributed import Ranks
from codec.training.loader import ATTEMPTS, Loader


class Steps:
    """In place of a sampler: a batch is its step's and process's numbers; reading fails as often as is asked for."""

    def __init__(self, failures: int = 0):
        self.failures = failures

    def batch(self, step: int, rank: int, num_ranks: int) -> Batch:
        if self.failures and step == 2:
            self.failures -= 1
            raise OSError("the disk does not answer")
        return Batch(torch.full((2, 1, 3), float(step)), torch.tensor([float(rank), float(num_ranks)]))


@pytest.fixture(autouse=True)
def _no_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codec.training.loader.PAUSE", 0.01)


def loader(sampler: Steps, warnings: list[str]) -> Loader:
    return Loader(sampler, Ranks(), torch.device("cpu"), warnings.append)  # type: ignore[arg-type]


def test_batches_are_those_of_their_steps_in_any_order():
    with loader(Steps(), []) as batches:
        for step in (0, 1, 2, 7, 3, 4):
            assert batches.batch(step).wav.unique().item() == step


def test_a_process_gets_its_own_share_whole():
    ranks = Ranks()
    ranks.rank, ranks.size = 1, 3
    with Loader(Steps(), ranks, torch.device("cpu"), print) as batches:  # type: ignore[arg-type]
        bandwidth = batches.batch(0).bandwidth
    assert bandwidth is not None
    assert bandwidth.tolist() == [1, 3]


def test_batches_are_cut_before_they_are_asked_for():
    class Watched(Steps):
        has_cut_step_2 = threading.Event()

        def batch(self, step: int, rank: int, num_ranks: int) -> Batch:
            if step == 2:
                self.has_cut_step_2.set()
            return super().batch(step, rank, num_ranks)

    with loader(Watched(), []) as batches:
        batches.batch(0)
        assert Watched.has_cut_step_2.wait(timeout=20)


def test_a_changed_sampler_is_asked_anew():
    sampler = Steps()
    with loader(sampler, []) as batches:
        batches.batch(0)
        sampler.batch = lambda *_: Batch(torch.full((2, 1, 3), -1.0), None)  # type: ignore[method-assign]
        batches.restart()
        assert batches.batch(1).wav.unique().item() == -1


def test_a_failed_read_is_repeated_and_reported():
    warnings: list[str] = []
    with loader(Steps(failures=ATTEMPTS - 1), warnings) as batches:
        assert [batches.batch(step).wav[0, 0, 0].item() for step in range(4)] == [0, 1, 2, 3]
    assert warnings == ["the audio of step 2 could not be read, trying again: the disk does not answer"] * 2


def test_a_lasting_failure_is_one_sentence():
    with loader(Steps(failures=100), []) as batches, pytest.raises(AudioError, match="step 2 cannot be read: the disk"):
        for step in range(4):
            batches.batch(step)


def test_waiting_is_a_share_of_the_time(monkeypatch: pytest.MonkeyPatch):
    # Of the loader, which is made, asks for a batch, has it, and is asked for the share: then, and once more.
    clock = SimpleNamespace(monotonic=iter([100.0, 101.0, 102.0, 104.0, 105.0]).__next__)
    monkeypatch.setattr("codec.training.loader.time", clock)
    with loader(Steps(), []) as batches:
        batches.batch(0)
        assert batches.waiting() == 1 / 4
        assert batches.waiting() == 0  # nothing was asked for since


def cut_by_processes(sampler: Steps | WindowSampler, warnings: list[str]) -> Loader:
    return Loader(sampler, Ranks(), torch.device("cpu"), warnings.append, num_workers=1)  # type: ignore[arg-type]


def test_processes_cut_the_windows_that_threads_cut(speech: Path, tmp_path: Path):
    config = DataConfig(batch_size=2, window_seconds=0.5, speed=0.1, degraded=0.5)
    sampler = WindowSampler(open_cache([speech.parent], tmp_path / "cache", 24000), config, seed=3)
    with cut_by_processes(sampler, []) as batches:
        for step in (0, 1, 5):
            assert torch.equal(batches.batch(step).wav, sampler.batch(step).wav)
        sampler.seed = 4  # as a run does that returns to an earlier state
        batches.restart()
        assert torch.equal(batches.batch(6).wav, sampler.batch(6).wav)


def test_a_killed_process_is_replaced():
    warnings: list[str] = []
    with cut_by_processes(Steps(), warnings) as batches:
        assert batches.batch(0).wav[0, 0, 0].item() == 0
        for process in multiprocessing.active_children():
            process.kill()
            process.join()
        assert [batches.batch(step).wav[0, 0, 0].item() for step in range(1, 9)] == list(range(1, 9))


class Dying(Steps):
    """Its process is killed at step 1, unless one was already."""

    def __init__(self, grave: Path):
        super().__init__()
        self.grave = grave

    def batch(self, step: int, rank: int, num_ranks: int) -> Batch:
        if step == 1 and not self.grave.exists():
            self.grave.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().batch(step, rank, num_ranks)


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_what_a_killed_process_was_to_cut_is_not_told_batch_by_batch(tmp_path: Path):
    warnings: list[str] = []
    with cut_by_processes(Dying(tmp_path / "grave"), warnings) as batches:
        assert [batches.batch(step).wav[0, 0, 0].item() for step in range(9)] == list(range(9))
    assert warnings[-1] == "a process that cuts windows was killed; others take its place"
    assert len(warnings) <= 2  # another of the batch that was waited for, if that was noticed first


def test_a_container_without_shared_memory_is_told_what_to_do(speech: Path, tmp_path: Path):
    enter = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=64k none /dev/shm && exec "$@"', "sh")
    try:
        subprocess.run([*enter, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no small /dev/shm can be mounted here: {error}")
    code = f"""
import torch
from pathlib import Path
from codec.training import loader
from codec.training.cache import open_cache
from codec.training.data import DataConfig, WindowSampler
from codec.training.distributed import Ranks

loader.PAUSE = 0.01
cache = open_cache([Path({str(speech.parent)!r})], Path({str(tmp_path)!r}), 24000)
sampler = WindowSampler(cache, DataConfig(batch_size=16, window_seconds=1.0), seed=0)
with loader.Loader(sampler, Ranks(), torch.device("cpu"), print, num_workers=1) as batches:
    batches.batch(0)
"""
    done = subprocess.run([*enter, sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("(docker run --shm-size 4g), or set data.workers=0")


class TellingItsMask(Steps):
    """Tells whether its process has held Ctrl-C while it started, which is when it was unpickled there."""

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self.held = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])

    def batch(self, step: int, rank: int, num_ranks: int) -> Batch:
        return super().batch(int(self.held), rank, num_ranks)


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="needs masks of signals")
def test_processes_hear_nothing_of_an_interruption_from_their_start_on_also_those_that_replace_others():
    with cut_by_processes(TellingItsMask(), []) as batches:
        assert batches.batch(0).wav[0, 0, 0].item() == 1
        for process in multiprocessing.active_children():
            process.kill()
            process.join()
        assert batches.batch(100).wav[0, 0, 0].item() == 1
