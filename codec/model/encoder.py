"""The stream family's encoder: (B, 1, T) -> (B, D, N), the mirror image of its decoder.

Where the reference family filters the waveform with a tower of strided convolutions, this one starts from short-time
spectra, as its decoder ends with them: all learned layers then run at the frame rate, which makes it many times
cheaper at equal size. Three analyses complement each other: one long window resolves partials, several short windows
inside each hop resolve onsets, and a correlation shows the period of the voice.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.limits import LARGEST_COUNT, refuse, too_large, too_small
from codec.model.correlation import DECIMATION, lag_correlation
from codec.model.layers import CausalConv1d, ConvNeXtBlock, State, in_pieces
from codec.model.stft import log_magnitudes
from codec.model.timeconv import Linear

NO_SAMPLE = 2.0**15
"""Stands where a signal has ended: beyond every sample, and the same in every type of floating-point numbers."""
OFFSET_STEP = 2.0**-20
"""In which samples are counted: fine enough for 16 bits and more, coarse enough for the loudest in an int32."""
OFFSET_HOPS = 300
"""Over which an offset is measured: long against any sound, so that none is taken for one, yet soon forgotten."""


@dataclass
class SpectralEncoderConfig:
    """Settings of `SpectralEncoder`."""

    kind: str = "spectral"
    hop_length: int = 320  # samples per frame
    n_fft: int = 1280  # samples of the long window; the encoder looks n_fft - hop_length samples ahead
    short_n_fft: int = 320  # samples of the short windows, one every short_n_fft / 4 samples
    num_lags: int = 147  # of the correlation, in steps of 3 samples
    width: int = 256
    expansion: int = 3  # inner width of a block / width
    num_blocks: int = 6
    kernel_size: int = 7
    lookahead: int = 0  # frames by which codes run ahead of the sound; it is decoded when more is known
    latent_dim: int = 16

    def __post_init__(self) -> None:
        sizes = ("hop_length", "width", "expansion", "kernel_size", "latent_dim")
        mistakes = too_small(self, "encoder", {0: ("num_blocks", "lookahead"), 1: sizes})
        mistakes += too_large(self, "encoder", {"num_blocks": LARGEST_COUNT, "lookahead": LARGEST_COUNT})
        if self.short_n_fft < 8 or self.short_n_fft % 8 or self.hop_length % (self.short_n_fft // 4):
            mistakes.append(
                f"encoder.short_n_fft must be a multiple of 8 whose quarter divides hop_length "
                f"{self.hop_length}, got {self.short_n_fft}"
            )
        smallest = self.hop_length + self.short_n_fft * 3 // 4
        if self.n_fft < smallest or self.n_fft % 2:
            mistakes.append(f"encoder.n_fft must be even and at least {smallest}, got {self.n_fft}")
        if not 1 <= self.num_lags <= self.n_fft // (2 * DECIMATION):
            mistakes.append(
                f"encoder.num_lags must be between 1 and n_fft / {2 * DECIMATION} = {self.n_fft // (2 * DECIMATION)}, "
                f"got {self.num_lags}"
            )
        refuse(mistakes)


class SpectralEncoder(nn.Module):
    """Log-magnitude spectra and a correlation, then a causal ConvNeXt stack at the frame rate, then the latent.

    Latent n is of the window that begins `config.lookahead` frames after frame n: by the time a frame is decoded, codes
    have told what follows. Nothing has to wait for that but the encoder.

    Source: the ConvNeXt trunk is that of Vocos (arXiv:2306.00814), run backwards.
    """

    def __init__(self, config: SpectralEncoderConfig):
        super().__init__()
        self.config = config
        self.hop_length = config.hop_length
        self.latent_dim = config.latent_dim
        self.short_hop_length = config.short_n_fft // 4
        self.window_ahead = config.n_fft - config.hop_length
        self.lookahead_samples = self.window_ahead + config.lookahead * config.hop_length
        """Beyond the end of frame n that its code depends on."""
        short_per_frame = config.hop_length // self.short_hop_length
        num_features = (config.n_fft // 2 + 1) + short_per_frame * (config.short_n_fft // 2 + 1)
        self.input = Linear(num_features + config.num_lags, config.width)
        self.input_norm = nn.LayerNorm(config.width)
        layer_scale = 1 / max(config.num_blocks, 1)
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(config.width, config.expansion, config.kernel_size, layer_scale)
            for _ in range(config.num_blocks)
        )
        self.output_conv = CausalConv1d(config.width, config.width, kernel_size=3)
        self.output_norm = nn.LayerNorm(config.width)
        self.output = Linear(config.width, config.latent_dim)

    def forward(self, wav: Tensor, state: State | None = None) -> Tensor:
        """Encode whole signals: (B, 1, T) -> (B, D, N), N = ceil(T / hop_length).

        With a state, `wav` (B, 1, N * hop + lookahead) begins where the frames of the last call ended, and has all that
        N frames depend on. Behind a signal's end it is `NO_SAMPLE`.
        """
        if state is not None:
            return self._encode(wav, state)
        num_frames = -(-wav.shape[-1] // self.hop_length)
        padding = num_frames * self.hop_length + self.lookahead_samples - wav.shape[-1]
        wav = F.pad(wav, (0, padding), value=NO_SAMPLE)
        pieces = in_pieces(num_frames)
        if len(pieces) == 1:
            return self._encode(wav, None)
        state = {}
        hop, ahead = self.hop_length, self.lookahead_samples
        parts = [wav[..., piece.start * hop : piece.stop * hop + ahead] for piece in pieces]
        return torch.cat([self._encode(part, state) for part in parts], dim=2)

    def _encode(self, wav: Tensor, state: State | None) -> Tensor:
        """(B, 1, N * hop + lookahead) -> (B, D, N)."""
        num_ahead = self.config.lookahead
        if state is not None and self in state:  # the windows that overlap with the last call's are known
            wav, num_ahead = wav[..., num_ahead * self.hop_length :], 0
        features = self._features(wav.squeeze(1), state)
        x = self.input_norm(self.input(features))  # (B, N, H), after L frames of the first call
        for block in self.blocks:
            x = block(x, state)
        x = (x + F.gelu(self.output_conv(x, state)))[:, num_ahead:]
        return self.output(self.output_norm(x)).transpose(1, 2)

    def _features(self, wav: Tensor, state: State | None) -> Tensor:
        """(B, N * hop + lookahead) -> (B, N, features): long spectrum, short ones, correlation."""
        config = self.config
        with torch.autocast(wav.device.type, enabled=False):
            is_sound = wav != NO_SAMPLE
            frames, inside = (
                part.float().unfold(-1, config.n_fft, config.hop_length) for part in (wav.where(is_sound, 0), is_sound)
            )  # (B, N, n_fft)
            # Only there, as an offset that ends with the signal would be heard as a step.
            frames = torch.addcmul(frames, inside, self._offsets(frames, inside, state), value=-1)
            long = log_magnitudes(frames)  # (B, N, n_fft // 2 + 1)
            # The short windows are centred on the long one's middle, where its weight lies.
            start = (self.window_ahead - config.short_n_fft + self.short_hop_length) // 2
            middle = frames[..., start : start + config.hop_length - self.short_hop_length + config.short_n_fft]
            short = log_magnitudes(middle.unfold(-1, config.short_n_fft, self.short_hop_length)).flatten(2)
            stretch = config.n_fft - config.n_fft % DECIMATION
            correlation = lag_correlation(frames[..., config.n_fft - stretch :], config.num_lags)  # (B, N, num_lags)
            # Log-magnitudes of speech lie around -6 with a spread of about 2.
            return torch.cat([(long + 6) / 2, (short + 6) / 2, correlation], dim=-1)

    def _offsets(self, frames: Tensor, inside: Tensor, state: State | None) -> Tensor:
        """Mean of the last `OFFSET_HOPS` hops of samples up to the end of each frame: (B, N, n_fft) -> (B, N, 1).

        An offset, as cheap sound cards add it, is nothing that is heard, but fills the lowest bins of every window.
        """
        hop = self.hop_length
        heard = _counted(frames[..., -hop:], inside[..., -hop:])
        if state is None or self not in state:
            first = _counted(frames[:, :1, :-hop], inside[:, :1, :-hop])
            past = F.pad(first, (OFFSET_HOPS - 1, 0))
        else:
            (past,) = state[self]
        heard = torch.cat([past, heard], dim=2)
        if state is not None:
            state[self] = (heard[..., -OFFSET_HOPS:].clone(),)
        total = heard.cumsum(2)
        sums, counts = (total[..., OFFSET_HOPS:] - total[..., :-OFFSET_HOPS]).unbind(1)
        return (sums.float() * OFFSET_STEP / counts.clamp(min=1))[..., None]


def _counted(samples: Tensor, inside: Tensor) -> Tensor:
    """Sums and numbers of samples, (B, N, T) -> (B, 2, N) int64: whole numbers add up to the same in any order."""
    return torch.stack([(samples / OFFSET_STEP).int().sum(-1), inside.int().sum(-1)], dim=1)
