"""Quantizers: latent (B, D, *) -> codes (B, *), quantized latent, loss. `SimVQ` is the one this project is about.

Knows tensors only, neither speech nor training loops. B batch, N vectors, D their width, K codes.
"""

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.errors import CodecError, ConfigError, ModelError
from codec.limits import refuse, too_small
from codec.model.layers import State
from codec.model.search import (
    CODE_TILE,
    SquaredNormsOfProducts,
    full_float32,
    half_squared_norms,
    half_squared_norms_of_products,
    linear,
    nearest_code,
)
from codec.model.timeconv import Derived, DerivedWeight

LARGEST_VALUE = 1e18
"""Latents beyond it would overflow float32 once squared."""

SHORTEST = 1e-6
"""Vectors shorter than this have no direction that the rotation trick could turn."""

SMALLEST_SHARE = 1e-20
"""Of the use of a code, for its logarithm."""

USAGE_TILE = 1 << 23
"""Probabilities held at once by the usage loss; the vectors it is computed from are as many as that allows."""

USAGE_PIECE = 1 << 18
"""Probabilities it computes at a time: more would leave the cache of a CPU between two operations."""

USAGE_ROWS = 32
"""Vectors it computes with at a time, at least: with fewer, reading a large codebook takes longer than the products."""


class QuantizerOutput(NamedTuple):
    """What quantizing a latent yields."""

    codes: Tensor  # (B, *) int64 in [0, K)
    quantized: Tensor  # (B, D, *) like the latent; in training its gradient is passed straight to the latent
    loss: Tensor  # scalar float32


LEAST_SIZES = {1: ("codebook_dim",), 2: ("codebook_size",)}
"""Of any codebook."""


@dataclass
class VQConfig:
    """Settings of `VQ`."""

    kind: str = "vq"
    codebook_size: int = 4096
    codebook_dim: int = 512
    codebook_init: str = "gaussian"  # or "uniform"; both have variance 1 / codebook_dim
    is_codebook_trained: bool = True
    beta: float = 0.25  # weight of the commitment loss
    codebook_weight: float = 1.0  # weight of the codebook loss
    relative_loss: bool = False  # divide the loss by the variance of the effective codebook
    rotation_trick: bool = False  # rotate the gradient with the latent instead of copying it

    def __post_init__(self) -> None:
        refuse(self._mistakes())

    def _mistakes(self) -> list[str]:
        mistakes = too_small(self, "quantizer", LEAST_SIZES | {0: ("beta", "codebook_weight")})
        if self.codebook_init not in ("gaussian", "uniform"):
            mistakes.append(f"quantizer.codebook_init must be gaussian or uniform, got {self.codebook_init!r}")
        return mistakes


@dataclass
class SimVQConfig(VQConfig):
    """Settings of `SimVQ`."""

    kind: str = "simvq"
    codebook_dim: int = 16
    is_codebook_trained: bool = False
    relative_loss: bool = True
    bias: bool = True  # of the projection


