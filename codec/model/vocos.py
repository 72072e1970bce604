"""The reference family's decoder: (B, D, N) -> (B, 1, N * hop_length), a trunk at the frame rate and an inverse STFT.

Inside, features are (B, N, H). Attention and group norm span the whole signal, so every sample depends on every frame.
"""

import math
import operator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.errors import ConfigError
from codec.limits import LARGEST_COUNT, refuse, too_large, too_small
from codec.model.decoder import Synthesis
from codec.model.stft import overlap_add
from codec.model.timeconv import Linear, TimeConv1d, conv1d

MAX_LOG_MAGNITUDE = math.log(100)
BLOCK_FRAMES = 1024
"""Frames that pass through a ConvNeXt block or the spectral head at once when no gradient is needed.

Every call rearranges the weights, which costs 5 % of decoding 10 s in pieces of 512 frames and little from here on.
"""
TILE_FRAMES = 2048
"""Queries, and keys, that attention compares at once when no gradient is needed."""


@dataclass
class VocosDecoderConfig:
    """Settings of `VocosDecoder`."""

    kind: str = "vocos"
    latent_dim: int = 512
    width: int = 768
    inner_width: int = 2304  # of a ConvNeXt block
    num_blocks: int = 12
    num_groups: int = 32  # of the group norms in front of the ConvNeXt blocks
    n_fft: int = 1280  # samples of the synthesis window
    hop_length: int = 320  # samples per frame

    def __post_init__(self) -> None:
        sizes = ("latent_dim", "width", "inner_width", "num_groups", "n_fft", "hop_length", "num_blocks")
        mistakes = too_small(self, "decoder", {1: sizes})
        mistakes += too_large(self, "decoder", {"num_blocks": LARGEST_COUNT})
        if self.width % max(self.num_groups, 1):
            mistakes.append(f"decoder.width must be a multiple of num_groups {self.num_groups}, got {self.width}")
        if self.n_fft % (2 * max(self.hop_length, 1)):
            mistakes.append(f"decoder.n_fft must be an even multiple of hop_length {self.hop_length}, got {self.n_fft}")
        refuse(mistakes)


class VocosDecoder(nn.Module):
    """Convolution, prenet (residual blocks around one full attention), ConvNeXt blocks, inverse-STFT head.

    Source: Vocos (arXiv:2306.00814) with the prenet of WavTokenizer (arXiv:2408.16532).
    """

    def __init__(self, config: VocosDecoderConfig):
        super().__init__()
        self.config = config
        self.hop_length = config.hop_length
        self.latent_dim = config.latent_dim
        self.input = TimeConv1d(config.latent_dim, config.width, 7)
        self.prenet = Prenet(config.width, config.num_groups)
        self.input_norm = nn.LayerNorm(config.width, eps=1e-6)
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(config.width, config.inner_width, 1 / config.num_blocks) for _ in range(config.num_blocks)
        )
        self.output_norm = nn.LayerNorm(config.width, eps=1e-6)
        self.head = InverseSTFTHead(config.width, config.n_fft, config.hop_length)
        for layer in self.modules():
            if isinstance(layer, nn.Conv1d | nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, latent: Tensor) -> Tensor:
        """Decode whole signals: (B, D, N) -> (B, 1, N * hop_length)."""
        return self.head(self.trunk(latent)).unsqueeze(1)

    def synthesize(self, latent: Tensor) -> Synthesis:
        """Decode whole signals as `forward` does; this decoder states no pitch."""
        return Synthesis(self(latent), None)

    def trunk(self, latent: Tensor) -> Tensor:
        """All but the spectral head: (B, D, N) -> (B, N, H)."""
        x = self.input(F.pad(latent.transpose(1, 2), (0, 0, 3, 3)))  # (B, N, H)
        x = self.input_norm(self.prenet(x))
        for block in self.blocks:
            x = block(x)
        return self.output_norm(x)


