"""The reference family's encoder: (B, 1, T) -> (B, D, N), a tower of strided convolutions and an LSTM.

Inside, features are (B, N, C), N counting steps at whatever rate the layer has.
"""

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.limits import LARGEST_COUNT, refuse, too_large, too_small
from codec.model.timeconv import TimeConv1d, add_weight_norm

CHUNK_SAMPLES = 48000
"""Samples, over the whole batch, that pass through the convolutions at once when no gradient is needed.

The widest features hold num_filters values per sample. Kept this small they stay in the cache, and the allocator hands
out the same memory again instead of asking the system for fresh, zeroed pages.
"""
MIN_FRAMES = 4
"""Frames in a stretch, at least: padding by reflection reads back from the end of the signal by more than one."""
LSTMState = tuple[Tensor, Tensor]


@dataclass
class SEANetEncoderConfig:
    """Settings of `SEANetEncoder`."""

    kind: str = "seanet"
    latent_dim: int = 512
    num_filters: int = 32  # channels after the first convolution, doubled by every stride
    strides: list[int] = field(default_factory=lambda: [2, 4, 5, 8])  # from the waveform to the frames
    kernel_size: int = 7  # of the first and the last convolution
    residual_kernel_size: int = 3
    num_lstm_layers: int = 2
    is_causal: bool = True  # pad on the left only
    has_weight_norm: bool = True  # convolutions keep length and direction apart; folded weights do not

    def __post_init__(self) -> None:
        self.strides = list(self.strides)
        sizes = ("latent_dim", "num_filters", "kernel_size", "residual_kernel_size")
        mistakes = too_small(self, "encoder", {0: ("num_lstm_layers",), 1: sizes})
        mistakes += too_large(self, "encoder", {"num_lstm_layers": LARGEST_COUNT})
        if self.num_filters % 2:
            mistakes.append(f"encoder.num_filters must be even, got {self.num_filters}")
        if not self.strides or min(self.strides) < 2:
            mistakes.append(f"encoder.strides must be numbers of at least 2, got {self.strides}")
        refuse(mistakes)

    @property
    def hop_length(self) -> int:
        """Samples per frame."""
        return math.prod(self.strides)