class Quantizer(nn.Module, ABC):
    """What all quantizers share: checks of what comes in, shapes, lookup, the codes kept ready in eval mode.

    A kind of quantizer says what its codes are (`make_effective_codebook`), which of them a vector gets (`search`),
    what happens to a vector in training (`learn`), and what is minimised (`loss`); if it can, it lays its codes over
    latents (`match_vectors`). All get float32, outside of autocast. How to bring one's own: recipes/own.

    Args:
        codebook_size: K, the number of codes.
        codebook_dim: D, the width of a code and of the latent.

    Attributes:
        delay: frames between a frame and the one that decides its code.
        checks_values: whether values are looked at in training too, which waits for the device. A training loop that
            skips steps whose loss is not finite can do without.
    """

    def __init__(self, codebook_size: int, codebook_dim: int):
        super().__init__()
        self.delay = 0
        self.checks_values = True
        self.codebook_size = codebook_size
        self.codebook_dim = codebook_dim
        refuse(too_small(self, "quantizer", LEAST_SIZES))
        self._kept: defaultdict[str, DerivedWeight] = defaultdict(DerivedWeight)

    if TYPE_CHECKING:  # what torch calls is `forward`, but it says nothing of its types

        def __call__(self, latent: Tensor) -> QuantizerOutput: ...

    def effective_codebook(self) -> Tensor:
        """The codes that latents are compared with: (K, D) float32.

        With gradient in training mode; in eval mode computed once and kept until a parameter or buffer changes.

        Raises:
            ModelError: in eval mode, if it has NaN or infinite values.
        """
        if self.training:
            with self._outside_autocast():
                return self.make_effective_codebook()
        return self._derive("codebook", self._make_checked_codebook)

    def forward(self, latent: Tensor) -> QuantizerOutput:
        """Quantize a latent.

        Args:
            latent: (B, D, *) floating point, any number of trailing dimensions, at least one vector.

        Returns:
            codes (B, *) int64, quantized (B, D, *) float32, loss. Outside training `quantized` is the code vector
            itself, bit for bit what `lookup(codes)` gives. All is computed in float32, also under autocast.

        Raises:
            ModelError: wrong width or type, or no vectors; values that are NaN, infinite or too large to be squared, a
                sparse tensor or one without values. These are not looked for in training with `checks_values` off: such
                values then make the loss NaN or infinite.
        """
        vectors = self._checked(latent)  # (B, *, D)
        with torch.autocast(latent.device.type, enabled=False):
            flat = vectors.reshape(-1, self.codebook_dim)  # (N, D)
            if self.training:
                # Of one clip they are a view, whose gradient through `rotate` torch's compiler gets wrong (2.13).
                codes, quantized, loss = self.learn(flat.contiguous())
            else:
                codes = self.search(flat)
                quantized = F.embedding(codes, self.effective_codebook())
                loss = self.loss(flat, quantized)
        quantized = quantized.view(vectors.shape).movedim(-1, 1)  # (N, D) -> (B, D, *)
        return QuantizerOutput(codes.view(vectors.shape[:-1]), quantized, loss)

    def encode(self, latent: Tensor, state: State | None = None, num_frames: list[int] | None = None) -> Tensor:
        """Only the codes of a latent (B, D, *): (B, *) int64.

        Args:
            latent: as for `forward`.
            state: for a latent (B, D, N) that comes in pieces. A quantizer that decides late gives the codes that are
                now certain, and the others with later pieces or from `finish`.
            num_frames: of each item, where they differ; without a state. Codes beyond them mean nothing.

        Raises:
            ModelError: as for `forward`.
        """
        vectors = self._checked(latent)
        with torch.autocast(latent.device.type, enabled=False):
            codes = self.search(vectors.reshape(-1, self.codebook_dim))
        return codes.view(vectors.shape[:-1])

    def finish(self, state: State) -> Tensor:
        """The codes that are still due once all pieces of a latent were given to `encode`: (B, n) int64, or (1, 0)."""
        return torch.zeros(1, 0, dtype=torch.int64, device="cpu")

    def num_due(self, state: State) -> int:
        """How many codes of each signal those are."""
        return 0

    def settle(self, state: State) -> None:
        """Decide the codes that are still due as `finish` does, and go on behind them instead of ending."""

    def lookup(self, codes: Tensor, state: State | None = None) -> Tensor:
        """The quantized latent of codes: (B, *) integers in [0, K) -> (B, D, *) float32.

        With a state, of the frames after the last call's.

        Raises:
            ModelError: codes that are no integers or of no item, or a code outside [0, K).
        """
        if not codes.ndim:
            raise ModelError("codes must be (B, ...), got a single one")
        return F.embedding(self.checked_codes(codes), self.effective_codebook()).movedim(-1, 1)

    def remainder(self, latent: Tensor, codes: Tensor) -> Tensor:
        """What of a latent (B, D, *) its codes (B, *) stand for: all of it, unless the quantizer looks back."""
        return latent

    def code_parameters(self) -> list[nn.Parameter]:
        """The parameters that the codes are made of, and that must follow the latents."""
        return list(self.parameters())

    def _checked(self, latent: Tensor) -> Tensor:
        """(B, D, *) -> vectors (B, *, D) float32."""
        if latent.ndim < 2 or latent.shape[1] != self.codebook_dim or latent.numel() == 0:
            raise ModelError(
                f"the quantizer takes latents of shape (B, {self.codebook_dim}, ...) with at least one vector, "
                f"got {tuple(latent.shape)}"
            )
        if not latent.is_floating_point():
            raise ModelError(f"the quantizer takes floating point latents, got {latent.dtype}")
        vectors = latent.float().movedim(1, -1)
        if self.checks_values or not self.training:
            _check_values(vectors)
        return vectors

    def checked_codes(self, codes: Tensor) -> Tensor:
        """Codes of any shape as int64.

        Raises:
            ModelError: no integers, a sparse tensor or one without values, or a code outside [0, K).
        """
        if not are_integers(codes):
            raise ModelError(f"codes must be integers, got {codes.dtype}")
        require_values(codes, "codes", ModelError)
        codes = codes.long()
        if torch.compiler.is_compiling():  # a program cannot branch on values; it checks the indices that it looks up
            return codes
        if codes.numel() and (codes.min() < 0 or codes.max() >= self.codebook_size):
            worst = codes.min() if codes.min() < 0 else codes.max()
            raise ModelError(f"codes must lie in 0..{self.codebook_size - 1}, got {int(worst)}")
        return codes

    def usage_loss(self, latent: Tensor, average: Callable[[Tensor], Tensor] = lambda value: value) -> Tensor:
        """How unevenly a latent (B, D, *) uses the codes: log K - H(p) >= 0, a scalar, with gradient to both.

        H is the entropy of p, the soft assignment of a vector to the codes averaged over all vectors: of code c
        exp(-||z - c||^2 / t), normalised, with t the mean squared distance of a vector to its nearest code. 0 where
        all codes are used alike. In a large codebook it is computed from every n-th vector. Where several processes
        share a batch, `average` gives the mean of a tensor over them; the mean of their gradients is then the joint
        batch's.

        Source: the half of LFQ's entropy loss that spreads (arXiv:2310.05737, section 3.1), for any codebook.
        """
        with torch.autocast(latent.device.type, enabled=False):
            vectors = latent.float().movedim(1, -1).reshape(-1, self.codebook_dim)
            vectors = vectors[:: -(-len(vectors) * self.codebook_size // USAGE_TILE)]  # (N, D)
            squares, queries, keys, norms = self._terms_of_distances(vectors)
            num_rows = (USAGE_TILE if vectors.is_cuda else USAGE_PIECE) // self.codebook_size
            pieces = queries.split(max(USAGE_ROWS, num_rows))
            with torch.no_grad():  # without ||z||^2, added below
                nearest = torch.cat([torch.addmm(norms, piece, keys.T, alpha=-2).amin(1) for piece in pieces])
                temperature = average((nearest + squares).mean()).clamp(min=1e-8)
            bias, scale = -norms / temperature, 2 / temperature
            sums = [torch.softmax(torch.addmm(bias, scale * piece, keys.T), dim=1).sum(0) for piece in pieces]
            usage = torch.stack(sums).sum(0) / len(vectors)  # (K,)
            usage = usage + (average(usage.detach()) - usage.detach())
            # Of codes so far away that their probability is 0 in float32 the logarithm would have no gradient.
            return math.log(self.codebook_size) + (usage * usage.clamp(min=SMALLEST_SHARE).log()).sum()

    def _terms_of_distances(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """s (N,), q (N, D), k (K, D), n (K,) with gradient: s - 2 q k^T + n are the squared distances to all codes."""
        codes = self.effective_codebook()
        return vectors.square().sum(1), vectors, codes, codes.square().sum(1)

    @torch.no_grad()
    def match(self, latent: Tensor) -> None:
        """Lay the codes over the distribution of a latent (B, D, *), once, before training with them starts.

        Vectors with NaN, or too large to be squared, are left out; with fewer than two others nothing is changed.
        """
        with torch.autocast(latent.device.type, enabled=False):
            self._match_latent(latent.float())

    def _match_latent(self, latent: Tensor) -> None:
        """`match` for (B, D, *) float32."""
        vectors = latent.movedim(1, -1).reshape(-1, self.codebook_dim)
        vectors = vectors[are_usable(vectors).all(dim=1)]
        if len(vectors) >= 2:
            self.match_vectors(vectors)

    @abstractmethod
    def make_effective_codebook(self) -> Tensor:
        """(K, D) float32, with gradient where gradients are on."""

    @abstractmethod
    def search(self, vectors: Tensor) -> Tensor:
        """The code of each of `vectors` (N, D): (N,) int64."""

    @abstractmethod
    def learn(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes (N,), quantized (N, D) with its gradient, and loss, for `vectors` (N, D)."""

    @abstractmethod
    def loss(self, vectors: Tensor, quantized: Tensor) -> Tensor:
        """The scalar that is minimised beside the task's own loss."""

    def match_vectors(self, vectors: Tensor) -> None:
        """`match` for finite vectors (N, D), N >= 2; by default the codes stay where they are."""

    def _make_checked_codebook(self) -> Tensor:
        codebook = self.make_effective_codebook()
        if not torch.isfinite(codebook).all():
            raise ModelError("the quantizer's weights give codes with NaN or infinite values")
        return codebook

    def _half_norms(self) -> Tensor:
        """||c||^2 / 2 of every code c as the search needs it: (K,), without gradient; in eval mode computed once."""
        return self._derive("half norms", self._make_half_norms)

    def _make_half_norms(self) -> Tensor:
        return half_squared_norms(self.effective_codebook())

    def _derive(self, name: str, make: Callable[[], Derived]) -> Derived:
        """What `make` gives, without gradient; in eval mode made once and kept under its name."""
        # What was made in inference mode could never take part in a gradient.
        with torch.inference_mode(False), torch.no_grad(), self._outside_autocast(), full_float32():
            if self.training:  # fused optimizers change parameters without torch's count of changes seeing it
                return make()
            return self._kept[name].get(self._sources(), make)

    def _outside_autocast(self) -> torch.autocast:
        sources = self._sources()
        return torch.autocast(sources[0].device.type if sources else "cpu", enabled=False)

    def _sources(self) -> tuple[Tensor, ...]:
        return (*self.parameters(), *self.buffers())

    def train(self, mode: bool = True) -> "Quantizer":
        self._kept.clear()
        super().train(mode)
        return self


class VQ(Quantizer):
    """Nearest-neighbour quantization in a learned codebook.

    The latent z is replaced by the nearest row q of the codebook. The loss is

        beta * ||z - sg(q)||^2 + codebook_weight * ||sg(z) - q||^2      (mean over elements; sg stops the gradient)

    and the gradient at q is copied to z (straight-through estimator).

    Args:
        codebook_size: K, the number of codes.
        codebook_dim: D, the width of a code and of the latent.
        codebook_init: distribution the rows are drawn from, "gaussian" or "uniform", of variance 1 / D.
        is_codebook_trained: whether the codebook is a parameter; otherwise it stays as it was drawn.
        beta: weight of the commitment loss.
        codebook_weight: weight of the codebook loss.
        relative_loss: divide the loss by the variance of the effective codebook (detached), which makes its weight
            independent of the latent's scale. By default the class has the paper's loss, for models that follow the
            paper; settings of a codec (`SimVQConfig` and others) have it relative, as the weights in configs/ ask for.
        rotation_trick: pass the gradient at q to z turned by the rotation that takes q to z and scaled by |q| / |z|,
            instead of copying it (arXiv:2410.06424).

    Source: VQ-VAE, arXiv:1711.00937, equation 3.
    """

    codebook: Tensor

    def __init__(
        self,
        codebook_size: int,
        codebook_dim: int,
        *,
        codebook_init: str = "gaussian",
        is_codebook_trained: bool = True,
        beta: float = 0.25,
        codebook_weight: float = 1.0,
        relative_loss: bool = False,
        rotation_trick: bool = False,
    ):
        super().__init__(codebook_size, codebook_dim)
        self.beta = beta
        self.codebook_weight = codebook_weight
        self.relative_loss = relative_loss
        self.rotation_trick = rotation_trick
        rows = _draw_rows(codebook_init, codebook_size, codebook_dim)
        if is_codebook_trained:
            self.codebook = nn.Parameter(rows)
        else:
            self.register_buffer("codebook", rows)

    def make_effective_codebook(self) -> Tensor:
        return self._project(self.codebook.float())

    def search(self, vectors: Tensor) -> Tensor:
        if self.training:  # codes change with every step: made tile by tile, none are kept
            return nearest_code(vectors, self.codebook, self._project)
        return nearest_code(vectors, self.effective_codebook(), half_norms=self._half_norms())

    def learn(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        codes = self.search(vectors)
        # Gradients flow through the selected rows only: gathering before projecting keeps memory at
        # O(N D + D^2) instead of O(K D).
        selected = self._project(F.embedding(codes, self.codebook).float())
        return codes, self._pass_gradient(vectors, selected), self.loss(vectors, selected)

    def _pass_gradient(self, vectors: Tensor, selected: Tensor) -> Tensor:
        """`selected` (..., D), with its gradient passed to `vectors`."""
        return rotate(vectors, selected) if self.rotation_trick else straight_through(vectors, selected)

    def loss(self, vectors: Tensor, quantized: Tensor) -> Tensor:
        commitment = F.mse_loss(vectors, quantized.detach())
        codebook = F.mse_loss(quantized, vectors.detach())
        loss = self.beta * commitment + self.codebook_weight * codebook
        return loss / self._variance().clamp(min=1e-8) if self.relative_loss else loss

    def match_vectors(self, vectors: Tensor) -> None:
        """Give the codes the mean and covariance of the vectors.

        Early latents fill few of their dimensions, and codes outside that subspace would never be nearest. With the
        latents' own distribution all codes are put to use at the start.
        """
        values, axes = principal_axes(vectors)
        root = (axes @ torch.diag(values.clamp(min=0).sqrt()) @ axes.T).to(vectors.device)
        self._transform(root * self.codebook_dim**0.5, vectors.mean(0))  # the codebook starts with variance 1 / D

    def _project(self, rows: Tensor) -> Tensor:
        """The effective codes of some rows of the codebook: (n, D) -> (n, D)."""
        return rows

    def _transform(self, matrix: Tensor, offset: Tensor) -> None:
        """Make every effective code what `matrix` (D, D) and `offset` (D,) make of its row."""
        self.codebook.copy_(self.codebook @ matrix.T + offset)

    def _variance(self) -> Tensor:
        return self.codebook.detach().var(dim=0).mean()


class SimVQ(VQ):
    """Nearest-neighbour quantization in a codebook of which only a linear map is learned.

    C (K, D) is drawn once and frozen; `projection` is a linear layer W. The latent z (B, D, *) is replaced by the
    nearest row q of the effective codebook C W (+ b), and its gradient is the one at q. The loss is that of `VQ`,

        L = beta * ||z - sg(C_k W)||^2 + codebook_weight * ||sg(z) - C_k W||^2 .

    With d the one-hot selection of the row k that is nearest to z (rows are vectors, as in the paper), and eta the
    learning rate, gradient descent on ||z - d C W||^2 / 2 is

        W <- W - eta E[C^T d^T (d C W - z)]
           = (I - eta E[C^T d^T d C]) W + eta E[C^T d^T z] .

    Every effective code is a function of the same W: each update moves all of them, also those that were not selected,
    and none can die. In a `VQ`, by contrast, c_k <- c_k - eta E[d^T (d C - z)]_k is zero for every code not selected.
    Here L is a mean over the N vectors and their D elements, so dL/dW = (2 codebook_weight / D) E[C^T d^T (d C W - z)];
    `projection.weight` holds W transposed. The search never makes the effective codebook: it compares rows of C with
    (z - b) W^T, and needs of C W the norms only. Gradients flow through the selected rows only.

    Args:
        codebook_size: K, the number of codes.
        codebook_dim: D, the width of a code and of the latent.
        bias: whether the projection has a bias b.
        is_codebook_trained: also learn C, which gives up what the method is about; for ablations.
        codebook_init, beta, codebook_weight, relative_loss, rotation_trick: as for `VQ`.

    Attributes:
        codebook: C, (K, D), a buffer unless it is trained.
        projection: the linear layer.

    Source: SimVQ, arXiv:2411.02038, section 4.
    """

    def __init__(
        self,
        codebook_size: int,
        codebook_dim: int,
        *,
        bias: bool = True,
        codebook_init: str = "gaussian",
        is_codebook_trained: bool = False,
        beta: float = 0.25,
        codebook_weight: float = 1.0,
        relative_loss: bool = False,
        rotation_trick: bool = False,
    ):
        super().__init__(
            codebook_size,
            codebook_dim,
            codebook_init=codebook_init,
            is_codebook_trained=is_codebook_trained,
            beta=beta,
            codebook_weight=codebook_weight,
            relative_loss=relative_loss,
            rotation_trick=rotation_trick,
        )
        self.projection = nn.Linear(codebook_dim, codebook_dim, bias=bias)

    def make_effective_codebook(self) -> Tensor:
        rows = self.codebook.float()
        if torch.is_grad_enabled():
            return self._project(rows)
        codes = torch.empty_like(rows)
        for tile, place in zip(rows.split(16 * CODE_TILE), codes.split(16 * CODE_TILE), strict=True):
            place.copy_(self._project(tile))
        return codes

    def search(self, vectors: Tensor) -> Tensor:
        # ||z - c W - b||^2 / 2 and ||c W||^2 / 2 - ((z - b) W^T).c have the same minimum over c: instead of all codes,
        # the vectors are taken through W, and there are fewer of them.
        return nearest_code(vectors, self.codebook, half_norms=self._half_norms(), enter=self._enter)

    def _enter(self, vectors: Tensor) -> Tensor:
        bias, weight = self.projection.bias, self.projection.weight.detach().float()
        return linear(vectors if bias is None else vectors - bias.detach().float(), weight.T.contiguous())

    def _terms_of_distances(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # ||z - c W - b||^2 = ||z - b||^2 - 2 ((z - b) W^T).c + ||c W||^2: as in the search, no code is made.
        rows, weight, bias = self.codebook.float(), self.projection.weight.float(), self.projection.bias
        shifted = vectors if bias is None else vectors - bias.float()
        norms = SquaredNormsOfProducts.apply(rows, weight)
        return shifted.square().sum(1), shifted @ weight, rows, norms

    def _make_half_norms(self) -> Tensor:
        return half_squared_norms_of_products(self.codebook.detach().float(), self.projection.weight.detach().float())

    def _project(self, rows: Tensor) -> Tensor:
        bias = self.projection.bias
        return linear(rows, self.projection.weight.float(), None if bias is None else bias.float())

    def _transform(self, matrix: Tensor, offset: Tensor) -> None:
        self.projection.weight.copy_(matrix)
        if self.projection.bias is not None:
            self.projection.bias.copy_(offset)

    def _variance(self) -> Tensor:
        # Of C W, averaged over dimensions. A frozen C has variance 1 / D, so this is independent of the batch and of K.
        of_rows = super()._variance() if isinstance(self.codebook, nn.Parameter) else 1 / self.codebook_dim
        return self.projection.weight.detach().float().square().sum() / self.codebook_dim * of_rows


def principal_axes(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Variances (D,), ascending, and axes (D, D), in columns, of vectors (N, D), N >= 2; both on the CPU."""
    covariance = torch.cov(vectors.T).view(vectors.shape[1], vectors.shape[1])
    values, axes = torch.linalg.eigh(covariance.cpu())  # which torch cannot compute on an Apple GPU
    return values, axes


def straight_through(vectors: Tensor, selected: Tensor) -> Tensor:
    """`selected`, with the gradient of the result copied to `vectors`."""
    return vectors + (selected - vectors).detach()


def rotate(vectors: Tensor, selected: Tensor) -> Tensor:
    """`selected` as a rotated and scaled copy of `vectors`, both (..., D), rotation and scale taken as constants.

    The rotation in the plane of the unit vectors e and f of the two is R = 1 - 2 m m^T + 2 f e^T with m the unit vector
    between them, so R e = f, and |f| / |e| R turns one into the other. Vectors too short to have a direction are passed
    straight through.

    Source: the rotation trick, arXiv:2410.06424, section 4.
    """
    with torch.no_grad():
        length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
        target_length = torch.linalg.vector_norm(selected, dim=-1, keepdim=True)
        start, end = vectors / length.clamp(min=SHORTEST), selected / target_length.clamp(min=SHORTEST)
        middle = F.normalize(start + end, dim=-1)
        scale = target_length / length.clamp(min=SHORTEST)
    along_middle = (vectors * middle).sum(-1, keepdim=True)
    along_start = (vectors * start).sum(-1, keepdim=True)
    rotated = scale * (vectors - 2 * along_middle * middle + 2 * along_start * end)
    has_direction = (length > SHORTEST) & (target_length > SHORTEST)
    return straight_through(torch.where(has_direction, rotated, vectors), selected)


def require_values(tensor: Tensor, what: str, refusal: type[CodecError]) -> None:
    """Raises `refusal` for sparse tensors and those of the meta device, in which there are no values to look at."""
    if tensor.layout != torch.strided or tensor.device.type == "meta":
        raise refusal(f"{what} must be a dense tensor with values, got {tensor.layout} on device {tensor.device}")


def are_integers(values: Tensor) -> bool:
    """Whether its type is one of integers, of which bool is none."""
    return not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)


def are_usable(values: Tensor) -> Tensor:
    """Which values of a latent can be quantized, bool: false for NaN and what lies beyond `LARGEST_VALUE`."""
    return values.abs() <= LARGEST_VALUE


def _check_values(vectors: Tensor) -> None:
    require_values(vectors, "a latent", ModelError)
    vectors = vectors.reshape(-1, vectors.shape[-1])
    is_usable = are_usable(vectors)
    if not is_usable.all():
        vector, dimension = (~is_usable).nonzero()[0].tolist()
        raise ModelError(
            f"cannot quantize a latent with NaN or infinite values, or beyond {LARGEST_VALUE:g}: dimension {dimension} "
            f"of vector {vector} is {vectors[vector, dimension].item():g}"
        )


def _draw_rows(distribution: str, codebook_size: int, codebook_dim: int) -> Tensor:
    """(K, D) of variance 1 / D."""
    if distribution == "gaussian":
        return torch.randn(codebook_size, codebook_dim) * codebook_dim**-0.5
    if distribution == "uniform":
        return (torch.rand(codebook_size, codebook_dim) * 2 - 1) * (3 / codebook_dim) ** 0.5
    raise ConfigError(f"codebook_init must be gaussian or uniform, got {distribution!r}")
