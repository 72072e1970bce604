"""Batches for the training loop, cut ahead of time and moved to the device.

Since a batch depends on its step alone, any step can be asked for at any time: a run that returns to an earlier step,
and a thread that failed, need nothing but the number.
"""

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext

import torch

from codec.errors import AudioError
from codec.processes import follow_parent, starting_processes
from codec.training.data import Batch, WindowSampler
from codec.training.distributed import Ranks

AHEAD = 4  # batches cut before they are asked for; with processes, at least two for each
ATTEMPTS = 3  # at a batch that cannot be read
PAUSE = 1.0  # seconds before the second attempt, with each further one more of them
NUM_THREADS = 2
# Processes hand batches over in shared memory, of which a container has 64 MiB unless it is given more.
NO_ROOM = "; start the container with more of it (docker run --shm-size 4g), or set data.workers=0"


class Loader:
    """This process's share of the batch of any step, on the device.

    Args:
        sampler: cuts the windows.
        ranks: the processes that share each batch.
        device: where batches go, without waiting for it.
        warn: told a sentence when a batch has to be cut again.
        num_workers: processes; 0: threads.
    """

    def __init__(
        self,
        sampler: WindowSampler,
        ranks: Ranks,
        device: torch.device,
        warn: Callable[[str], None],
        num_workers: int = 0,
    ):
        self.sampler, self.ranks, self.device, self.warn = sampler, ranks, device, warn
        self.num_workers = num_workers
        self._workers = self._start()
        self._num_ahead = max(AHEAD, 2 * num_workers)
        self._ahead: dict[int, Future[Batch]] = {}
        self._waited, self._since = 0.0, time.monotonic()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.shutdown(wait=False, cancel_futures=True)

    def batch(self, step: int) -> Batch:
        """The windows of a step, on the device.

        Raises:
            AudioError: they cannot be read, however often it is tried.
        """
        steps = range(step, step + self._num_ahead)
        self._ahead = {other: future for other, future in self._ahead.items() if other in steps}
        for other in steps:
            if other not in self._ahead:
                self._ahead[other] = self._submit(other)
        started = time.monotonic()
        batch = self._cut_of(step)
        self._waited += time.monotonic() - started
        return (batch.pin_memory() if self.device.type == "cuda" else batch).to(self.device)

    def restart(self) -> None:
        """Forget what was cut ahead, because the sampler has changed or a process has died."""
        self._ahead = {}
        if self.num_workers:  # they have a copy of the sampler
            self._workers.shutdown(wait=False, cancel_futures=True)
            self._workers = self._start()

    def waiting(self) -> float:
        """Share of the time since the last call that was spent waiting for batches, in [0, 1]."""
        now = time.monotonic()
        share = self._waited / max(now - self._since, 1e-9)
        self._waited, self._since = 0.0, now
        return min(share, 1.0)

    def _start(self) -> Executor:
        if not self.num_workers:
            return ThreadPoolExecutor(NUM_THREADS, "loader")
        # A forked process would share what the GPU's driver keeps.
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self.num_workers, context, _start_worker, (self.sampler,))

    def _submit(self, step: int) -> Future[Batch]:
        cut = _cut if self.num_workers else self.sampler.batch
        share = step, self.ranks.rank, self.ranks.size
        with starting_processes() if self.num_workers else nullcontext():
            try:
                return self._workers.submit(cut, *share)
            except BrokenProcessPool:
                self.warn("a process that cuts windows was killed; others take its place")
                self.restart()  # what was cut ahead fails too
                return self._workers.submit(cut, *share)

    def _cut_of(self, step: int) -> Batch:
        """What was cut for a step; if that failed, for example because a disk did not answer, it gets another try."""
        future = self._ahead.pop(step, None) or self._submit(step)
        attempt = 1
        while True:
            try:
                return future.result()
            except Exception as error:
                reason = f"{error}{NO_ROOM}" if "shared memory" in str(error) else str(error)
                if attempt == ATTEMPTS:
                    raise AudioError(f"the audio of step {step} cannot be read: {reason}") from error
                self.warn(f"the audio of step {step} could not be read, trying again: {reason}")
                time.sleep(attempt * PAUSE)
                future = self._submit(step)
                attempt += 1


_sampler: WindowSampler | None = None  # of a worker process


def _start_worker(sampler: WindowSampler) -> None:
    global _sampler
    _sampler = sampler
    follow_parent()
    torch.set_num_threads(1)


def _cut(step: int, rank: int, num_ranks: int) -> Batch:
    """A share of the batch of a step, cut in a worker process, which has the sampler already."""
    assert _sampler is not None
    return _sampler.batch(step, rank, num_ranks)
