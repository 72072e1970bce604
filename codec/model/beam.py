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

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from codec.errors import CodecWarning, ModelError

GROUP = 64
"""Numbers that are compared before the smallest are sought among the groups' smallest; a power of two."""

ROWS = 8
"""Of a product with so few columns, in which it is quickest on a CPU: twice as many take three times as long."""


class Tables(NamedTuple):
    """What the weights of a `PredictiveSimVQ` come to, for the search.

    What codes say to a later frame, H numbers to the network and D by the taps, is added up; the network's part is cut
    off at 0, and both together make prediction and gains.
    """

    search: Tensor  # (2 D + 1, K), `search_table` of the codebook
    codes: Tensor  # (K, 2 D), the effective codes, to be multiplied by their gains, and the rows that the network hears
    echoes: Tensor  # (2 D, P * (H + D)), what those say to the P frames after them: each to its part, else 0
    silence: Tensor  # (H + D,), what is said without any code; 0 by the taps
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
    costs = F.pad(tables.search.new_zeros(batch, 1), (0, num_paths - 1), value=torch.inf)
    undecided = torch.zeros(batch * num_paths, delay, dtype=torch.int64, device=costs.device)
    memory = tables.echoes.shape[1] // len(tables.silence)
    return Paths(costs, tables.silence.repeat(batch * num_paths, memory, 1), undecided)


def follow(vectors: Tensor, paths: Paths, tables: Tables, largest_gain: float) -> tuple[Paths, Tensor, Tensor]:
    """Continue all paths by some frames; on a GPU by one kernel, where it works and suits, else on the CPU.

    Args:
        vectors: (B, N, D), latents, N >= 1.
        paths: those so far.
        tables: of the quantizer.
        largest_gain: gains beyond it, or below its inverse, are set to it.

    Returns:
        The paths then; (B, N) the code that each frame decides, which is that of L frames earlier; (B, N, L) the codes
        that the best path has for the L frames up to each.

    Raises:
        ModelError: a CUDA graph is being recorded, and the kernel cannot be used.
    """
    if torch.compiler.is_compiling():  # it does not know NumPy arrays that share their memory with tensors
        return torch.compiler.disable(follow)(vectors, paths, tables, largest_gain)
    if vectors.is_cuda and (kernel := _kernel(vectors.device)) and kernel.suits(paths, tables):
        return kernel.follow(vectors, paths, tables, largest_gain)
    if vectors.device.type != "cpu":
        if vectors.is_cuda and torch.cuda.is_current_stream_capturing():
            raise ModelError(
                "codes can be chosen in a recorded step only by the Triton kernel, which does not work here or for "
                "these sizes; set training.record=false"
            )
        on_cpu = vectors.cpu(), Paths(*(tensor.cpu() for tensor in paths)), Tables(*(tensor.cpu() for tensor in tables))
        paths, *codes = follow(*on_cpu, largest_gain)
        decided, pending = (tensor.to(vectors.device) for tensor in codes)
        return Paths(*(tensor.to(vectors.device) for tensor in paths)), decided, pending
    beam = _Beam(vectors, paths, tables, largest_gain)
    with np.errstate(all="ignore"):  # of latents that are not finite the loss tells
        for frame in range(vectors.shape[1]):
            beam.add_errors(frame)
            beam.choose(frame)
            beam.predict(frame)
    of_best = torch.from_numpy(beam.of_items[1:, :, 0]).transpose(0, 1)  # (B, N, L + 1)
    return beam.paths(), of_best[..., 0], of_best[..., 1:]


@functools.cache
def _kernel(device: torch.device) -> ModuleType | None:
    """The module that does all of this at once, if it works on a GPU: it needs triton, and that a C compiler."""
    shapes = (3, 4), (4, 2), (2, 2), (2,), (2, 2), (2,)  # with all of D, P and H 1, and four codes
    tables = Tables(*(torch.ones(shape, dtype=torch.float32, device=device) for shape in shapes))
    try:
        from codec.model import beam_gpu

        beam_gpu.follow(tables.search[None, :1, :1], start(1, 1, 0, tables), tables, 1.0)
    except ImportError:
        return None
    except Exception as error:  # each thing that may be missing has its own
        warnings.warn(f"triton does not work here, codes are chosen more slowly: {error}", CodecWarning, stacklevel=2)
        return None
    return beam_gpu


