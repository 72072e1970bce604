"""Several processes that train one model: each takes its share of every batch, and gradients are averaged.

Started by `torchrun`. Equal to one process with the joint batch, because each step's loss is a mean over windows and
every process takes the same number of them. Nothing here can wait for a process that does not come: all make the same
calls at the same steps, whatever data they hold.
"""

import datetime
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from codec.errors import CodecError, ConfigError, first_line

PATIENCE = datetime.timedelta(hours=2)
"""How long a process waits for another, for example for the first one's validation or its cache of decoded audio."""


class Ranks:
    """The processes of a run; a single one where `torchrun` did not start several.

    Args:
        device: `training.device`, which they are to use.

    Raises:
        ConfigError: what `torchrun` tells in the environment is incomplete or makes no sense.
    """

    def __init__(self, device: str = "auto") -> None:
        try:
            self.size = int(os.environ.get("WORLD_SIZE", "1"))
            self.rank = int(os.environ.get("RANK", "0"))
            self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
            if self.size > 1 and not dist.is_initialized():
                has_gpu = device != "cpu" and torch.cuda.is_available()
                dist.init_process_group("nccl" if has_gpu else "gloo", timeout=PATIENCE)
        except ValueError as error:
            raise ConfigError(
                "WORLD_SIZE and the like in the environment, by which torchrun tells processes of each other, cannot "
                f"be used ({first_line(error)}); start several with torchrun, or unset them"
            ) from error

    @property
    def is_first(self) -> bool:
        """Whether this process writes logs and files."""
        return self.rank == 0

    def device(self, chosen: torch.device) -> torch.device:
        """This process's own GPU, where several share a machine's; else the device that was chosen."""
        if chosen.type == "cuda":
            torch.backends.cudnn.benchmark = True  # all batches have the same shape
            if self.size > 1:
                chosen = torch.device("cuda", self.local_rank)
                torch.cuda.set_device(chosen)
        return chosen

    @torch.no_grad()
    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace the gradients of all parameters by their mean over processes, in one message."""
        if self.size == 1:
            return
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        message = torch.cat([gradient.flatten() for gradient in gradients])
        with _together():
            dist.all_reduce(message)
        message /= self.size
        for gradient, mean in zip(gradients, message.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def gather(self, value: Tensor) -> Tensor:
        """The same tensor of every process, end to end along the first axis."""
        if self.size == 1:
            return value
        parts = [torch.empty_like(value) for _ in range(self.size)]
        with _together():
            dist.all_gather(parts, value.contiguous())
        return torch.cat(parts)

    def sum(self, value: Tensor) -> Tensor:
        """Sum over processes."""
        if self.size == 1:
            return value
        total = value.clone()
        with _together():
            dist.all_reduce(total)
        return total

    @torch.no_grad()
    def average(self, value: Tensor) -> Tensor:
        """Mean over processes, without gradient."""
        return self.sum(value) / self.size

    def mean(self, scalars: dict[str, Tensor]) -> dict[str, Tensor]:
        """Means over processes of named scalars, in one message."""
        if self.size == 1:
            return scalars
        values = self.average(torch.stack([value.float() for value in scalars.values()]))
        return dict(zip(scalars, values.unbind(), strict=True))

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set in any process."""
        return bool(self.sum(torch.tensor(float(flag), device=device)) > 0)

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Within this block the first process goes ahead of the others, for what is made once and then read by all."""
        if self.size > 1 and not self.is_first:
            with _together():
                dist.barrier()
        yield
        if self.size > 1 and self.is_first:
            with _together():
                dist.barrier()

    def leave(self) -> None:
        """End the common work."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def _together() -> Iterator[None]:
    """Around a message between all processes, which fails in each of them once one has died."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise CodecError(
            f"another process of this run has died ({first_line(error)}); the same command resumes"
        ) from error
