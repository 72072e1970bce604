"""`beam.follow` for a GPU: all frames in one Triton kernel.

Frame by frame, the search is some forty operations that are each so small that a GPU spends most of its time between
them. Here every item of a batch is followed from its first frame to its last by one block of threads, which keeps to
itself: nothing waits for another block, and what a code depends on does not depend on the rest of the batch.

What threads tell each other goes through small tables in global memory, which stay in the cache: one with what the
errors of a frame are made of, and two of the paths' state, of which each frame reads one and writes the other.

Legend as in `beam`, but K codes are looked at W at a time.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from codec.model.beam import Paths, Tables

TILE = 1 << 14
"""The most numbers that a block looks at once: 64 to each of its threads, which can remember so many."""

AT_ONCE = 1 << 13
"""The most errors that a block looks at once, next to what they are made of."""

NUM_WARPS = 8

LARGEST_QUERY = 256
"""The largest 2 M D: each thread keeps what the errors are made of to itself while it looks at codes."""

LAST = tl.constexpr(2**63 - 1)  # in the order of `_smallest`


def suits(paths: Paths, tables: Tables) -> bool:
    """Whether the kernel can do it: what is shared out among threads has to be a power of two, and not too much."""
    (codebook_size, dim), num_paths, memory = _sizes(tables), paths.costs.shape[1], paths.ahead.shape[1]
    at_once = _codes_at_once(num_paths, codebook_size)
    are_powers = all(size & (size - 1) == 0 for size in (num_paths, codebook_size))
    hidden = triton.next_power_of_2(len(tables.silence) - dim)
    widest = max(hidden, triton.next_power_of_2(dim)) * triton.next_power_of_2(max(memory, dim))
    widest = max(widest, triton.next_power_of_2(paths.undecided.shape[1] + 1))
    most = num_paths * max(widest, num_paths * codebook_size // max(at_once, 1))
    return are_powers and num_paths <= at_once and most <= TILE and 2 * num_paths * dim <= LARGEST_QUERY


def _sizes(tables: Tables) -> tuple[int, int]:
    """K and D."""
    return len(tables.codes), tables.codes.shape[1] // 2


def _codes_at_once(num_paths: int, codebook_size: int) -> int:
    """W, small enough for the errors of all paths."""
    return min(AT_ONCE // max(num_paths, 8), codebook_size)


def follow(vectors: Tensor, paths: Paths, tables: Tables, largest_gain: float) -> tuple[Paths, Tensor, Tensor]:
    """As `beam.follow`; what it is given must suit, and be on one GPU."""
    batch, num_frames, dim = vectors.shape
    num_all, memory, _ = paths.ahead.shape
    num_paths, delay, (codebook_size, _) = paths.costs.shape[1], paths.undecided.shape[1], _sizes(tables)
    costs = paths.costs.clone()
    ahead = paths.ahead.new_empty(2, *paths.ahead.shape)
    histories = paths.undecided.new_empty(2, num_all, delay + 1)
    ahead[0], histories[0, :, 1:] = paths.ahead, paths.undecided
    query = costs.new_empty(batch, 2 * dim + 1, num_paths)
    of_best = histories.new_empty(batch, num_frames, delay + 1)
    with torch.cuda.device_of(vectors):
        _follow[(batch,)](
            vectors.contiguous(),
            tables.search,
            tables.codes,
            tables.echoes,
            tables.silence,
            tables.expectation.T.contiguous(),
            tables.offset,
            costs,
            ahead,
            histories,
            query,
            of_best,
            num_frames,
            math.log(largest_gain),
            D=dim,
            H=len(tables.silence) - dim,
            K=codebook_size,
            P=memory,
            M=num_paths,
            L=delay,
            W=_codes_at_once(num_paths, codebook_size),
            num_warps=NUM_WARPS,
            num_stages=1,
        )
    last = num_frames % 2
    return Paths(costs, ahead[last], histories[last, :, 1:]), of_best[..., 0], of_best[..., 1:]


@triton.jit(do_not_specialize=["vectors", "num_frames"])
def _follow(
    vectors: tl.tensor,  # (B, N, D)
    search: tl.tensor,  # (2 D + 1, K), of which the first D rows are enough, -2 e
    code_table: tl.tensor,  # (K, 2 D)
    echoes: tl.tensor,  # (2 D, P (H + D)); innovations say nothing to the network, nor rows anything by the taps
    silence: tl.tensor,  # (H + D,)
    expectation: tl.tensor,  # (2 D, H + D), the transpose of that of `Tables`
    offset: tl.tensor,  # (2 D,)
    costs: tl.tensor,  # (B, M), read and written over
    ahead: tl.tensor,  # (2, BM, P, H + D), of which the first is that before the first frame
    histories: tl.tensor,  # (2, BM, L + 1), the codes of a frame and of those before it, likewise
    query: tl.tensor,  # (B, 2 D + 1, M), what errors are made of: the rest of a vector, half the gains, and the cost
    of_best: tl.tensor,  # (B, N, L + 1), the history of each frame's best path
    num_frames: tl.tensor,
    largest_log_gain: tl.tensor,
    D: tl.constexpr,
    H: tl.constexpr,
    K: tl.constexpr,
    P: tl.constexpr,
    M: tl.constexpr,
    L: tl.constexpr,
    W: tl.constexpr,
) -> None:
    item = tl.program_id(0).to(tl.int64)
    num_all = tl.num_programs(0).to(tl.int64) * M
    vectors += item * num_frames * D
    query += item * (2 * D + 1) * M
    of_best += item * num_frames * (L + 1)
    size = P * (H + D)  # of a row of `ahead`
    m = tl.arange(0, M)
    d = tl.arange(0, triton.next_power_of_2(D))
    h = tl.arange(0, triton.next_power_of_2(H))
    age = tl.arange(0, triton.next_power_of_2(L + 1))
    of_mean = d[None, :, None] * (H + D) + h[None, None, :]
    is_weight = (h[None, None, :] < H) & (d[None, :, None] < D)
    cost = tl.load(costs + item * M + m)
    for frame in range(num_frames):
        before = (frame % 2) * num_all + item * M  # the first row of this item in the tables of the state
        after = num_all - (frame % 2) * num_all + item * M

        # What the codes so far say about this frame.
        rows = ahead + (before + m) * size
        heard = tl.load(rows[:, None] + h[None, :], mask=h[None, :] < H, other=0.0)
        hidden = tl.maximum(heard, 0.0)[:, None, :]
        mean = tl.sum(hidden * tl.load(expectation + of_mean, mask=is_weight, other=0.0), axis=2)
        log_gain = tl.sum(hidden * tl.load(expectation + D * (H + D) + of_mean, mask=is_weight, other=0.0), axis=2)
        mean += tl.load(offset + d, mask=d < D, other=0.0)[None, :]
        log_gain += tl.load(offset + D + d, mask=d < D, other=0.0)[None, :]
        gain = tl.exp(tl.minimum(tl.maximum(log_gain, -largest_log_gain), largest_log_gain))

        # What the errors are made of.
        is_value = d[None, :] < D
        foretold = tl.load(rows[:, None] + (H + d[None, :]), mask=is_value, other=0.0)
        vector = tl.load(vectors + d, mask=d < D, other=0.0)
        places = query + d[None, :] * M + m[:, None]
        tl.store(places, vector[None, :] - foretold - mean, mask=is_value)
        tl.store(places + D * M, 0.5 * gain, mask=is_value)
        tl.store(query + 2 * D * M + m, cost)
        tl.debug_barrier()

        # The best continuations are in the groups of codes W apart, of all paths, whose best are the best of all.
        best = tl.full((W,), float("inf"), tl.float32)
        for first in range(0, K, W):
            codes = first + tl.arange(0, W)
            best = tl.minimum(best, tl.min(_errors(query, search, m[:, None], codes[None, :], D, K, M), axis=0))
        _, groups = _smallest(best, tl.arange(0, W), M)
        codes = groups[:, None, None] + tl.arange(0, K // W)[None, :, None] * W
        of_paths = m[None, None, :]
        cost, places = _smallest(_errors(query, search, of_paths, codes, D, K, M), of_paths * K + codes, M)
        parents, codes = places // K, (places % K).to(tl.int64)

        # Those that began otherwise than the best are given up.
        history = tl.load(
            histories + ((before + parents) * (L + 1) + 1)[:, None] + age[None, :], mask=age[None, :] < L, other=0
        )
        history = tl.where(age[None, :] == L, codes[:, None], history)
        oldest = tl.sum(tl.where(age[None, :] == 0, history, 0), axis=1)
        is_given_up = oldest != tl.sum(tl.where(m == 0, oldest, 0))
        cost = tl.where(is_given_up, float("inf"), cost - tl.min(cost))
        tl.store(histories + ((after + m) * (L + 1))[:, None] + age[None, :], history, mask=age[None, :] <= L)
        is_of_best = (m[:, None] == 0) & (age[None, :] <= L)
        tl.store(of_best + m[:, None] + age[None, :], history, mask=is_of_best)

        # What their codes mean for the frames after this one: to the network, and by the taps.
        rows = (ahead + (before + parents) * size)[:, None]
        rows_after = (ahead + (after + m) * size)[:, None]
        w = tl.arange(0, triton.next_power_of_2(P * H))[None, :]
        places = (w // H) * (H + D) + w % H
        said = tl.load(rows + (H + D) + places, mask=w < (P - 1) * H, other=0.0)
        said += tl.load(silence + w % H, mask=w >= (P - 1) * H, other=0.0)
        for i in tl.static_range(D):
            row = tl.load(code_table + codes * (2 * D) + (D + i))
            said += row[:, None] * tl.load(echoes + (D + i) * size + places, mask=w < P * H, other=0.0)
        tl.store(rows_after + places, said, mask=w < P * H)
        w = tl.arange(0, triton.next_power_of_2(P * D))[None, :]
        places = (w // D) * (H + D) + H + w % D
        foretold = tl.load(rows + (H + D) + places, mask=w < (P - 1) * D, other=0.0)
        for i in tl.static_range(D):
            innovation = 2 * tl.load(query + (D + i) * M + parents) * tl.load(code_table + codes * (2 * D) + i)
            foretold += innovation[:, None] * tl.load(echoes + i * size + places, mask=w < P * D, other=0.0)
        tl.store(rows_after + places, foretold, mask=w < P * D)
        tl.debug_barrier()
        vectors += D
        of_best += L + 1
    tl.store(costs + item * M + m, cost)


@triton.jit
def _errors(
    query: tl.tensor,
    search: tl.tensor,
    m: tl.tensor,
    codes: tl.tensor,
    D: tl.constexpr,
    K: tl.constexpr,
    M: tl.constexpr,
) -> tl.tensor:
    """The cost of paths m with codes, for shapes that suit each other: c + ||v - g * e||^2, with -2 e from `search`."""
    errors = tl.load(query + 2 * D * M + m)
    for d in tl.static_range(D):
        rest = tl.load(query + d * M + m) + tl.load(query + (D + d) * M + m) * tl.load(search + d * K + codes)
        errors += rest * rest
    return errors


@triton.jit
def _smallest(numbers: tl.tensor, places: tl.tensor, M: tl.constexpr) -> tl.tensor:
    """The M smallest of numbers, ascending, and their places, which are given: >= 0, all different, lower first.

    With a number and its place in one integer they are found by M plain minima.
    """
    bits = numbers.to(tl.int32, bitcast=True)
    keys = (_in_order(bits).to(tl.int64) << 32) | places
    m = tl.arange(0, M)
    found = tl.full((M,), LAST, tl.int64)
    for i in range(M):
        smallest = tl.min(keys)
        found = tl.where(m == i, smallest, found)
        keys = tl.where(keys == smallest, LAST, keys)
    return _in_order((found >> 32).to(tl.int32)).to(tl.float32, bitcast=True), found.to(tl.int32)


@triton.jit
def _in_order(bits: tl.tensor) -> tl.tensor:
    """Bits of float32 to integers of the same order, and back."""
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
