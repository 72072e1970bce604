"""Exact search for the nearest code, in tiles, at the full matrix rate of the device and without gradient.

Plain functions of tensors; quantizers are unknown here. N vectors, K codes, D their width.
"""

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SEARCH_TILE = 1 << 21
"""Distances held at once by the nearest-code search on a CPU; the N x K matrix never exists as a whole."""

CODE_TILE = 1 << 10
"""Codes compared at once on a CPU."""

_entering = threading.Lock()
_num_inside = 0  # callers of `full_float32` that are at work
_allowed: Any = None  # before the first of them came


@contextmanager
def full_float32() -> Iterator[None]:
    """Without TF32 on a GPU, whatever the user allows elsewhere: it keeps 10 of 23 bits and would move codes.

    What is allowed counts for the whole process: of callers at the same time, the last to leave restores it.
    """
    global _num_inside, _allowed
    backend = torch.backends.cuda.matmul
    name, full = ("fp32_precision", "ieee") if hasattr(backend, "fp32_precision") else ("allow_tf32", False)
    with _entering:
        if not _num_inside:
            _allowed = getattr(backend, name)
            setattr(backend, name, full)
        _num_inside += 1
    try:
        yield
    finally:
        with _entering:
            _num_inside -= 1
            if not _num_inside:
                setattr(backend, name, _allowed)


@torch.no_grad()
@full_float32()
def nearest_code(
    vectors: Tensor,
    codebook: Tensor,
    project: Callable[[Tensor], Tensor] | None = None,
    half_norms: Tensor | None = None,
    enter: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Index of the row of `codebook` nearest to each of `vectors`, the lowest of equals.

    ||x - c||^2 and ||c||^2 / 2 - x.c have the same minimum over c. Computed in float32, tile by tile: beside the
    arguments, memory holds `SEARCH_TILE` distances and one tile of codes. On a CPU the code of a vector does not
    depend on how many others it is searched with.

    Args:
        vectors: (N, D). For one with NaN the result is some valid code.
        codebook: (K, D).
        project: makes the codes of some rows, (k, D) -> (k, D); by default they are the rows.
        half_norms: (K,), what `half_squared_norms` gives for the codes, where it is already known.
        enter: takes vectors to where x.c has to be measured, (n, D) -> (n, D); by default they are there. With it
            `codebook` need not hold the codes themselves, and `half_norms` must be given.

    Returns:
        (N,) int64.
    """
    # Matrix products of a few rows take other paths, which round differently: no tile has fewer than 8.
    padded = F.pad(vectors.float(), (0, 0, 0, max(8 - len(vectors), 0)))
    negated = -(padded if enter is None else enter(padded))
    best = negated.new_full((len(negated),), math.inf)
    codes = torch.zeros(len(negated), dtype=torch.int64, device=vectors.device)
    scale = 1 if vectors.device.type == "cpu" else 16  # a GPU needs larger tiles to be busy
    num_tiles = math.ceil(len(codebook) / (CODE_TILE * scale))
    vector_tile = max(SEARCH_TILE * scale * num_tiles // len(codebook), 16)
    parts = [tensor.tensor_split(math.ceil(len(negated) / vector_tile)) for tensor in (negated, best, codes)]
    first = 0
    for rows in codebook.tensor_split(num_tiles):
        tile = rows.float() if project is None else project(rows.float())
        norms = half_squared_norms(tile) if half_norms is None else half_norms[first : first + len(tile)]
        for some, best_of_some, codes_of_some in zip(*parts, strict=True):
            scores = linear(some, tile, norms)  # (n, D), (k, D) -> (n, k)
            _keep_lowest(scores, first, best_of_some, codes_of_some)
        first += len(tile)
    return codes[: len(vectors)]


def half_squared_norms(rows: Tensor) -> Tensor:
    """||c||^2 / 2 of every row c: (n, D) -> (n,)."""
    return rows.square().sum(1) / 2


def half_squared_norms_of_products(rows: Tensor, weight: Tensor) -> Tensor:
    """||weight r||^2 / 2 of every row r, (n, D) and (D, D) -> (n,), at little more than half the price of the products.

    With weight = Q R, R upper triangular, it is ||R r||^2 / 2, and half of R is zero. Stripes of R are few, and tiles
    of rows stay in the processor's cache: copying them for each product would else cost as much as the product.
    """
    triangle = torch.linalg.qr(weight, mode="r").R
    norms = rows.new_zeros(len(rows))
    step = max(rows.shape[1] // 4, 16)
    for tile, place in zip(rows.split(4 * CODE_TILE), norms.split(4 * CODE_TILE), strict=True):
        for first in range(0, rows.shape[1], step):
            products = linear(tile[:, first:].contiguous(), triangle[first : first + step, first:].contiguous())
            place += half_squared_norms(products)
    return norms


class SquaredNormsOfProducts(torch.autograd.Function):
    """||weight r||^2 of every row r, (n, D) and (D, D) -> (n,), with gradient to both.

    Neither it nor its gradient holds more products than those of a tile of rows.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weight)
        # Without the triangle of the search: a CUDA graph need not be able to hold a QR decomposition.
        norms = rows.new_empty(len(rows))
        for tile, place in zip(rows.split(4 * CODE_TILE), norms.split(4 * CODE_TILE), strict=True):
            place.copy_(linear(tile, weight).square().sum(1))
        return norms

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor]:
        rows, weight = ctx.saved_tensors
        scatter = torch.zeros_like(weight)  # the sum of g r r^T over rows r, g the gradient at their norms
        scaled_rows = []
        for tile, of_tile in zip(rows.split(4 * CODE_TILE), gradient.split(4 * CODE_TILE), strict=True):
            scaled = tile * of_tile[:, None]
            scatter += linear(tile.T.contiguous(), scaled.T.contiguous())
            if ctx.needs_input_grad[0]:
                scaled_rows.append(linear(scaled, weight.T @ weight))
        return 2 * torch.cat(scaled_rows) if scaled_rows else None, 2 * weight @ scatter


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`, where no gradient is wanted at the full matrix rate of a CPU.

    In float32 torch leaves matrix products to its BLAS library, which on many CPUs reaches half the rate of oneDNN.
    Tensors of oneDNN's own layout make torch choose that one.
    """
    is_packable = x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or not is_packable:
        return F.linear(x, weight, bias)
    packed_bias = None if bias is None else bias.detach().to_mkldnn()
    return F.linear(x.detach().to_mkldnn(), weight.detach().to_mkldnn(), packed_bias).to_dense()


def _keep_lowest(scores: Tensor, first: int, best: Tensor, codes: Tensor) -> None:
    """Where a row of `scores` (n, k) undercuts `best` (n,), put its minimum there and its place into `codes` (n,)."""
    if scores.device.type == "cpu":
        # Finding a minimum is ten times cheaper than finding its place, and few tiles bring a new one.
        lowest = scores.amin(1)
        rows = (lowest < best).nonzero().squeeze(1)
        codes[rows] = scores[rows].argmin(1) + first
    else:
        lowest, places = scores.min(1)
        codes.copy_(torch.where(lowest < best, places + first, codes))
    torch.minimum(best, lowest, out=best)
