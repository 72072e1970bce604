"""Steps of training recorded once on a GPU and replayed from then on.

A step is some thousand small operations, which a processor needs longer to ask for than a GPU to do. Recorded as a CUDA
graph, they are asked for as one. A recorded step can only work on the memory it was recorded with: so batches are
copied into tensors that stay, and whatever changes from step to step has to be a tensor, or be done beside it.
"""

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from codec.training.data import Batch

NUM_WARM_UPS = 3
"""Calls before one is recorded: in these, libraries choose their algorithms and optimizers make their states."""


class Recorded:
    """A function of a batch that is recorded for each kind of call: what it does, and where it leaves its results.

    All calls have to be made on the same stream, one that is not the default. Results are overwritten by the next call.

    Args:
        function: must wait for nothing that the device computes, and return tensors.
        highest: Hz, bandwidth of sound that fills the band.
    """

    def __init__(self, function: Callable[[Batch], dict[str, Tensor]], highest: float):
        self.function, self.highest = function, highest
        self.forget()

    def forget(self) -> None:
        """Record everything anew, because memory that was used has been replaced."""
        self._kept: tuple[Tensor, Tensor] | None = None
        self._num_calls: dict[Hashable, int] = {}
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, dict[str, Tensor]]] = {}

    def __call__(self, kind: Hashable, batch: Batch) -> dict[str, Tensor]:
        """Do what `function` does; calls that differ in more than their batch must be of different kinds."""
        batch = self._keep(batch)
        if kind not in self._graphs:
            self._num_calls[kind] = self._num_calls.get(kind, 0) + 1
            if self._num_calls[kind] <= NUM_WARM_UPS:
                return self.function(batch)
            graph = torch.cuda.CUDAGraph()
            # Threads that fetch the next batches may go on meanwhile.
            with torch.cuda.graph(graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
                results = self.function(batch)
            self._graphs[kind] = graph, results
        graph, results = self._graphs[kind]
        graph.replay()
        return results

    def _keep(self, batch: Batch) -> Batch:
        bandwidth = batch.bandwidth
        if bandwidth is None:
            bandwidth = torch.full((len(batch.wav),), self.highest, device=batch.wav.device)
        if self._kept is None:
            self._kept = batch.wav.clone(), bandwidth.clone()
        else:
            for kept, value in zip(self._kept, (batch.wav, bandwidth), strict=True):
                kept.copy_(value)
        return Batch(*self._kept)