class VocosStream:
    """Decodes a latent that arrives in pieces, in overlapping windows.

    Attention and group norm span the window instead of the signal, so the sound is close to that of one pass but not
    equal, unless the whole has at most window + overlap frames. Neighbouring windows are faded into each other.

    Args:
        decoder: in eval mode.
        window: frames of sound that each pass yields.
        overlap: further frames that it sees on either side.
    """

    FADE_FRAMES = 8

    def __init__(self, decoder: VocosDecoder, window: int, overlap: int):
        try:
            self.window, self.overlap = operator.index(window), operator.index(overlap)
        except TypeError:
            self.window = self.overlap = 0  # refused like any other that is too small
        if self.window < 1 or self.overlap < self.FADE_FRAMES:
            raise ConfigError(
                f"window and overlap must be integers of at least 1 and {self.FADE_FRAMES}, got {window} and {overlap}"
            )
        self.decoder = decoder
        self._latent: Tensor | None = None  # (B, D, n), the frames not yet decoded behind _num_past ones that are
        self._num_past = 0
        self._fading: Tensor | None = None  # (B, 1, T), how the last window went on

    @torch.no_grad()
    def push(self, latent: Tensor) -> Tensor:
        """Feed frames (B, D, n), get the sound that is complete: (B, 1, m * hop_length), m a multiple of the window."""
        self._latent = latent if self._latent is None else torch.cat([self._latent, latent], dim=-1)
        sound = [latent.new_zeros(len(latent), 1, 0)]
        while self._latent.shape[-1] > self._num_past + self.window + self.overlap:
            end = self._num_past + self.window
            sound.append(self._decode(self._latent[..., : end + self.overlap], end))
            kept = min(end, self.overlap)
            self._latent, self._num_past = self._latent[..., end - kept :].clone(), kept
        return torch.cat(sound, dim=-1)

    @torch.no_grad()
    def flush(self) -> Tensor:
        """End the signal: the sound still due. For another signal there is another stream."""
        if self._latent is None or self._latent.shape[-1] == self._num_past:
            return self.decoder.head.window.new_zeros(1, 1, 0)
        return self._decode(self._latent, self._latent.shape[-1])

    def _decode(self, latent: Tensor, end: int) -> Tensor:
        """Sound of frames _num_past .. end - 1 of `latent`."""
        hop_length = self.decoder.hop_length
        wav = self.decoder(latent)[..., self._num_past * hop_length :]
        if self._fading is not None:
            length = min(self._fading.shape[-1], wav.shape[-1])
            rise = torch.linspace(0, 1, length, dtype=torch.float32, device=wav.device)
            wav[..., :length] = torch.lerp(self._fading[..., :length], wav[..., :length], rise)
        cut = (end - self._num_past) * hop_length
        self._fading = wav[..., cut : cut + self.FADE_FRAMES * hop_length].clone()
        return wav[..., :cut]


class Prenet(nn.Module):
    """Two residual blocks, one attention, two residual blocks, group norm: (B, N, H) -> (B, N, H)."""

    def __init__(self, width: int, num_groups: int):
        super().__init__()
        self.before = nn.Sequential(*(ResidualBlock(width, num_groups) for _ in range(2)))
        self.attention = Attention(width, num_groups)
        self.after = nn.Sequential(*(ResidualBlock(width, num_groups) for _ in range(2)))
        self.norm = TimeGroupNorm(num_groups, width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.after(self.attention(self.before(x))))


class TimeGroupNorm(nn.GroupNorm):
    """Group norm over all frames and the channels of a group: (B, N, H) -> (B, N, H)."""

    def forward(self, x: Tensor) -> Tensor:
        # As an image of height 1, which torch normalises in the order the features have in memory.
        return super().forward(x.transpose(1, 2).unsqueeze(2)).squeeze(2).transpose(1, 2)


class ResidualBlock(nn.Module):
    """Group norm, swish, convolution, twice, added to the input: (B, N, H) -> (B, N, H)."""

    def __init__(self, width: int, num_groups: int):
        super().__init__()
        self.norm1 = TimeGroupNorm(num_groups, width, eps=1e-6)
        self.conv1 = TimeConv1d(width, width, 3)
        self.norm2 = TimeGroupNorm(num_groups, width, eps=1e-6)
        self.conv2 = TimeConv1d(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.pad(F.silu(self.norm1(x), inplace=True), (0, 0, 1, 1)))
        y = self.conv2(F.pad(F.silu(self.norm2(y), inplace=True), (0, 0, 1, 1)))
        return y.add_(x)


