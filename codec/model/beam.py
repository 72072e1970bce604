"""Delayed decision: codes of a predictive quantizer, chosen by what they lead to.

Where a code takes part in predicting the frames after it, the nearest code is not the best one. So the M best sequences
of codes so far, the paths, are all continued, and a code is decided L frames later, from the path that is then best.
Paths that began otherwise are given up, so what was decided is one sequence, which a decoder can follow.

Legend: B batch, N frames, D width of the latent, K codes, P frames that a prediction looks back, H width of the network
that hears codes, M paths, L frames of delay. The paths of all items lie in one dimension, BM.

Source: the (M, L) algorithm, Jelinek and Anderson, 1971.
"""

import functools
import math
import warnings
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

GROUP = 64
"""Numbers that are compared before the smallest are sought among the groups' smallest; a power of two."""


class Tables(NamedTuple):
    """What the weights of a `PredictiveSimVQ` come to, for the search.

    What codes say to a later frame, H numbers to the network and D by the taps, is added up; the network's part is cut
    off at 0, and both together make prediction and gains.
    """

    search: Tensor  # (2 D + 1, K), `search_table` of the codebook
    codes: Tensor  # (K, 2 D), the effective codes, to be multiplied by their gains, and the rows that the network hears
    echoes: Tensor  # (2 D, P * (H + D)), what those say to the P frames after them: each to its part, else 0
    silence: Tensor  # (H + D,), what is said without any code; 0 by the taps
    floor: Tensor  # (H + D,), below which it is raised: 0 for the network, -inf for the taps
    expectation: Tensor  # (H + D, 2 D), the prediction and the logarithms of the gains; what the taps say is passed on
    offset: Tensor  # (2 D,), to be added


class Paths(NamedTuple):
    """The sequences of codes that are being followed, the best of each item first."""

    costs: Tensor  # (B, M) squared error so far, less that of the best; infinite for those given up
    ahead: Tensor  # (BM, P, H + D), what the codes so far say to the next P frames
    undecided: Tensor  # (BM, L), the last codes; zeros in place of those before the first


def search_table(codebook: Tensor) -> Tensor:
    """(K, D) -> (2 D + 1, K), with which one product gives the errors of all codes, at any gains, on top of a cost.

    c + ||v - g * e||^2 = (g * v, g^2, c + ||v||^2) . (-2 e, e^2, 1).
    """
    return torch.cat([-2 * codebook, codebook.square(), torch.ones_like(codebook[:, :1])], dim=1).T.contiguous()


def start(batch: int, num_paths: int, delay: int, tables: Tables) -> Paths:
    """One path, without any code so far."""
    costs = tables.search.new_full((batch, num_paths), torch.inf)
    costs[:, 0].zero_()
    undecided = torch.zeros(batch * num_paths, delay, dtype=torch.int64, device=costs.device)
    memory = tables.echoes.shape[1] // len(tables.silence)
    return Paths(costs, tables.silence.repeat(batch * num_paths, memory, 1), undecided)


def follow(vectors: Tensor, paths: Paths, tables: Tables, largest_gain: float) -> tuple[Paths, Tensor, Tensor]:
    """Continue all paths by some frames; on a GPU by one kernel, where it works and suits.

    Args:
        vectors: (B, N, D), latents, N >= 1.
        paths: those so far.
        tables: of the quantizer.
        largest_gain: gains beyond it, or below its inverse, are set to it.

    Returns:
        The paths then; (B, N) the code that each frame decides, which is that of L frames earlier; (B, N, L) the codes
        that the best path has for the L frames up to each.
    """
    if vectors.is_cuda and (kernel := _kernel(vectors.device)) and kernel.suits(paths, tables):
        result: tuple[Paths, Tensor, Tensor] = kernel.follow(vectors, paths, tables, largest_gain)
        return result
    num_paths = paths.costs.shape[1]
    beam = _Beam(paths, tables, vectors.shape[1], math.log(largest_gain))
    for frame, vector in enumerate(vectors.repeat_interleave(num_paths, dim=0).unbind(1)):
        beam.add_errors(vector)
        beam.choose(frame)
        beam.predict(frame)
    of_best = beam.histories[1:, ::num_paths].transpose(0, 1)  # (B, N, L + 1)
    return beam.paths(), of_best[..., 0], of_best[..., 1:]


