"""Convolution over frames at the full matrix rate of a CPU, and derived weights kept for inference.

Plain functions of tensors and the two layers built on them; networks and configurations are unknown here. Features are
(B, N, C), the channels of one step next to each other in memory. B batch, N steps in time, C and D channels.
"""

import weakref
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

Derived = TypeVar("Derived")  # a tensor, or several
SMALLEST_DEVIATION = 1e-5  # of a channel, relative to its mean: below it there is only rounding


def conv1d(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, groups: int = 1) -> Tensor:
    """Convolve over time without padding, in the order in which features lie in memory.

    `torch.nn.functional.conv1d` copies its input to channel-major order and, like `linear`, leaves kernels of width 1
    to the BLAS library, which on many CPUs reaches half the rate of oneDNN's own kernels. So this is a two-dimensional
    convolution of height 1. On a CPU it has a stride of 2 along that single row: that changes no number, but makes
    torch choose oneDNN for every kernel width.

    Args:
        x: (B, N, C) float.
        weight: (D, C / groups, width).
        bias: (D,).
        stride: steps of the input per step of the output.
        groups: number of channel groups.

    Returns:
        (B, floor((N - width) / stride) + 1, D).
    """
    if x.shape[1] == weight.shape[2]:  # a single step, before which oneDNN would reorder all weights
        if groups == 1:
            return F.linear(x.transpose(1, 2).flatten(1), weight.flatten(1), bias).unsqueeze(1)
        if groups == x.shape[2] == len(weight):
            y = (x * weight.squeeze(1).T).sum(1, keepdim=True)
            return y if bias is None else y + bias
    image = x.transpose(1, 2).unsqueeze(2)  # (B, C, 1, N)
    steps = (2 if x.device.type == "cpu" else 1, stride)
    return F.conv2d(image, weight.unsqueeze(2), bias, stride=steps, groups=groups).squeeze(2).transpose(1, 2)


def identities(tensors: Iterable[Tensor]) -> tuple[object, ...]:
    """Of each tensor its storage, its place there, its type and how often torch has changed it in place.

    Not its address, which changes when the tensor is shared with another process and may be that of another later.
    """
    return tuple(
        (weakref.ref(t.untyped_storage()), t.storage_offset(), t.dtype, t.device, 0 if t.is_inference() else t._version)
        for t in tensors
    )


class DerivedWeight:
    """A tensor, or several, computed from parameters, kept as long as those parameters stay what they were.

    Parameters are recognised by their storage and by torch's count of in-place changes. A change behind torch's back
    (through `.data`) is not seen: modules begin another one when they move between training and evaluation.
    """

    def __init__(self) -> None:
        self._kept: tuple[tuple[object, ...], Any] | None = None  # of what, and what; in one, as threads share it

    def get(self, sources: tuple[Tensor, ...], compute: Callable[[], Derived]) -> Derived:
        """`compute()`, or what it gave last time if `sources` are unchanged. With gradients on always `compute()`."""
        if torch.is_grad_enabled():
            return compute()
        key = identities(sources)
        kept = self._kept
        if kept is None or kept[0] != key:
            self._kept = kept = key, compute()
        return kept[1]

    def __reduce__(self) -> tuple[type["DerivedWeight"], tuple[()]]:
        return DerivedWeight, ()  # copies, and those for other processes, have parameters of their own


class TimeConv1d(nn.Conv1d):
    """`torch.nn.Conv1d` on features (B, N, in) -> (B, M, out), without padding.

    With weight norm, and for kernels wider than 1 whose memory order has to change, the weight that is used is derived
    from the parameters; without gradients that happens once.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, groups=groups)
        self._derived = DerivedWeight()

    def forward(self, x: Tensor) -> Tensor:
        weight = self._derived.get(tuple(self.parameters()), self._ordered_weight)
        return conv1d(x, weight, self.bias, self.stride[0], self.groups)

    def _ordered_weight(self) -> Tensor:
        weight: Tensor = self.weight
        if weight.shape[2] == 1 or torch.is_grad_enabled():
            return weight
        return weight.transpose(1, 2).contiguous().transpose(1, 2)

    def standardize(self, output: Tensor) -> Tensor:
        """Scale and shift the layer so that `output`, (B, M, out) of its own making, had mean 0 and variance 1.

        Returns:
            What the layer would now have given. Channels that do not vary stay as they are.

        Source: the data-dependent start of weight normalization (arXiv:1602.07868, equation 6).
        """
        deviation, mean = torch.std_mean(output, dim=(0, 1), correction=0)  # (out,)
        varies = deviation > SMALLEST_DEVIATION * mean.abs()
        scale = torch.where(varies, 1 / deviation, 1.0)
        shift = torch.where(varies, -mean * scale, 0.0)
        parameters = dict(self.named_parameters())
        is_split = parametrize.is_parametrized(self, "weight")
        parameters["parametrizations.weight.original0" if is_split else "weight"].mul_(scale[:, None, None])
        parameters["bias"].mul_(scale).add_(shift)
        return output * scale + shift

    def train(self, mode: bool = True) -> "TimeConv1d":
        self._derived = DerivedWeight()
        return super().train(mode)


class Linear(nn.Linear):
    """`torch.nn.Linear` on features (B, N, in) -> (B, N, out), without gradients at the rate of `conv1d`."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or x.shape[1] == 1:  # one frame `conv1d` would bring here too, by a longer way
            return super().forward(x)
        return conv1d(x, self.weight.unsqueeze(2), self.bias)


def add_weight_norm(module: nn.Module) -> None:
    """Split the weight of every `TimeConv1d` below `module` into length and direction, for training."""
    for layer in module.modules():
        if isinstance(layer, TimeConv1d) and not parametrize.is_parametrized(layer, "weight"):
            weight_norm(layer)