class Attention(nn.Module):
    """Every frame looks at every frame with one head, added to the input: (B, N, H) -> (B, N, H)."""

    def __init__(self, width: int, num_groups: int):
        super().__init__()
        self.norm = TimeGroupNorm(num_groups, width, eps=1e-6)
        self.query = TimeConv1d(width, width, 1)
        self.key = TimeConv1d(width, width, 1)
        self.value = TimeConv1d(width, width, 1)
        self.output = TimeConv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.output(attend(self.query(y), self.key(y), self.value(y)))


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(query key^T / sqrt(H)) value: three (B, N, H) -> (B, N, H), never holding an N x N matrix.

    On a CPU without gradients in square tiles. The softmax is summed up tile by tile, relative to the largest score so
    far; keys and values play the part of a layer's weights, for the sake of `conv1d`'s speed.
    """
    if torch.is_grad_enabled() or query.device.type != "cpu":
        return F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None]).squeeze(1)
    query = query * query.shape[-1] ** -0.5
    exact = torch.promote_types(query.dtype, torch.float32)  # of the sums, under autocast too
    result = torch.empty_like(query)
    for item in range(len(query)):
        tiles = list(zip(key[item].split(TILE_FRAMES), value[item].split(TILE_FRAMES), strict=True))
        for start in range(0, query.shape[1], TILE_FRAMES):
            block = query[item : item + 1, start : start + TILE_FRAMES]  # (1, M, H)
            largest = torch.full_like(block[..., :1], -torch.inf, dtype=exact)  # (1, M, 1)
            total, attended = torch.zeros_like(largest), torch.zeros_like(block, dtype=exact)
            for keys, values in tiles:
                weights = conv1d(block, keys.unsqueeze(2)).to(exact)  # (1, M, tile)
                before, largest = largest, torch.maximum(largest, weights.amax(dim=-1, keepdim=True))
                weights = weights.sub_(largest).exp_()
                shrink = torch.exp(before - largest)
                total = total * shrink + weights.sum(dim=-1, keepdim=True)
                attended = attended.mul_(shrink).add_(conv1d(weights, values.T.unsqueeze(2)))
            result[item, start : start + TILE_FRAMES] = (attended / total)[0]
    return result


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, then a two-layer perceptron per frame, added to the input: (B, N, H) -> (B, N, H).

    Overwrites its input when no gradient is needed.

    Source: ConvNeXt (arXiv:2201.03545) in the 1-D form of Vocos (arXiv:2306.00814).
    """

    def __init__(self, width: int, inner_width: int, layer_scale: float):
        super().__init__()
        self.depthwise = TimeConv1d(width, width, 7, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.expand = Linear(width, inner_width)
        self.contract = Linear(inner_width, width)
        self.scale = nn.Parameter(torch.full((width,), layer_scale))

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (0, 0, 3, 3))
        if torch.is_grad_enabled():
            return x + self._branch(padded)
        for start in range(0, x.shape[1], BLOCK_FRAMES):
            x[:, start : start + BLOCK_FRAMES] += self._branch(padded[:, start : start + BLOCK_FRAMES + 6])
        return x

    def _branch(self, padded: Tensor) -> Tensor:
        """(B, 3 + N + 3, H) -> (B, N, H)."""
        return self.scale * self.contract(F.gelu(self.expand(self.norm(self.depthwise(padded)))))


class InverseSTFTHead(nn.Module):
    """Log-magnitude and phase per frame, and their overlap-added inverse spectra: (B, N, H) -> (B, N * hop_length).

    Frame n is centred on the middle of its hop. The sum is divided by the summed squared window and cut by
    (n_fft - hop_length) / 2 samples at both ends.
    """

    window: Tensor

    def __init__(self, width: int, n_fft: int, hop_length: int):
        super().__init__()
        self.n_fft = n_fft
        self.hop_length = hop_length
        self.output = Linear(width, n_fft + 2)
        self.register_buffer("window", torch.hann_window(n_fft, dtype=torch.float32), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        num_frames, overlap = x.shape[1], self.n_fft // self.hop_length
        block_frames = num_frames if torch.is_grad_enabled() else BLOCK_FRAMES
        summed = x.new_zeros(x.shape[0], num_frames + overlap - 1, self.hop_length, dtype=torch.float32)
        for start in range(0, num_frames, block_frames):
            frames = self._frames(x[:, start : start + block_frames])  # (B, n, n_fft)
            overlap_add(summed[:, start : start + frames.shape[1] + overlap - 1], frames)
        envelope = torch.zeros_like(summed[:1])
        overlap_add(envelope, (self.window**2).expand(1, num_frames, -1))
        cut = (self.n_fft - self.hop_length) // 2
        kept = slice(cut, cut + num_frames * self.hop_length)
        return summed.flatten(1)[:, kept] / envelope.flatten(1)[:, kept]

    def _frames(self, x: Tensor) -> Tensor:
        """(B, N, H) -> (B, N, n_fft), windowed."""
        with torch.autocast(x.device.type, enabled=False):  # phases need more than the 8 bits of bfloat16
            log_magnitude, phase = self.output(x.float()).chunk(2, dim=-1)  # (B, N, n_fft // 2 + 1) each
        # Clamped before the exponential: afterwards the gradient of an overflow would be inf * 0 = NaN.
        magnitude = torch.exp(log_magnitude.clamp(max=MAX_LOG_MAGNITUDE))
        spectrum = torch.complex(magnitude * torch.cos(phase), magnitude * torch.sin(phase))
        return torch.fft.irfft(spectrum, n=self.n_fft) * self.window
