"""The stream family's decoder: (B, D, N) -> (B, 1, N * hop_length), causal, with bounded memory and no lookahead."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from codec.limits import LARGEST_COUNT, refuse, too_large, too_small
from codec.model.layers import CausalConv1d, ConvNeXtBlock, State, WindowedAttention, in_pieces
from codec.model.source import PitchPredictor, Source
from codec.model.stft import CausalInverseSTFT
from codec.model.timeconv import Linear

MAX_LOG_GAIN = math.log(100)


class Synthesis(NamedTuple):
    """What a decoder makes of a latent."""

    wav: Tensor  # (B, 1, N * hop_length)
    log_pitch: Tensor | None  # (B, N), ln Hz at the last hop of each frame's window; None where it states no pitch


@dataclass
class SpectralDecoderConfig:
    """Settings of `SpectralDecoder`."""

    kind: str = "spectral"
    sample_rate: int = 24000  # Hz
    hop_length: int = 320  # samples per frame
    n_fft: int = 1280  # samples of the synthesis window, a multiple of hop_length
    width: int = 384
    expansion: int = 3  # inner width of a block / width
    num_blocks: int = 8
    num_attention: int = 2  # attention layers, spread evenly among the blocks
    attention_heads: int = 6
    attention_window: int = 128  # frames, the present one included
    kernel_size: int = 7
    input_kernel_size: int = 7  # of the layers that see the codes
    latent_dim: int = 16
    pitch_width: int = 64
    lowest_pitch: float = 55.0  # Hz
    highest_pitch: float = 550.0  # Hz

    def __post_init__(self) -> None:
        sizes = (
            *("hop_length", "width", "expansion", "num_blocks", "kernel_size", "input_kernel_size", "latent_dim"),
            *("attention_heads", "attention_window", "pitch_width"),
        )
        mistakes = too_small(self, "decoder", {1: sizes})
        mistakes += too_large(self, "decoder", {"num_blocks": LARGEST_COUNT})
        if self.n_fft % max(self.hop_length, 1) or self.n_fft < 2 * self.hop_length or self.n_fft % 2:
            mistakes.append(
                f"decoder.n_fft must be even and a multiple, at least twice, of hop_length {self.hop_length}, "
                f"got {self.n_fft}"
            )
        if not 0 < self.lowest_pitch < self.highest_pitch < self.sample_rate / 4:
            mistakes.append(
                f"decoder: 0 < lowest_pitch < highest_pitch < sample_rate / 4 must hold, "
                f"got {self.lowest_pitch:g}, {self.highest_pitch:g} and {self.sample_rate}"
            )
        if self.width % max(self.attention_heads, 1):
            mistakes.append(
                f"decoder.width must be a multiple of attention_heads {self.attention_heads}, got {self.width}"
            )
        if not 0 <= self.num_attention <= self.num_blocks:
            mistakes.append(
                f"decoder.num_attention must be between 0 and num_blocks {self.num_blocks}, got {self.num_attention}"
            )
        refuse(mistakes)


class SpectralDecoder(nn.Module):
    """A causal trunk of ConvNeXt blocks and windowed attention, and an inverse-STFT head that filters a sound source.

    Source: Vocos (arXiv:2306.00814), with the attention of WavTokenizer (arXiv:2408.16532) bounded to a window.
    """

    def __init__(self, config: SpectralDecoderConfig):
        super().__init__()
        self.config = config
        self.hop_length = config.hop_length
        self.latent_dim = config.latent_dim
        width, layer_scale = config.width, 1 / config.num_blocks
        self.input = CausalConv1d(config.latent_dim, width, config.input_kernel_size)
        self.input_norm = nn.LayerNorm(width)
        layers: list[nn.Module] = []
        for block in range(config.num_blocks):
            # One attention layer in front of every stretch of num_blocks / num_attention blocks.
            if block * config.num_attention % config.num_blocks < config.num_attention:
                layers.append(WindowedAttention(width, config.attention_heads, config.attention_window, layer_scale))
            layers.append(ConvNeXtBlock(width, config.expansion, config.kernel_size, layer_scale))
        self.layers = nn.ModuleList(layers)
        self.output_norm = nn.LayerNorm(width)
        num_bins = config.n_fft // 2 + 1
        self.filters = Linear(width, 3 * num_bins)
        self.pitch = PitchPredictor(
            config.latent_dim,
            config.pitch_width,
            config.input_kernel_size,
            config.kernel_size,
            config.lowest_pitch,
            config.highest_pitch,
        )
        self.source = Source(config.n_fft, config.hop_length, config.sample_rate)
        self.inverse_stft = CausalInverseSTFT(config.n_fft, config.hop_length)

    def forward(self, latent: Tensor, state: State | None = None) -> Tensor:
        """Decode frames: (B, D, N) -> (B, 1, N * hop_length); with a state, those after the last call's."""
        return self.synthesize(latent, state).wav

    def synthesize(self, latent: Tensor, state: State | None = None) -> Synthesis:
        """Decode frames as `forward` does, and also tell the pitch they were given."""
        pieces = in_pieces(latent.shape[2])
        if len(pieces) == 1:
            return self._synthesize(latent, state)
        state = {} if state is None else state
        wav, log_pitch = zip(*(self._synthesize(latent[:, :, piece], state) for piece in pieces), strict=True)
        return Synthesis(torch.cat(wav, dim=2), torch.cat(log_pitch, dim=1))

    def _synthesize(self, latent: Tensor, state: State | None) -> Synthesis:
        x = self.input_norm(self.input(latent.transpose(1, 2), state))  # (B, N, H)
        for layer in self.layers:
            x = layer(x, state)
        filters = self._filter_values(self.output_norm(x))
        with torch.autocast(x.device.type, enabled=False):
            pulse_gain, pulse_phase, noise_gain = filters.chunk(3, dim=-1)  # (B, N, n_fft // 2 + 1) each
            log_pitch = self.pitch(latent, state)  # (B, N)
            # Spectral losses say little about the pitch: a harmonic is drawn to the nearest one, right or wrong.
            pulses, noise = self.source(log_pitch.detach().exp(), state)
            # Clamped before the exponential: afterwards the gradient of an overflow would be inf * 0 = NaN.
            pulse_gain = torch.exp(pulse_gain.clamp(max=MAX_LOG_GAIN))
            noise_gain = torch.exp(noise_gain.clamp(max=MAX_LOG_GAIN))
            # Written for real numbers: torch.polar is slow, and torch would first make the noise's gain complex.
            pulses = pulses * torch.complex(pulse_gain * torch.cos(pulse_phase), pulse_gain * torch.sin(pulse_phase))
            both = torch.addcmul(torch.view_as_real(pulses), torch.view_as_real(noise), noise_gain[..., None])
            wav = self.inverse_stft(torch.view_as_complex(both), state)
            return Synthesis(wav.unsqueeze(1), log_pitch)

    def _filter_values(self, x: Tensor) -> Tensor:
        """(B, N, H) -> (B, N, 3 * (n_fft // 2 + 1)) float32."""
        if self.training:  # as autocast has it: the product is a tenth of a step, and its rounding is small noise there
            return self.filters(x).float()
        # Phases that are heard need more than the 8 bits of bfloat16.
        with torch.autocast(x.device.type, enabled=False):
            return self.filters(x.float())