@functools.cache
def _kernel(device: torch.device) -> ModuleType | None:
    """The module that does all of this at once, if it works on a GPU: it needs triton, and that a C compiler."""
    shapes = (3, 4), (4, 2), (2, 2), (2,), (2,), (2, 2), (2,)  # with all of D, P and H 1, and four codes
    tables = Tables(*(torch.ones(shape, device=device) for shape in shapes))
    try:
        from codec.model import beam_gpu

        beam_gpu.follow(tables.search[None, :1, :1], start(1, 1, 0, tables), tables, 1.0)
    except ImportError:
        return None
    except Exception as error:  # each thing that may be missing has its own
        warnings.warn(f"triton does not work here, codes are chosen more slowly: {error}", stacklevel=2)
        return None
    return beam_gpu


class _Beam:
    """The work on a frame, in tensors that are made once, with all views of them, and written over by each frame.

    With so few numbers to a frame, making a tensor takes longer than computing it.
    """

    def __init__(self, paths: Paths, tables: Tables, num_frames: int, largest_log_gain: float):
        batch, num_paths = paths.costs.shape
        num_all, memory, _ = paths.ahead.shape  # BM, P
        codebook_size, dim = tables.codes.shape[0], tables.codes.shape[1] // 2
        self.tables = tables
        self.codebook_size = codebook_size
        self.largest_log_gain = largest_log_gain
        self.first_paths = torch.arange(0, num_all, num_paths, device=paths.ahead.device)[:, None]

        silence = tables.silence.expand(num_all, 1, -1)
        self.now_and_ahead = torch.cat([paths.ahead, silence], dim=1)  # (BM, P + 1, H + D)
        self.now, self.ahead = self.now_and_ahead[:, 0], self.now_and_ahead[:, :memory]
        self.of_parents = torch.empty_like(self.now_and_ahead)  # in the order of the paths that were continued
        self.ahead_of_parents = self.of_parents[:, 1:]
        self.said, self.echoes = torch.empty_like(self.now), torch.empty_like(self.ahead)
        self.flat_echoes = self.echoes.flatten(1)
        self.expected = self.now.new_empty(num_all, 2 * dim)
        self.prediction, self.log_gains = self.expected.chunk(2, dim=1)
        self.gains, self.gains_of_parents, self.rest, self.square = self.now.new_empty(4, num_all, dim)
        self.query = self.now.new_empty(num_all, 2 * dim + 1)
        self.scaled_rest, self.squared_gains, self.cost = self.query.split([dim, dim, 1], dim=1)
        self.errors = self.now.new_empty(num_all, codebook_size)
        self.chosen = torch.empty_like(self.expected)
        self.innovation = self.chosen[:, :dim]

        self.smallest = Smallest(self.errors.view(batch, -1), num_paths)
        self.smallest.values.copy_(paths.costs)
        self.costs, self.places = self.smallest.values, self.smallest.places  # (B, M)
        self.costs_so_far, self.flat_places = self.costs.view(-1, 1), self.places.view(-1)
        self.parents = torch.empty_like(self.places)
        self.flat_parents = self.parents.view(-1)
        self.is_given_up = torch.empty_like(self.costs, dtype=torch.bool)
        # The codes of a frame and of the L before it, of all paths; at first of the frame before.
        delay = paths.undecided.shape[1]
        self.histories = self.places.new_empty(num_frames + 1, num_all, delay + 1)
        self.histories[0, :, 1:] = paths.undecided
        self.undecided, self.inherited = self.histories[:, :, 1:].unbind(), self.histories[1:, :, :delay].unbind()
        self.codes = self.histories[1:, :, delay].unbind()
        oldest = self.histories[1:, :, 0].unflatten(1, (batch, num_paths))
        self.oldest, self.decided = oldest.unbind(), oldest[..., :1].unbind()

    def add_errors(self, vector: Tensor) -> None:
        """Set `errors` to the cost of each path (BM,) with each code for a frame's vector (BM, D)."""
        torch.maximum(self.now, self.tables.floor, out=self.said)
        torch.addmm(self.tables.offset, self.said, self.tables.expectation, out=self.expected)
        torch.clamp(self.log_gains, -self.largest_log_gain, self.largest_log_gain, out=self.gains).exp_()
        torch.sub(vector, self.prediction, out=self.rest)
        torch.mul(self.rest, self.gains, out=self.scaled_rest)
        torch.mul(self.gains, self.gains, out=self.squared_gains)
        torch.mul(self.rest, self.rest, out=self.square)
        torch.sum(self.square, 1, keepdim=True, out=self.cost).add_(self.costs_so_far)
        torch.mm(self.query, self.tables.search, out=self.errors)

    def choose(self, frame: int) -> None:
        """Continue the best paths by their codes, and give up those that began otherwise than the best."""
        self.smallest.find()
        torch.floor_divide(self.places, self.codebook_size, out=self.parents)
        torch.sub(self.flat_places, self.flat_parents, alpha=self.codebook_size, out=self.codes[frame])
        self.parents.add_(self.first_paths)
        torch.index_select(self.undecided[frame], 0, self.flat_parents, out=self.inherited[frame])
        torch.ne(self.oldest[frame], self.decided[frame], out=self.is_given_up)
        self.costs.sub_(self.costs[:, :1].clone()).masked_fill_(self.is_given_up, torch.inf)

    def predict(self, frame: int) -> None:
        """Let the codes of a frame say what they mean for those after it."""
        torch.index_select(self.gains, 0, self.flat_parents, out=self.gains_of_parents)
        torch.index_select(self.tables.codes, 0, self.codes[frame], out=self.chosen)
        self.innovation.mul_(self.gains_of_parents)
        torch.mm(self.chosen, self.tables.echoes, out=self.flat_echoes)
        torch.index_select(self.now_and_ahead, 0, self.flat_parents, out=self.of_parents)
        torch.add(self.ahead_of_parents, self.echoes, out=self.ahead)

    def paths(self) -> Paths:
        """Where the last frame led."""
        return Paths(self.costs, self.ahead.clone(), self.undecided[-1].clone())