class _Beam:
    """The work on a frame, in arrays that are made once, with all views of them, and written over by each frame.

    With so few numbers to a frame, asking for an operation takes longer than computing it. NumPy is the quicker to ask;
    torch does what is large, in the same memory.
    """

    def __init__(self, vectors: Tensor, paths: Paths, tables: Tables, largest_gain: float):
        batch, num_paths = paths.costs.shape
        num_all, memory, width = paths.ahead.shape  # BM, P, H + D
        codebook_size, dim = tables.codes.shape[0], tables.codes.shape[1] // 2
        self.codebook_size = codebook_size
        self.search = tables.search
        self.codes, self.echoes = tables.codes.numpy(), tables.echoes.numpy()
        self.floor = np.array([0, -np.inf], np.float32).repeat((width - dim, dim))  # only the network's part is cut off
        self.largest_log_gain = np.float32(math.log(largest_gain))

        now_and_ahead = torch.cat([paths.ahead, tables.silence.expand(num_all, 1, width)], dim=1).numpy()
        self.now, self.ahead = now_and_ahead[:, 0], now_and_ahead[:, :memory]
        self.now_and_ahead = now_and_ahead
        self.of_parents = np.empty_like(now_and_ahead)  # in the order of the paths that were continued
        self.ahead_of_parents = self.of_parents[:, 1:]
        # Products are made signal by signal: among more rows they would be rounded otherwise.
        self.said = np.empty((batch, num_paths, width), np.float32)  # `now`, raised to the floor
        self.flat_said = self.said.reshape(num_all, width)
        self.new = np.empty((num_all, memory, width), np.float32)  # what the chosen codes say to the frames ahead
        self.new_of_items = self.new.reshape(batch, num_paths, -1)

        # What is said, times `signed`, plus `offsets` of the frame: vector - prediction, and the gains' logarithms.
        signs = np.array([-1, 1], np.float32).repeat(dim)
        self.signed = tables.expectation.numpy() * signs
        self.offsets = F.pad(vectors, (0, dim)).transpose(0, 1)[:, :, None].numpy() + signs * tables.offset.numpy()
        # (B, M, 2 D): of each path the rest, vector - prediction, and the gains, at first as logarithms.
        self.told = np.empty((batch, num_paths, 2 * dim), np.float32)
        self.flat_told = self.told.reshape(num_all, 2 * dim)
        # Of the paths that are continued: what they were told, and the two parts of their code, see `Tables.codes`.
        self.told_of_parents, self.chosen = np.empty_like(self.flat_told), np.empty_like(self.flat_told)
        self.chosen_of_items = self.chosen.reshape(batch, num_paths, 2 * dim)
        self.rest, self.gains = self.flat_told[:, :dim], self.flat_told[:, dim:]
        self.innovation, self.gains_of_parents = self.chosen[:, :dim], self.told_of_parents[:, dim:]
        # A query is (rest, gain) * gain, and the cost so far with ||rest||^2: a row for `search_table`.
        self.pairs, self.both = self.flat_told.reshape(num_all, 2, dim), self.gains[:, None]
        self.square, self.ones = np.empty_like(self.rest), np.ones(dim, np.float32)
        self.distance = np.empty(num_all, np.float32)
        self.query = vectors.new_empty(num_all, 2 * dim + 1)
        self.products = self.query[:, : 2 * dim].unflatten(1, (2, dim)).numpy()
        self.cost = self.query[:, 2 * dim].numpy()
        self.errors = vectors.new_empty(num_all, codebook_size)
        self.blocks = list(zip(self.query.split(ROWS), self.errors.split(ROWS), strict=True))

        self.smallest = Smallest(self.errors.view(batch, -1), num_paths)
        self.smallest.values[:] = paths.costs.numpy()
        self.costs = self.smallest.values  # (B, M)
        self.flat_costs, self.flat_places = self.costs.reshape(-1), self.smallest.places.reshape(-1)
        self.parents = np.empty_like(self.flat_places)
        self.is_given_up = np.empty(self.costs.shape, bool)
        # The codes of a frame and of the L before it, of all paths; at first of the frame before.
        delay = paths.undecided.shape[1]
        self.histories = np.empty((vectors.shape[1] + 1, num_all, delay + 1), np.int64)
        self.histories[0, :, 1:] = paths.undecided.numpy()
        self.of_items = self.histories.reshape(-1, batch, num_paths, delay + 1)

    def add_errors(self, frame: int) -> None:
        """Set `errors` to the cost of each path with each code for a frame's vector."""
        np.maximum(self.now, self.floor, out=self.flat_said)
        np.matmul(self.said, self.signed, out=self.told)
        np.add(self.told, self.offsets[frame], out=self.told)
        np.maximum(self.gains, -self.largest_log_gain, out=self.gains)
        np.minimum(self.gains, self.largest_log_gain, out=self.gains)
        np.exp(self.gains, out=self.gains)
        np.multiply(self.pairs, self.both, out=self.products)
        np.multiply(self.rest, self.rest, out=self.square)
        np.dot(self.square, self.ones, out=self.distance)
        np.add(self.distance, self.flat_costs, out=self.cost)
        for query, errors in self.blocks:
            torch.mm(query, self.search, out=errors)

    def choose(self, frame: int) -> None:
        """Continue the best paths by their codes, and give up those that began otherwise than the best."""
        before, now, of_items = self.histories[frame], self.histories[frame + 1], self.of_items[frame + 1]
        self.smallest.find()
        np.divmod(self.flat_places, self.codebook_size, out=(self.parents, now[:, -1]))
        before[:, 1:].take(self.parents, axis=0, out=now[:, :-1], mode="clip")
        np.subtract(self.costs, self.costs[:, :1], out=self.costs)
        np.not_equal(of_items[:, :, 0], of_items[:, :1, 0], out=self.is_given_up)
        np.putmask(self.costs, self.is_given_up, np.inf)

    def predict(self, frame: int) -> None:
        """Let the codes of a frame say what they mean for those after it."""
        self.flat_told.take(self.parents, axis=0, out=self.told_of_parents, mode="clip")
        self.codes.take(self.histories[frame + 1, :, -1], axis=0, out=self.chosen, mode="clip")
        np.multiply(self.innovation, self.gains_of_parents, out=self.innovation)
        np.matmul(self.chosen_of_items, self.echoes, out=self.new_of_items)
        self.now_and_ahead.take(self.parents, axis=0, out=self.of_parents, mode="clip")
        np.add(self.ahead_of_parents, self.new, out=self.ahead)

    def paths(self) -> Paths:
        """Where the last frame led."""
        costs, ahead, undecided = self.costs, self.ahead, self.histories[-1, :, 1:]
        return Paths(*(torch.from_numpy(array.copy()) for array in (costs, ahead, undecided)))