class SEANetEncoder(nn.Module):
    """Strided convolutions with a residual block in front of each, an LSTM over the frames, a last convolution.

    Source: SEANet (arXiv:2009.02095) as in EnCodec (arXiv:2210.13438); the networks of WavTokenizer (arXiv:2408.16532;
    not causal) and of the audio model of SimVQ (arXiv:2411.02038; causal).
    """

    def __init__(self, config: SEANetEncoderConfig):
        super().__init__()
        self.config = config
        self.hop_length = config.hop_length
        self.latent_dim = config.latent_dim
        width, is_causal = config.num_filters, config.is_causal
        self.first = PaddedConv1d(1, width, config.kernel_size, is_causal=is_causal)
        self.stages = nn.ModuleList()
        for stride in config.strides:
            self.stages.append(Stage(width, stride, config.residual_kernel_size, is_causal=is_causal))
            width *= 2
        self.lstm = nn.LSTM(width, width, config.num_lstm_layers, batch_first=True) if config.num_lstm_layers else None
        self.last = PaddedConv1d(width, config.latent_dim, config.kernel_size, is_causal=is_causal)
        if config.has_weight_norm:
            add_weight_norm(self)

    def forward(self, wav: Tensor) -> Tensor:
        """Encode whole signals: (B, 1, T) -> (B, D, N), N = ceil(T / hop_length).

        Without gradients the convolutions see a stretch of the signal at a time, with exactly the neighbourhood that
        its frames depend on. The result is that of one pass over the whole, and memory grows with the frames only.
        """
        num_frames = -(-wav.shape[-1] // self.hop_length)
        num_chunks = 1
        if not torch.is_grad_enabled():
            num_chunks = min(-(-wav.shape[0] * wav.shape[-1] // CHUNK_SAMPLES), max(num_frames // MIN_FRAMES, 1))
        edges = [num_frames * i // num_chunks for i in range(num_chunks + 1)]
        frames, state = [], None
        for start, stop in pairwise(edges):
            x, state = self.recur(self.convolve(wav, start, stop), state)
            frames.append(x)
        x = torch.cat(frames, dim=1)  # (B, N, C)
        return self.last(x, *self.last.padding_around(0, num_frames, num_frames)).transpose(1, 2)

    @torch.no_grad()
    def standardize(self, wav: Tensor) -> None:
        """Scale and shift each convolution so that over signals (B, 1, T) its channels have mean 0 and variance 1.

        To begin training with. As torch draws them, biases are far larger than what speech adds to them. All
        activations are then nearly linear, and a linear map of a waveform does not tell how loud which band is.
        """
        layers = [layer for layer in self.modules() if isinstance(layer, TimeConv1d)]
        hooks = [layer.register_forward_hook(lambda layer, _, output: layer.standardize(output)) for layer in layers]
        try:
            num_frames = -(-wav.shape[-1] // self.hop_length)
            x, _ = self.recur(self.convolve(wav, 0, num_frames), None)
            self.last(x, *self.last.padding_around(0, num_frames, num_frames))
        finally:
            for hook in hooks:
                hook.remove()

    def convolve(self, wav: Tensor, start: int, stop: int, offset: int = 0, length: int | None = None) -> Tensor:
        """Frames start .. stop - 1 of the convolutions up to the LSTM: (B, 1, T) -> (B, stop - start, C).

        Args:
            wav: the signal, or the part of it that begins at sample `offset` and holds what those frames depend on.
            start: first frame.
            stop: end of the frames. Where they touch an end of the signal, at least `MIN_FRAMES` or all frames must
                be asked for.
            offset: see `wav`.
            length: samples of the whole signal; left out if that is `wav`.
        """
        length = wav.shape[-1] if length is None else length
        layers = self.tower()
        lengths = [length]  # of the whole signal, at the input of each layer
        for layer in layers:
            lengths.append(-(-lengths[-1] // layer.step))
        paddings = []
        for layer, length in zip(reversed(layers), reversed(lengths[:-1]), strict=True):
            paddings.append(layer.padding_around(start, stop, length))
            start, stop = layer.inputs_of(start, stop, length)
        x = wav[:, :, start - offset : stop - offset].transpose(1, 2)  # (B, N, 1)
        for layer, padding in zip(layers, reversed(paddings), strict=True):
            x = layer(x, *padding)
        return x

    def tower(self) -> list[Any]:
        """The layers in front of the LSTM."""
        return [self.first, *(layer for stage in self.stages for layer in stage.children())]

    def recur(self, x: Tensor, state: LSTMState | None) -> tuple[Tensor, LSTMState | None]:
        """The LSTM and the activation behind it, (B, N, C) -> (B, N, C), continued from and to a state."""
        if self.lstm is not None:
            y, state = self.lstm(x, state)
            x = x + y
        return F.elu(x), state


class SEANetStream:
    """Encodes a signal that arrives in pieces; together they give what `SEANetEncoder.forward` gives for the whole.

    A frame is certain `lookahead_samples` after its end. The first ones come later, since the mirror image in front of
    the signal has to be known. Memory is that of the largest piece.
    """

    def __init__(self, encoder: SEANetEncoder):
        self.encoder = encoder
        hop_length, last = encoder.hop_length, encoder.last
        start, stop = 0, 1
        for layer in reversed(encoder.tower()):
            start, stop = layer.window(start, stop)
        self._past, self._future = -start, stop - hop_length  # samples around a frame that its convolutions see
        self._last_future = last.kernel_size[0] - 1 - last.left  # frames
        self.lookahead_samples = self._future + self._last_future * hop_length
        self._wav: Tensor | None = None  # (B, 1, T), from sample _offset on
        self._offset = 0
        self._state: LSTMState | None = None
        self._features: list[Tensor] = []  # (B, n, C) behind the LSTM, the last of _num_features frames
        self._num_features = self._num_latents = 0

    @torch.no_grad()
    def push(self, wav: Tensor) -> Tensor:
        """Feed samples (B, 1, T), get the frames that are now certain: (B, D, n), n >= 0."""
        self._wav = wav if self._wav is None else torch.cat([self._wav, wav], dim=-1)
        return self._advance(self._wav, None)

    @torch.no_grad()
    def flush(self) -> Tensor:
        """End the signal: the frames still due, (B, D, n). For another signal there is another stream."""
        if self._wav is None or not self._offset + self._wav.shape[-1]:
            return next(self.encoder.parameters()).new_zeros(1, self.encoder.latent_dim, 0)
        return self._advance(self._wav, self._offset + self._wav.shape[-1])

    def _advance(self, wav: Tensor, length: int | None) -> Tensor:
        """Frames that are certain, `length` samples of the whole signal being all, or there being more to come."""
        encoder, hop_length = self.encoder, self.encoder.hop_length
        arrived = self._offset + wav.shape[-1]
        is_end = length is not None
        num_frames = -(-arrived // hop_length) if is_end else (arrived - self._future) // hop_length
        if is_end or num_frames >= MIN_FRAMES:
            while self._num_features < num_frames:
                start, stop = self._num_features, min(num_frames, self._num_features + CHUNK_SAMPLES // hop_length + 1)
                begin = max(min(start, stop - MIN_FRAMES), 0) if is_end else start
                x = encoder.convolve(wav, begin, stop, self._offset, length or arrived + hop_length)
                x, self._state = encoder.recur(x[:, start - begin :], self._state)
                self._features = [*self._features, x]  # another list, as copies of a stream go on by themselves
                self._num_features = stop
        kept = max((self._num_features - MIN_FRAMES) * hop_length - self._past, self._offset)
        self._wav, self._offset = wav[..., kept - self._offset :].clone(), kept
        return self._finish(is_end, wav)

    def _finish(self, is_end: bool, like: Tensor) -> Tensor:
        """The last convolution over the features there are: (B, D, n)."""
        last = self.encoder.last
        start, stop = self._num_latents, self._num_features - (0 if is_end else self._last_future)
        if stop <= start or (not is_end and self._num_features <= last.left):
            return like.new_zeros(len(like), self.encoder.latent_dim, 0)
        x = torch.cat(self._features, dim=1)
        begin, end = last.inputs_of(start, stop, self._num_features)
        dropped = self._num_features - x.shape[1]
        latent = last(x[:, begin - dropped : end - dropped], *last.padding_around(start, stop, self._num_features))
        self._features = [x[:, max(stop - last.kernel_size[0] - dropped, 0) :].clone()]
        self._num_latents = stop
        return latent.transpose(1, 2)


class PaddedConv1d(TimeConv1d):
    """Convolution over a stretch of a signal that is continued by its mirror image where it ends.

    With kernel k and stride s, the signal is continued by k - s steps and by what the last window lacks. If causal, the
    k - s steps lie on the left, else half of them (the smaller half) on the right: output step n starts at input step
    n * s - left. There are ceil(length / s) output steps.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, is_causal: bool):
        super().__init__(in_channels, out_channels, kernel_size, stride=stride)
        self.step = stride
        overlap = kernel_size - stride
        self.left = overlap if is_causal else overlap - overlap // 2

    def inputs_of(self, start: int, stop: int, length: int) -> tuple[int, int]:
        """The steps of a signal of `length` that output steps start .. stop - 1 are made of, as far as they exist."""
        first, end = self.window(start, stop)
        return max(first, 0), min(end, length)

    def padding_around(self, start: int, stop: int, length: int) -> tuple[int, int]:
        """How many steps are missing at either end of `inputs_of`."""
        first, end = self.window(start, stop)
        return max(-first, 0), max(end - length, 0)

    def window(self, start: int, stop: int) -> tuple[int, int]:
        """The steps that output steps start .. stop - 1 are made of, as if the signal had no ends."""
        return start * self.step - self.left, (stop - 1) * self.step - self.left + self.kernel_size[0]

    def forward(self, x: Tensor, before: int = 0, after: int = 0) -> Tensor:
        return super().forward(reflect(x, before, after))


class Stage(nn.Module):
    """A residual block, and a convolution that halves or otherwise divides the rate and doubles the channels."""

    def __init__(self, width: int, stride: int, residual_kernel_size: int, *, is_causal: bool):
        super().__init__()
        self.residual = ResidualBlock(width, residual_kernel_size, is_causal=is_causal)
        self.downsample = Downsample(width, 2 * width, 2 * stride, stride=stride, is_causal=is_causal)


class ResidualBlock(nn.Module):
    """A narrow convolution and a wide one of width 1, added to a linear map of the input: (B, N, C) -> (B, N, C)."""

    step = 1

    def __init__(self, width: int, kernel_size: int, *, is_causal: bool):
        super().__init__()
        self.narrow = PaddedConv1d(width, width // 2, kernel_size, is_causal=is_causal)
        self.widen = TimeConv1d(width // 2, width, 1)
        self.shortcut = TimeConv1d(width, width, 1)
        self.window = self.narrow.window
        self.inputs_of = self.narrow.inputs_of
        self.padding_around = self.narrow.padding_around

    def forward(self, x: Tensor, before: int = 0, after: int = 0) -> Tensor:
        padded = reflect(x, before, after)
        y = self.widen(F.elu_(self.narrow(F.elu(padded))))
        # Steps of x that are there only for their neighbours' sake have no output of their own.
        start = self.narrow.left - before
        return y.add_(self.shortcut(x[:, start : start + y.shape[1]]))


class Downsample(PaddedConv1d):
    """ELU and a strided convolution: (B, N, C) -> (B, M, 2 C). Overwrites its input."""

    def forward(self, x: Tensor, before: int = 0, after: int = 0) -> Tensor:
        return super().forward(F.elu_(x), before, after)


def reflect(x: Tensor, before: int, after: int) -> Tensor:
    """Continue features (B, N, C) by their mirror image on both sides: (B, before + N + after, C).

    A signal too short to be mirrored is first continued by zeros, which are taken off again behind the mirror image.
    That is what the published networks do.
    """
    if not before and not after:
        return x
    length = x.shape[1]
    missing = max(max(before, after) - length + 1, 0)
    if missing:
        x = F.pad(x, (0, 0, 0, missing))
    end = x.shape[1]
    x = torch.cat([x[:, 1 : before + 1].flip(1), x, x[:, end - 1 - after : end - 1].flip(1)], dim=1)
    return x[:, : x.shape[1] - missing]
