"""Causal building blocks of the stream family and their streaming state.

Every layer works on features (B, N, H) and sees only the past: a bounded number of frames to its left, never the right.
A layer called without a state starts from silence (zeros to the left). Called with a `State`, it continues where the
last call with that state ended, so a signal fed in pieces gives what the whole signal gives. There is one code path.

Legend: B batch, N frames, H hidden width, A attention heads.
"""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.model.timeconv import Linear, conv1d

MAX_FRAMES = 1536
"""Frames of a signal that networks see at once: more would take more memory, and each no less time."""

SMALLEST_SHARE = 1e-30
"""Of a frame in the attention to all: less counts as nothing."""

State = dict[nn.Module, tuple[Tensor, ...]]
"""What each layer must remember between two calls; empty at the start of a signal.

Tuples of tensors, which are replaced and never changed: copies of a state go on by themselves. Each is (B, ...),
so that a signal of a batch can go on without the others, and with new ones.
"""


def in_pieces(num_frames: int) -> list[slice]:
    """A signal's frames in pieces of about equal length: a short one at the end would be rounded otherwise."""
    count = -(-num_frames // MAX_FRAMES)
    bounds = [num_frames * number // count for number in range(count + 1)]
    return [slice(*pair) for pair in itertools.pairwise(bounds)]


def select_rows(state: State, rows: Sequence[int]) -> State:
    """What is remembered of some signals."""
    index = torch.tensor(rows, dtype=torch.int64, device="cpu")
    return {
        module: tuple(kept.index_select(0, index.to(kept.device)) for kept in memory)
        for module, memory in state.items()
    }


def join_rows(states: Sequence[State]) -> State:
    """What is remembered of all signals of streams that are in step, one or more, one after the other."""
    return {
        module: tuple(map(torch.cat, zip(*(state[module] for state in states), strict=True))) for module in states[0]
    }


def last_steps(x: Tensor, count: int, dim: int) -> Tensor:
    """The last `count` steps of `x` along `dim`, to remember: a copy where a view would keep far more in memory."""
    length = x.shape[dim]
    last = x.narrow(dim, length - count, count)
    return last if length <= 2 * count else last.clone()


def where_float64_is(x: Tensor) -> Tensor:
    """`x`, on the CPU unless its device surely has float64: GPUs of Apple and some of Intel have not."""
    return x if x.device.type in ("cpu", "cuda", "meta") else x.cpu()


def extend_left(module: nn.Module, x: Tensor, context: int, state: State | None) -> Tensor:
    """Put the `context` frames that came before `x` in front of it: (B, N, H) -> (B, context + N, H).

    They are zeros at the start of a signal. With a state, the last `context` frames are kept for the next call.
    """
    past = None if state is None else state.get(module)
    x = F.pad(x, (0, 0, context, 0)) if past is None else torch.cat([*past, x], dim=1)
    if state is not None:
        state[module] = (last_steps(x, context, dim=1),)
    return x


class CausalConv1d(nn.Conv1d):
    """Convolution over frames that sees `kernel_size - 1` past frames: (B, N, in) -> (B, N, out)."""

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        x = extend_left(self, x, self.kernel_size[0] - 1, state)
        # To the device first: not all have float64.
        weight = self.weight.to(x.device).to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.device).to(x.dtype)
        if self.training and self.groups > 1:  # `conv1d` has a slow backward pass then
            return F.conv1d(x.transpose(1, 2), weight, bias, groups=self.groups).transpose(1, 2)
        if self.groups == 1:
            # A matrix product rounds a frame alike among 100 others and among 1000, a wide kernel does not.
            x, weight = x.unfold(1, self.kernel_size[0], 1).flatten(2), weight.flatten(1).unsqueeze(2)
        return conv1d(x, weight, bias, groups=self.groups)


class ConvNeXtBlock(nn.Module):
    """Depthwise causal convolution, then a two-layer perceptron per frame, added to the input: (B, N, H) -> (B, N, H).

    Source: ConvNeXt (arXiv:2201.03545) in the 1-D form of Vocos (arXiv:2306.00814), made causal.
    """

    def __init__(self, width: int, expansion: int, kernel_size: int, layer_scale: float):
        super().__init__()
        self.depthwise = CausalConv1d(width, width, kernel_size, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand = Linear(width, expansion * width)
        self.contract = Linear(expansion * width, width)
        self.scale = nn.Parameter(torch.full((width,), layer_scale))

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        y = self.norm(self.depthwise(x, state))
        y = self.contract(F.gelu(self.expand(y)))
        return torch.addcmul(x, self.scale, y)


class WindowedAttention(nn.Module):
    """Self-attention over the last `window` frames, added to the input: (B, N, H) -> (B, N, H).

    Frame n looks at frames n - window + 1 .. n. A learned bias per head and distance replaces absolute positions, so
    the result does not depend on where in a recording a frame lies. Memory is linear in N: queries are handled in
    blocks of half a window, each against the window before its last frame and itself.

    Source: sliding-window attention of Longformer (arXiv:2004.05150), relative bias of T5 (arXiv:1910.10683).
    """

    def __init__(self, width: int, num_heads: int, window: int, layer_scale: float):
        super().__init__()
        self.num_heads = num_heads
        self.window = window
        self.norm = nn.LayerNorm(width)
        self.query_key_value = Linear(width, 3 * width)
        self.output = Linear(width, width)
        self.distance_bias = nn.Parameter(torch.zeros(num_heads, window))
        self.scale = nn.Parameter(torch.full((width,), layer_scale))

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        context = self.window - 1
        projected = self.query_key_value(self.norm(x)).unflatten(-1, (3, self.num_heads, -1))
        # By heads, (3, B, A, N, H / A), as products take them without a copy.
        query, present = projected.permute(2, 0, 3, 1, 4).split([1, 2])
        query = query.squeeze(0) * query.shape[-1] ** -0.5
        if state is None or self not in state:
            num_before = torch.zeros(1, dtype=torch.int64, device=x.device)  # frames of each signal
            memory = F.pad(present, (0, 0, context, 0))
        else:
            num_before, past = state[self]
            memory = torch.cat([past.transpose(0, 1), present], dim=3)
        if state is not None:
            num_frames = (num_before + x.shape[1]).expand(x.shape[0])
            state[self] = num_frames, last_steps(memory, context, dim=3).transpose(0, 1)
        num_absent = context - num_before[:, None]  # frames of the memory before the start of the signal, if positive
        key, value = memory
        size = max(self.window // 2, 1)
        bias = self._bias(min(size, x.shape[1]))
        blocks = []
        for start in range(0, x.shape[1], size):
            of_block = query[:, :, start : start + size]
            num_seen = of_block.shape[2] + context
            its_bias = bias[:, : of_block.shape[2], :num_seen]
            if start < context:
                is_absent = torch.arange(start, start + num_seen, device=x.device) < num_absent  # (B, M + window - 1)
                its_bias = its_bias.masked_fill(is_absent[:, None, None], -torch.inf)
            seen = slice(start, start + num_seen)
            blocks.append(self._attend(of_block, key[:, :, seen], value[:, :, seen], its_bias))
        return torch.addcmul(x, self.scale, self.output(torch.cat(blocks, dim=1)))

    def _bias(self, num_queries: int) -> Tensor:
        """What is added to the scores of M queries and the M + window - 1 frames that end with them: (A, M, ...)."""
        # Query i sits at memory position i + window - 1; the key at position j is that minus j frames away.
        i = torch.arange(num_queries, device=self.distance_bias.device)[:, None]
        j = torch.arange(num_queries + self.window - 1, device=self.distance_bias.device)[None, :]
        distance = i + self.window - 1 - j
        outside = (distance < 0) | (distance >= self.window)
        return self.distance_bias[:, distance.clamp(0, self.window - 1)].masked_fill(outside, -torch.inf)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        """Attend from M queries (B, A, M, width) to the M + window - 1 frames that end with the last of them."""
        # Written out because the fused kernels round differently with and without gradients, and decoding codes must
        # be bit-equal to the round trip either way.
        score = query @ key.transpose(-1, -2) + bias  # (B, A, M, M + window - 1)
        # Numbers too small for all bits of a float make a product four times as slow.
        share = F.threshold(score.softmax(dim=-1), SMALLEST_SHARE, 0.0)
        return (share.to(value.dtype) @ value).transpose(1, 2).flatten(2)