class Smallest:
    """The smallest numbers of each row of a tensor that is written over again and again.

    They are all in the groups whose smallest is among the smallest of all, so most numbers are looked at only once.

    Args:
        numbers: (B, n) float, contiguous.
        count: how many to find in each row.

    Attributes:
        values: (B, count), the smallest after `find`, ascending.
        places: (B, count) int64, where they are in the flattened tensor.
    """

    def __init__(self, numbers: Tensor, count: int):
        num_rows, size = numbers.shape
        group = math.gcd(size, GROUP)
        if size < group * count:
            group = 1
        self.count = count
        self.numbers = numbers.numpy().reshape(-1)
        self.grouped = numbers.view(num_rows, group, -1)  # every (n / group)-th number is in the same group
        self.minima = numbers.new_empty(num_rows, size // group)
        firsts = np.arange(0, num_rows * size, size)[:, None]
        self.members = np.arange(0, size, size // group) + firsts[:, None]  # (B, 1, group)
        self.least = numbers.new_empty(num_rows, count)
        self.best = numbers.new_empty(num_rows, count, dtype=torch.int64)
        self.best_groups = self.best[:, :, None].numpy()
        self.candidates = np.empty((num_rows, count, group), np.int64)
        self.flat_candidates = self.candidates.reshape(-1)
        found, slots = numbers.new_empty(num_rows, count * group), self.best.new_empty(num_rows, count)
        self.found, self.flat_found = found, found.numpy().reshape(-1)
        self.first_slots, self.slots = np.arange(0, found.numel(), found.shape[1])[:, None], slots.numpy()
        self.sorted = numbers.new_empty(num_rows, count), slots
        self.values, self.places = self.sorted[0].numpy(), np.empty_like(self.slots)

    def find(self) -> None:
        """Set `values` and `places` for the numbers as they are now."""
        torch.amin(self.grouped, 1, out=self.minima)
        torch.topk(self.minima, self.count, largest=False, sorted=False, out=(self.least, self.best))
        np.add(self.best_groups, self.members, out=self.candidates)
        self.numbers.take(self.flat_candidates, out=self.flat_found, mode="clip")
        torch.topk(self.found, self.count, largest=False, out=self.sorted)
        np.add(self.slots, self.first_slots, out=self.slots)
        self.flat_candidates.take(self.slots, out=self.places, mode="clip")