class Smallest:
    """The smallest numbers of each row of a tensor that is written over again and again.

    They are all in the groups whose smallest is among the smallest of all, so most numbers are looked at only once.

    Args:
        numbers: (B, n) float, contiguous.
        count: how many to find in each row.

    Attributes:
        values: (B, count), the smallest after `find`, ascending.
        places: (B, count) int64, where they are.
    """

    def __init__(self, numbers: Tensor, count: int):
        size = numbers.shape[1]
        group = math.gcd(size, GROUP)
        if size < group * count:
            group = 1
        self.count, self.group, self.shift = count, group, group.bit_length() - 1
        self.groups = numbers.view(-1, group)
        self.grouped = numbers.view(len(numbers), -1, group)
        self.first_groups = torch.arange(0, len(self.groups), size // group, device=numbers.device)[:, None]
        self.minima = numbers.new_empty(len(numbers), size // group)
        self.values, self.least = numbers.new_empty(2, len(numbers), count)
        integers = torch.empty(5, len(numbers), count, dtype=torch.int64, device=numbers.device)
        self.places, self.best, self.chosen, self.slots, self.offset = integers
        self.flat_chosen = self.chosen.view(-1)
        self.candidates = numbers.new_empty(len(numbers) * count, group)
        self.row_candidates = self.candidates.view(len(numbers), -1)

    def find(self) -> None:
        """Set `values` and `places` for the numbers as they are now."""
        torch.amin(self.grouped, 2, out=self.minima)
        torch.topk(self.minima, self.count, largest=False, sorted=False, out=(self.least, self.best))
        torch.add(self.best, self.first_groups, out=self.chosen)
        torch.index_select(self.groups, 0, self.flat_chosen, out=self.candidates)
        torch.topk(self.row_candidates, self.count, largest=False, out=(self.values, self.places))
        # The k-th of the candidates is number k % group of its group, of which it says which one that was.
        torch.bitwise_right_shift(self.places, self.shift, out=self.slots)
        torch.gather(self.best, 1, self.slots, out=self.offset)
        self.places.add_(self.offset.sub_(self.slots), alpha=self.group)
