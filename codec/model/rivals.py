"""The quantizers SimVQ is compared with, behind its interface: any of them can take its place in a codec.

Vanilla VQ, the plainest one, is in `quantizer.py`. FSQ and LFQ are those of the package vector-quantize-pytorch, which
only they need: `pip install 'codec[rivals]'`. B batch, N vectors, D their width, K codes, M the width codes are sought
in.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from codec.errors import ConfigError
from codec.limits import refuse, too_small
from codec.model.quantizer import LEAST_SIZES, VQ, Quantizer, SimVQ, are_usable, principal_axes
from codec.model.search import linear, nearest_code

LFQ_ENTROPY_TILE = 1 << 25
"""Probabilities held at once by LFQ's entropy loss; the vectors it is computed from are as many as that allows."""


@dataclass
class EMAVQConfig:
    """Settings of `EMAVQ`."""

    kind: str = "ema"
    codebook_size: int = 4096
    codebook_dim: int = 16
    beta: float = 1.0  # weight of the commitment loss
    relative_loss: bool = True  # divide the loss by the variance of the codebook
    decay: float = 0.99  # of the running averages, per step
    kmeans_iterations: int = 20
    dead_share: float = 0.1  # a code chosen less often than this share of an equal share is replaced

    def __post_init__(self) -> None:
        mistakes = too_small(self, "quantizer", LEAST_SIZES | {0: ("beta", "kmeans_iterations", "dead_share")})
        if not 0 <= self.decay < 1:
            mistakes.append(f"quantizer.decay must lie in [0, 1), got {self.decay}")
        refuse(mistakes)


@dataclass
class FactorisedVQConfig:
    """Settings of `FactorisedVQ`."""

    kind: str = "fc"
    codebook_size: int = 4096
    codebook_dim: int = 16
    factor_dim: int = 8  # M
    beta: float = 0.25  # weight of the commitment loss beside the codebook loss

    def __post_init__(self) -> None:
        least = {0: ("beta",), 1: ("codebook_dim", "factor_dim"), 2: ("codebook_size",)}
        refuse(too_small(self, "quantizer", least))


@dataclass
class FSQConfig:
    """Settings of `FSQ`."""

    kind: str = "fsq"
    codebook_size: int = 4096
    codebook_dim: int = 16
    levels: list[int] = field(default_factory=list)  # of each dimension; empty: 8 each, and 4 where 8 does not fit

    def __post_init__(self) -> None:
        refuse(too_small(self, "quantizer", LEAST_SIZES))
        levels = self.levels or fsq_levels(self.codebook_size)
        are_whole = all(type(level) is int for level in levels)
        if not are_whole or min(levels) < 3 or math.prod(levels) != self.codebook_size:
            raise ConfigError(
                f"quantizer.levels must be integers of at least 3 and multiply to codebook_size {self.codebook_size}, "
                f"got {levels}"
            )


@dataclass
class LFQConfig:
    """Settings of `LFQ`."""

    kind: str = "lfq"
    codebook_size: int = 4096
    codebook_dim: int = 16
    beta: float = 0.25  # weight of the commitment loss
    entropy_weight: float = 0.1  # of the entropy loss: certain about each vector, even over all
    diversity: float = 1.0  # weight of the second part beside the first

    def __post_init__(self) -> None:
        mistakes = too_small(self, "quantizer", LEAST_SIZES | {0: ("beta", "entropy_weight", "diversity")})
        if self.codebook_size & (self.codebook_size - 1):
            mistakes.append(f"quantizer.codebook_size of lfq must be a power of two, got {self.codebook_size}")
        refuse(mistakes)


@dataclass
class FeatureVQConfig:
    """Settings of `FeatureVQ`."""

    kind: str = "lc"
    codebook_size: int = 4096
    codebook_dim: int = 16
    beta: float = 0.25  # weight of the commitment loss beside the codebook loss
    relative_loss: bool = True  # divide the loss by the variance of the effective codebook

    def __post_init__(self) -> None:
        refuse(too_small(self, "quantizer", LEAST_SIZES | {0: ("beta",)}))


