"""Quantizers: latent (B, D, *) -> codes (B, *), quantized latent, loss. `SimVQ` is the one this project is about."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from typing_extensions import Self

SEARCH_TILE = 1 << 20
"""Distances held at once by the nearest-code search; the N x K matrix never exists as a whole."""


class QuantizerOutput(NamedTuple):
    """What quantizing a latent yields."""

    codes: Tensor  # (B, *) int64 in [0, K)
    quantized: Tensor  # (B, D, *) like the latent; in training its gradient is passed straight to the latent
    loss: Tensor  # scalar float32


@dataclass
class VQConfig:
    """Settings of `VQ`."""

    kind: str = "vq"
    codebook_size: int = 4096
    codebook_dim: int = 512
    beta: float = 0.25  # weight of the commitment loss beside the codebook loss
    relative_loss: bool = False  # divide the loss by the variance of the effective codebook

    def __post_init__(self) -> None:
        if self.codebook_size < 2 or self.codebook_dim < 1:
            raise ConfigError(
                f"quantizer: codebook_size must be at least 2 and codebook_dim at least 1, "
                f"got {self.codebook_size} and {self.codebook_dim}"
            )
        if self.beta < 0:
            raise ConfigError(f"quantizer.beta must not be negative, got {self.beta}")


@dataclass
class SimVQConfig(VQConfig):
    """Settings of `SimVQ`."""

    kind: str = "simvq"
    codebook_dim: int = 16
    relative_loss: bool = True
    bias: bool = True  # of the projection


class VQ(nn.Module):
    """Nearest-neighbour quantization in a learned codebook.

    The latent z is replaced by the nearest row q of the codebook. The loss is

        beta * ||z - sg(q)||^2 + ||sg(z) - q||^2      (mean over elements; sg stops the gradient)

    and the gradient at q is copied to z.

    Args:
        codebook_size: K, the number of codes.
        codebook_dim: D, the width of a code and of the latent.
        beta: weight of the commitment loss.
        relative_loss: divide the loss by the variance of the effective codebook (detached), which makes its weight
            independent of the latent's scale.

    Source: VQ-VAE, arXiv:1711.00937, equation 3.
    """

    codebook: Tensor

    def __init__(self, codebook_size: int, codebook_dim: int, *, beta: float = 0.25, relative_loss: bool = False):
        super().__init__()
        self.codebook_size = codebook_size
        self.codebook_dim = codebook_dim
        self.beta = beta
        self.relative_loss = relative_loss
        self._make_codebook(torch.randn(codebook_size, codebook_dim) * codebook_dim**-0.5)
        self._cached_codebook: Tensor | None = None

    def effective_codebook(self) -> Tensor:
        """The codes that latents are compared with: (K, D) float32. Computed once in eval mode."""
        if self.training:
            return self._project(self.codebook)
        if self._cached_codebook is None:
            with torch.no_grad():
                self._cached_codebook = self._project(self.codebook)
        return self._cached_codebook

    def forward(self, latent: Tensor) -> QuantizerOutput:
        """Quantize a latent.

        Args:
            latent: (B, D, *) floating point, any number of trailing dimensions, at least one vector.

        Returns:
            codes (B, *) int64, quantized (B, D, *) float32, loss. Outside training `quantized` is the code vector
            itself, bit for bit what `lookup(codes)` gives.

        Raises:
            ModelError: wrong width or no vectors; outside training also NaN or infinite values.
        """
        if latent.ndim < 2 or latent.shape[1] != self.codebook_dim or latent.numel() == 0:
            raise ModelError(
                f"the quantizer takes latents of shape (B, {self.codebook_dim}, ...) with at least one vector, "
                f"got {tuple(latent.shape)}"
            )
        with torch.autocast(latent.device.type, enabled=False):
            vectors = latent.float().movedim(1, -1)  # (B, *, D)
            flat = vectors.reshape(-1, self.codebook_dim)
            # In training a broken latent makes the loss broken, and the step is skipped without waiting for the device.
            if not self.training and not torch.isfinite(flat).all():
                raise ModelError("cannot quantize a latent with NaN or infinite values")
            with torch.no_grad():
                codes = nearest_code(flat, self.effective_codebook()).view(vectors.shape[:-1])
            if not self.training:
                quantized = F.embedding(codes, self.effective_codebook())
                return QuantizerOutput(codes, quantized.movedim(-1, 1), self._loss(vectors, quantized))
            # Gradients flow through the selected rows only: gathering before projecting keeps memory at
            # O(N D + D^2) instead of O(K D).
            selected = self._project(F.embedding(codes, self.codebook))
            loss = self._loss(vectors, selected)
            quantized = vectors + (selected - vectors).detach()
            return QuantizerOutput(codes, quantized.movedim(-1, 1), loss)

    def lookup(self, codes: Tensor) -> Tensor:
        """The quantized latent of codes: (B, *) int64 in [0, K) -> (B, D, *) float32.

        Raises:
            ModelError: a code outside [0, K).
        """
        if codes.numel() and (codes.min() < 0 or codes.max() >= self.codebook_size):
            worst = codes.min() if codes.min() < 0 else codes.max()
            raise ModelError(f"codes must lie in 0..{self.codebook_size - 1}, got {int(worst)}")
        return F.embedding(codes, self.effective_codebook()).movedim(-1, 1)

    @torch.no_grad()
    def match(self, latent: Tensor) -> None:
        """Give the effective codebook the mean and covariance of a latent (B, D, *).

        Early latents fill few of their dimensions, and codes outside that subspace would never be nearest. Giving
        the codes the latents' distribution once, at the start, puts all of them to use. Vectors with NaN are left out;
        with fewer than two others nothing is changed.
        """
        vectors = latent.float().movedim(1, -1).reshape(-1, self.codebook_dim)
        vectors = vectors[torch.isfinite(vectors).all(dim=1)]
        if len(vectors) < 2:
            return
        values, axes = torch.linalg.eigh(torch.cov(vectors.T).view(self.codebook_dim, self.codebook_dim))
        root = axes @ torch.diag(values.clamp(min=0).sqrt()) @ axes.T
        self._transform(root * self.codebook_dim**0.5, vectors.mean(0))  # the codebook starts with variance 1 / D
        self._cached_codebook = None

    def _make_codebook(self, rows: Tensor) -> None:
        self.codebook = nn.Parameter(rows)

    def _project(self, rows: Tensor) -> Tensor:
        return rows

    def _transform(self, matrix: Tensor, offset: Tensor) -> None:
        self.codebook.copy_(self.codebook @ matrix.T + offset)

    def _loss(self, vectors: Tensor, selected: Tensor) -> Tensor:
        commitment = F.mse_loss(vectors, selected.detach())
        codebook = F.mse_loss(selected, vectors.detach())
        loss = self.beta * commitment + codebook
        return loss / self._variance().clamp(min=1e-8) if self.relative_loss else loss

    def _variance(self) -> Tensor:
        return self.codebook.detach().var(dim=0).mean()

    def train(self, mode: bool = True) -> "Self":
        self._cached_codebook = None
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> "Self":
        self._cached_codebook = None
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._cached_codebook = None
        super()._load_from_state_dict(*args, **kwargs)


class SimVQ(VQ):
    """Nearest-neighbour quantization in a codebook of which only a linear map is learned.

    C (K, D) is drawn once from a Gaussian of standard deviation D^-1/2 and frozen. The latent is replaced by the
    nearest row of the effective codebook C W^T + b; loss and straight-through gradient are those of `VQ`. Since every
    effective code is a function of the same W and b, each update moves all of them and none can die. In the paper's
    notation, with d the one-hot selection and eta the learning rate,

        W <- (I - eta E[C^T d^T d C]) W + eta E[C^T d^T z].

    Args:
        codebook_size: K, the number of codes.
        codebook_dim: D, the width of a code and of the latent.
        bias: whether the projection has a bias b.
        beta: weight of the commitment loss.
        relative_loss: divide the loss by the variance of the effective codebook (detached).

    Source: SimVQ, arXiv:2411.02038, section 4.
    """

    def __init__(
        self,
        codebook_size: int,
        codebook_dim: int,
        *,
        bias: bool = True,
        beta: float = 0.25,
        relative_loss: bool = False,
    ):
        super().__init__(codebook_size, codebook_dim, beta=beta, relative_loss=relative_loss)
        self.projection = nn.Linear(codebook_dim, codebook_dim, bias=bias)

    def _make_codebook(self, rows: Tensor) -> None:
        self.register_buffer("codebook", rows)

    def _project(self, rows: Tensor) -> Tensor:
        return F.linear(rows, self.projection.weight, self.projection.bias)

    def _transform(self, matrix: Tensor, offset: Tensor) -> None:
        self.projection.weight.copy_(matrix)
        if self.projection.bias is not None:
            self.projection.bias.copy_(offset)

    def _variance(self) -> Tensor:
        # Of C W^T, averaged over dimensions, C having variance 1 / D: independent of the batch and of K.
        return self.projection.weight.detach().square().sum() / self.codebook_dim**2


@torch.no_grad()
def nearest_code(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index of the row of `codebook` (K, D) nearest to each of `vectors` (N, D), the lowest of equals: (N,) int64.

    ||x - c||^2 and ||c||^2 / 2 - x.c have the same minimum over c. Computed in float32, in tiles. For a vector with NaN
    the result is some valid code.
    """
    half_norms = codebook.square().sum(1) / 2  # (K,)
    num_vectors, num_codes = len(vectors), len(codebook)
    code_tile = min(num_codes, SEARCH_TILE)
    vector_tile = max(SEARCH_TILE // code_tile, 1)
    codes = torch.empty(num_vectors, dtype=torch.int64, device=vectors.device)
    for i in range(0, num_vectors, vector_tile):
        x = vectors[i : i + vector_tile]
        codes[i : i + vector_tile] = torch.addmm(half_norms, x, codebook.T, alpha=-1).argmin(1)
    return codes
