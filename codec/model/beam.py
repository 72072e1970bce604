"""Delayed decision: codes of a predictive quantizer, chosen by what they lead to.

Where a code takes part in predicting the frames after it, the nearest code is not the best one. So the M best sequences
of codes so far, the paths, are all continued, and a code is decided L frames later, from the path that is then best.
Paths that began otherwise are given up, so what was decided is one sequence, which a decoder can follow.

Legend: B batch, N frames, D width of the latent, K codes, P frames that a prediction looks back, M paths, L frames of
delay. The paths of all items lie in one dimension, BM.

Source: the (M, L) algorithm, Jelinek and Anderson, 1971.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from codec.model.search import half_squared_norms

GROUP = 64
"""Numbers that are compared before the smallest are sought among the groups' smallest."""


class Tables(NamedTuple):
    """What each code means for its frame and for the P frames after it."""

    search: Tensor  # (D + 1, K), `search_table` of the codebook
    echoes: Tensor  # (K, P, D), its part of their predictions, in units of its gain
    gain_echoes: Tensor  # (K, P), the factors by which it changes their gains


class Paths(NamedTuple):
    """The sequences of codes that are being followed, the best of each item first."""

    costs: Tensor  # (B, M) squared error so far, less that of the best; infinite for those given up
    predictions: Tensor  # (BM, P, D), what the codes so far say about the next P frames
    gains: Tensor  # (BM, P), of these frames
    undecided: Tensor  # (BM, L), the last codes; zeros in place of those before the first


def search_table(codebook: Tensor) -> Tensor:
    """(K, D) -> (D + 1, K), with which one product gives the distances of vectors to all codes at any gain.

    ||v - g e||^2 = ||v||^2 + 2 (g v, g^2) . (-e, ||e||^2 / 2).
    """
    return torch.cat([-codebook, half_squared_norms(codebook)[:, None]], dim=1).T


def start(batch: int, num_paths: int, delay: int, tables: Tables) -> Paths:
    """One path, without any code so far."""
    _, memory, width = tables.echoes.shape
    costs = tables.search.new_full((batch, num_paths), torch.inf)
    costs[:, 0] = 0
    return Paths(
        costs,
        costs.new_zeros(batch * num_paths, memory, width),
        costs.new_ones(batch * num_paths, memory),
        torch.zeros(batch * num_paths, delay, dtype=torch.int64, device=costs.device),
    )


def follow(vectors: Tensor, paths: Paths, tables: Tables, largest_gain: float) -> tuple[Paths, Tensor, Tensor]:
    """Continue all paths by some frames.

    Args:
        vectors: (B, N, D), latents, N >= 1.
        paths: those so far.
        tables: of the quantizer.
        largest_gain: gains beyond it, or below its inverse, are set to it.

    Returns:
        The paths then; (B, N) the code that each frame decides, which is that of L frames earlier; (B, N, L) the codes
        that the best path has for the L frames up to each.
    """
    batch, num_paths = paths.costs.shape
    search, echoes, gain_echoes = tables
    codebook_size = search.shape[1]
    first_paths = num_paths * torch.arange(batch, device=vectors.device)[:, None]
    costs, predictions, next_gains, undecided = paths
    decided, pending = [], []
    for vector in vectors.repeat_interleave(num_paths, dim=0).unbind(1):  # (BM, D)
        gains = next_gains[:, :1].clamp(1 / largest_gain, largest_gain)  # (BM, 1)
        rest = vector - predictions[:, 0]
        query = torch.cat([gains * rest, gains * gains], dim=1)
        so_far = costs.view(-1, 1) + rest.square().sum(1, keepdim=True)
        errors = torch.addmm(so_far, query, search, alpha=2)  # (BM, K)
        costs, chosen = smallest(errors.view(batch, -1), num_paths)  # (B, M)
        parents = (chosen // codebook_size + first_paths).view(-1)
        codes = (chosen % codebook_size).view(-1)
        kept = F.pad(predictions[:, 1:].index_select(0, parents), (0, 0, 0, 1))
        predictions = kept.addcmul_(gains.index_select(0, parents)[..., None], echoes.index_select(0, codes))
        kept = F.pad(next_gains[:, 1:].index_select(0, parents), (0, 1), value=1)
        next_gains = kept.mul_(gain_echoes.index_select(0, codes))
        history = torch.cat([undecided.index_select(0, parents), codes[:, None]], dim=1)  # (BM, L + 1)
        oldest = history[:, 0].view(batch, num_paths)
        costs = (costs - costs[:, :1]).masked_fill(oldest != oldest[:, :1], torch.inf)
        undecided = history[:, 1:]
        decided.append(oldest[:, 0])
        pending.append(undecided[::num_paths])
    return Paths(costs, predictions, next_gains, undecided), torch.stack(decided, 1), torch.stack(pending, 1)


def smallest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` smallest of each row of (B, n), ascending, and their places.

    They are all in the groups whose smallest is among the `count` smallest, so most values are looked at only once.
    """
    if values.shape[1] % GROUP or values.shape[1] < 2 * GROUP * count:
        found = values.topk(count, largest=False)
        return found.values, found.indices
    groups = values.unflatten(1, (-1, GROUP))
    best = groups.amin(2).topk(count, largest=False, sorted=False).indices  # (B, count)
    candidates = groups.gather(1, best[..., None].expand(-1, -1, GROUP)).flatten(1)
    found = candidates.topk(count, largest=False)
    return found.values, best.gather(1, found.indices // GROUP) * GROUP + found.indices % GROUP