class EMAVQ(VQ):
    """A codebook of running means: every code moves towards the mean of the latents that chose it.

    It starts with k-means on the latents given to `match`, or else on the first batch in training that has two of them.
    Codes that are hardly ever chosen are replaced by latents of the batch. With several processes, statistics are of
    all of them, and a start on a batch is the first one's. Latents with NaN, or too large to be squared, take no part.

    The running averages are of shares of a batch, not of counts, so they do not depend on its size.

    Source: VQ-VAE (arXiv:1711.00937, appendix A.1) with the additions of Jukebox (arXiv:2005.00341) that EnCodec and
    WavTokenizer (arXiv:2408.16532) use. There a code is dead below 2 vectors per batch; a share means the same for
    every batch size and K.
    """

    usage: Tensor  # (K,) running share of the vectors that chose each code
    sums: Tensor  # (K, D) running sum of those vectors / number of vectors
    num_updates: Tensor  # scalar int64; 0: not started

    def __init__(
        self,
        codebook_size: int,
        codebook_dim: int,
        *,
        beta: float = 1.0,
        relative_loss: bool = False,
        decay: float = 0.99,
        kmeans_iterations: int = 20,
        dead_share: float = 0.1,
    ):
        super().__init__(
            codebook_size,
            codebook_dim,
            is_codebook_trained=False,
            beta=beta,
            codebook_weight=0.0,
            relative_loss=relative_loss,
        )
        self.decay = decay
        self.kmeans_iterations = kmeans_iterations
        self.dead_share = dead_share
        self._is_started = False
        self.register_buffer("usage", torch.full((codebook_size,), 1 / codebook_size))
        self.register_buffer("sums", self.codebook / codebook_size)
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))
        self.register_load_state_dict_post_hook(_look_again)

    def learn(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if not self._is_started:
            if not self.num_updates:
                self.match(vectors.detach())
                if _is_shared():
                    for buffer in (self.codebook, self.usage, self.sums, self.num_updates):
                        dist.broadcast(buffer, 0)
            self._is_started = bool(self.num_updates)  # from then on without asking the device
        codes, quantized, loss = super().learn(vectors)
        if self._is_started:
            self._update(vectors.detach(), codes)
        return codes, quantized, loss

    @torch.no_grad()
    def _update(self, vectors: Tensor, codes: Tensor) -> None:
        is_good = are_usable(vectors).all(dim=1)
        vectors = torch.where(is_good[:, None], vectors, 0)
        statistics = torch.zeros(self.codebook_size + 1, self.codebook_dim + 1, device=vectors.device)
        statistics[:-1].index_add_(0, codes, torch.cat([vectors, is_good[:, None].to(vectors.dtype)], 1))
        statistics[-1, 0] = is_good.sum()
        # Where dead codes go: vectors spread over the batch, others at every step.
        places = torch.arange(self.codebook_size, device=vectors.device) * 7919 + self.num_updates * 104729
        fresh, is_fresh = vectors[places % len(vectors)], is_good[places % len(vectors)]
        if _is_shared():
            dist.all_reduce(statistics)
            fresh = torch.where(is_fresh[:, None], fresh, torch.nan)
            dist.broadcast(fresh, 0)
            is_fresh = fresh.isfinite().all(dim=1)
        total = statistics[-1, 0].clamp(min=1)
        self.usage.lerp_(statistics[:-1, -1] / total, 1 - self.decay)
        self.sums.lerp_(statistics[:-1, :-1] / total, 1 - self.decay)
        is_dead = (self.usage < self.dead_share / self.codebook_size) & is_fresh
        self.usage.copy_(torch.where(is_dead, 1 / self.codebook_size, self.usage))
        self.sums.copy_(torch.where(is_dead[:, None], fresh / self.codebook_size, self.sums))
        is_used = (self.usage > 1e-6 / self.codebook_size)[:, None]
        means = self.sums / self.usage.clamp(min=1e-12)[:, None]
        self.codebook.copy_(torch.where(is_used, means, self.codebook))
        self.num_updates += 1

    def match_vectors(self, vectors: Tensor) -> None:
        """k-means from random vectors; codes without vectors stay where they are."""
        self.codebook.copy_(_sample(vectors, self.codebook_size))
        rows = torch.cat([vectors, torch.ones_like(vectors[:, :1])], 1)
        for _ in range(self.kmeans_iterations):
            totals = vectors.new_zeros(self.codebook_size, self.codebook_dim + 1)
            totals.index_add_(0, nearest_code(vectors, self.codebook), rows)
            counts = totals[:, -1:]
            self.codebook.copy_(torch.where(counts > 0, totals[:, :-1] / counts.clamp(min=1), self.codebook))
        self.usage.fill_(1 / self.codebook_size)
        self.sums.copy_(self.codebook / self.codebook_size)
        self.num_updates.fill_(1)


def _is_shared() -> bool:
    return dist.is_available() and dist.is_initialized()


def _look_again(quantizer: nn.Module, keys: Any) -> None:
    """A state that was loaded may be from before the start."""
    quantizer._is_started = False  # type: ignore[assignment]


class FeatureVQ(SimVQ):
    """A codebook of frozen features of real data, moved as a whole by a learned linear projector.

    The features are latents given to `match`, as they are at that moment; before, they are random as in SimVQ. Where
    VQGAN-LC takes them from a network trained on other tasks (CLIP), they come from the codec's own encoder here.

    Source: VQGAN-LC, arXiv:2406.11837.
    """

    def match_vectors(self, vectors: Tensor) -> None:
        self.codebook.copy_(_sample(vectors, self.codebook_size))
        self._transform(torch.eye(self.codebook_dim), torch.zeros(self.codebook_dim))

    def _variance(self) -> Tensor:
        return self._project(self.codebook[:1024]).detach().var(dim=0).mean()


class ProjectedQuantizer(Quantizer):
    """Codes sought in a space of M dimensions, between two learned projections.

    A kind says which low code vectors there are (`_low_codebook`), which of them a low vector gets (`_search_low`), and
    what happens to it in training (`_train_low`).
    """

    def __init__(self, codebook_size: int, codebook_dim: int, low_dim: int):
        super().__init__(codebook_size, codebook_dim)
        self.project_in = nn.Linear(codebook_dim, low_dim)
        self.project_out = nn.Linear(low_dim, codebook_dim)

    def make_effective_codebook(self) -> Tensor:
        return linear(self._low_codebook(), self.project_out.weight.float(), self.project_out.bias.float())

    def search(self, vectors: Tensor) -> Tensor:
        return self._search_low(self._descend(vectors))

    def learn(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        codes, low, loss = self._train_low(self._descend(vectors))
        return codes, F.linear(low, self.project_out.weight.float(), self.project_out.bias.float()), loss

    def loss(self, vectors: Tensor, quantized: Tensor) -> Tensor:
        return F.mse_loss(vectors, quantized)

    def match_vectors(self, vectors: Tensor) -> None:
        """Whiten the strongest M directions on the way down, and restore by least squares on the way up."""
        mean, low_dim = vectors.mean(0), self.project_in.out_features
        values, axes = principal_axes(vectors)
        strongest = axes[:, -low_dim:] / values[-low_dim:].clamp(min=1e-8).sqrt()  # (D, <= M)
        self.project_in.weight.zero_()
        self.project_in.weight[: strongest.shape[1]] = strongest.T
        self.project_in.bias.copy_(-self.project_in.weight @ mean)
        low = F.embedding(self.search(vectors), self._low_codebook())  # (N, M)
        low_mean = low.mean(0)
        ridge = 1e-4 * torch.eye(low_dim, device=low.device)
        gram, cross = torch.cov(low.T).view(low_dim, low_dim), (low - low_mean).T @ (vectors - mean) / (len(low) - 1)
        self.project_out.weight.copy_(torch.linalg.solve(gram + ridge, cross).T)
        self.project_out.bias.copy_(mean - self.project_out.weight @ low_mean)

    def _descend(self, vectors: Tensor) -> Tensor:
        """(N, D) -> (N, M)."""
        return F.linear(vectors, self.project_in.weight.float(), self.project_in.bias.float())

    def _low_codebook(self) -> Tensor:
        """(K, M)."""
        raise NotImplementedError

    def _search_low(self, low: Tensor) -> Tensor:
        """(N, M) -> (N,)."""
        raise NotImplementedError

    def _train_low(self, low: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, M) -> codes (N,), low code vectors (N, M) with gradient, loss."""
        raise NotImplementedError


class FactorisedVQ(ProjectedQuantizer):
    """Vanilla VQ between unit vectors of few dimensions.

    Source: ViT-VQGAN, arXiv:2110.04627, section 3.2 (factorised and normalised codes); VQGAN-FC in the literature.
    """

    def __init__(self, codebook_size: int, codebook_dim: int, *, factor_dim: int = 8, beta: float = 0.25):
        super().__init__(codebook_size, codebook_dim, factor_dim)
        self.factors = SphereVQ(codebook_size, factor_dim, beta=beta)

    def _descend(self, vectors: Tensor) -> Tensor:
        return F.normalize(super()._descend(vectors), dim=-1)

    def _low_codebook(self) -> Tensor:
        return self.factors.effective_codebook()

    def _search_low(self, low: Tensor) -> Tensor:
        return self.factors.search(low)

    def _train_low(self, low: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.factors.learn(low)


class SphereVQ(VQ):
    """Vanilla VQ with codes of length 1."""

    def _project(self, rows: Tensor) -> Tensor:
        return F.normalize(rows, dim=-1)


class FSQ(ProjectedQuantizer):
    """Finite scalar quantization: every dimension is bounded and rounded to one of a few levels, without any loss.

    Source: arXiv:2309.15505, in the implementation of vector-quantize-pytorch.
    """

    def __init__(self, codebook_size: int, codebook_dim: int, *, levels: list[int] | None = None):
        levels = levels or fsq_levels(codebook_size)
        super().__init__(codebook_size, codebook_dim, len(levels))
        self.grid = _library().FSQ(levels=list(levels))

    def _low_codebook(self) -> Tensor:
        return self.grid.implicit_codebook

    def _search_low(self, low: Tensor) -> Tensor:
        return self._train_low(low)[0]

    def _train_low(self, low: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rounded, codes = self.grid(low[None])
        # A broken latent has no level; like elsewhere it gets some valid code.
        return codes[0].long().clamp(0, self.codebook_size - 1), rounded[0], low.new_zeros(())


class LFQ(ProjectedQuantizer):
    """Lookup-free quantization: the code is the signs of log2 K numbers, an entropy loss keeps all codes in use.

    Source: MAGVIT-v2, arXiv:2310.05737, in the implementation of vector-quantize-pytorch.
    """

    def __init__(
        self,
        codebook_size: int,
        codebook_dim: int,
        *,
        beta: float = 0.25,
        entropy_weight: float = 0.1,
        diversity: float = 1.0,
    ):
        super().__init__(codebook_size, codebook_dim, codebook_size.bit_length() - 1)
        library = _library()
        library.lookup_free_quantization.maybe_distributed_mean = _joint_mean  # its own (1.32) loses the sum
        self.signs = library.LFQ(
            codebook_size=codebook_size,
            entropy_loss_weight=entropy_weight,
            commitment_loss_weight=beta,
            diversity_gamma=diversity,
        )
        # Constants, powers of two beyond the range of half precision: not for the model file.
        self.signs.register_buffer("mask", self.signs.mask, persistent=False)

    def _low_codebook(self) -> Tensor:
        return self.signs.codebook

    def _search_low(self, low: Tensor) -> Tensor:
        return ((low > 0).long() * self.signs.mask).sum(dim=1)

    def _train_low(self, low: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.signs.frac_per_sample_entropy = min(1.0, LFQ_ENTROPY_TILE / (len(low) * self.codebook_size))
        signs, codes, loss = self.signs(low[None])
        return codes[0].long(), signs[0], loss


def fsq_levels(codebook_size: int) -> list[int]:
    """Levels of FSQ's dimensions for K a power of two from 2^2 on: as many 8 as possible, the others 4.

    Raises:
        ConfigError: another K.
    """
    bits = codebook_size.bit_length() - 1
    if codebook_size != 1 << bits or bits < 2:
        raise ConfigError(
            f"quantizer.levels must be given for a codebook_size that is no power of two from 4 on, got {codebook_size}"
        )
    num_fours = -bits % 3  # bits = 3 * eights + 2 * fours
    return [8] * ((bits - 2 * num_fours) // 3) + [4] * num_fours


def _joint_mean(value: Tensor) -> Tensor:
    """The mean of a tensor over all processes, with its gradient."""
    if not _is_shared():
        return value
    from torch.distributed.nn.functional import all_reduce

    total: Tensor = all_reduce(value)
    return total / dist.get_world_size()


def _sample(vectors: Tensor, count: int) -> Tensor:
    """`count` of `vectors` (N, D) in random order, the same for the same vectors; repeated where N is smaller."""
    generator = torch.Generator().manual_seed(0)
    order = torch.cat([torch.randperm(len(vectors), generator=generator) for _ in range(-(-count // len(vectors)))])
    return vectors[order[:count].to(vectors.device)]


def _library() -> Any:
    try:
        import vector_quantize_pytorch
    except ImportError as error:
        raise ConfigError(
            "the quantizers fsq and lfq need the package vector-quantize-pytorch: pip install 'codec[rivals]'"
        ) from error
    return vector_quantize_pytorch
