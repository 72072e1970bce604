"""What is counted during steps, on the device and without waiting for it; read when it is logged."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from codec.training.alarms import MEMORY


def perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy of counts, or other weights, as shares of their sum: (K,) -> scalar; 1 if all are 0."""
    shares = counts / counts.sum().clamp(min=torch.finfo(torch.float32).tiny)
    return torch.special.entr(shares).sum().exp()


class CodeUsage:
    """Utilisation and perplexity of the codes of recent batches."""

    def __init__(self, codebook_size: int, device: torch.device):
        self.counts = torch.zeros(codebook_size, device=device)

    def add(self, codes: Tensor, is_valid: Tensor) -> None:
        """Count the codes of a batch, if they are valid (scalar, bool); older batches fade by `MEMORY` each time."""
        codes = codes.flatten()
        # Not bincount, which reads the largest code back from a GPU to size its result.
        fresh = torch.zeros_like(self.counts).index_add_(0, codes, is_valid.to(self.counts).expand(len(codes)))
        self.counts.mul_(MEMORY).add_(fresh)

    @staticmethod
    def summarise(counts: Tensor) -> dict[str, Tensor]:
        """Share of the codebook in use, and the perplexity of its use, from counts (K,)."""
        return {"codes/utilisation": (counts > 1e-3).float().mean(), "codes/perplexity": perplexity(counts)}


class Means:
    """Means of named scalars over the steps since the last look."""

    def __init__(self) -> None:
        self._totals: dict[str, Tensor] = {}  # sum and number of the finite values

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Count the scalars of a step; those that are not finite are left out."""
        present = torch.stack([value.float() for value in values.values()])
        is_finite = present.isfinite()
        totals = torch.stack([present.where(is_finite, 0), is_finite.float()], dim=1)
        for name, total in zip(values, totals, strict=True):
            self._totals[name] = self._totals.get(name, 0) + total

    def take(self) -> dict[str, Tensor]:
        """The means, NaN where no value was finite. Counting begins anew."""
        means = {name: total[0] / total[1] for name, total in self._totals.items()}
        self._totals = {}
        return means


class BrokenSteps:
    """Steps with a value that is not finite."""

    def __init__(self, device: torch.device):
        self.skipped = torch.zeros((), device=device)  # steps that left the codec as it was, since the run began
        self.skipped_in_a_row = torch.zeros((), device=device)
        self.names: list[str] = []  # of the values that were seen, in the order of their computation
        self.counts = torch.zeros(0, device=device)  # how often each was not finite since the last explanation

    def add(self, is_skipped: Tensor, values: Mapping[str, Tensor]) -> None:
        """Count one step: whether it was skipped (scalar, 0 or 1), and its values in the order of their computation."""
        self.skipped += is_skipped
        self.skipped_in_a_row.add_(is_skipped).mul_(is_skipped)
        self.names += [name for name in values if name not in self.names]
        self.counts = F.pad(self.counts, (0, len(self.names) - len(self.counts)))
        present = torch.stack([values.get(name, is_skipped).float() for name in self.names])
        self.counts += (~present.isfinite()).float()

    def explain(self, counts: Tensor) -> str:
        """In a sentence what was not finite, the cause first; empty if all was finite. Counting begins anew."""
        broken = [(name, int(count)) for name, count in zip(self.names, counts.tolist(), strict=True) if count]
        self.counts.zero_()
        if not broken:
            return ""
        (first, count), *others = broken
        then = "; then " + ", ".join(f"{name} in {number}" for name, number in others) if others else ""
        return f"{first} was not finite in {count} step{'s' if count > 1 else ''}{then}"
