"""Networks that tell real speech from decoded speech: by period, by scale and by spectrum.

Every discriminator maps a waveform (B, 1, T) to one `DiscriminatorOutput`, so that losses need not know which kind
they judge. Widths and depths are settings: a set small enough for one CPU core, a full one for GPUs and the published
recipe's set are configurations of the same classes. Losses and optimizer live elsewhere.

Shapes: B batch, T samples, P period, C channels, L steps along time, N frames, F frequency bins.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from itertools import pairwise
from math import pi
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from codec.errors import ConfigError
from codec.limits import refuse
from codec.training.losses import ADVERSARIAL_LOSSES

_SLOPE = 0.1  # of the leaky rectifier, in every published discriminator of this kind
REDUCTIONS = ("mean", "sum")


class DiscriminatorOutput(NamedTuple):
    """What one discriminator says about a batch of clips."""

    logits: Tensor
    """(B, any): one number per stretch of the clip; high means real."""
    feature_maps: list[Tensor]
    """Inner activations from the input on, without the logits. Layouts differ; compare them only with their like."""


# ---------------------------------------------------------------------------------------------------------------------
# Settings


@dataclass
class GroupConfig:
    """How the discriminators of one kind are judged; each kind adds its networks' settings."""

    views: ClassVar[str]
    """The setting that has a value for each discriminator of the group: what of the waveform it sees."""
    per_layer: ClassVar[tuple[str, ...]] = ("channels", "kernel_sizes", "strides")
    """The settings that have a value for each layer."""

    loss: str = "hinge"
    """"hinge" or "least-squares"."""
    reduction: str = "mean"
    """"mean" or "sum" over the group's discriminators."""
    skip_first_map: bool = False
    """Leave the first layer's map out of feature matching."""
    match_logits: bool = False
    """Let the logits take part in feature matching as a last map."""
    preserve_variance: bool = True
    """Start from weights that keep the size of the activations, so that the first logits and maps already depend on
    the input; false starts from torch's defaults, which shrink it about threefold per layer, as published."""
    level_input: bool = False
    """Make each clip zero-mean and scale it to a peak of 0.8 first, so that loudness is no clue."""

    def __post_init__(self) -> None:
        refuse(self._mistakes())

    def _mistakes(self) -> Iterator[str]:
        """Each begins with the name of the setting, for groups of different names have the same settings."""
        if self.loss not in ADVERSARIAL_LOSSES:
            yield f"loss must be one of {', '.join(ADVERSARIAL_LOSSES)}, got {self.loss!r}"
        if self.reduction not in REDUCTIONS:
            yield f"reduction must be one of {', '.join(REDUCTIONS)}, got {self.reduction!r}"
        layers = {name: getattr(self, name) for name in self.per_layer}
        lengths = [len(values) for values in layers.values()]
        if len(set(lengths)) > 1 or 0 in lengths:
            yield f"{', '.join(layers)} must each have one value per layer, got {', '.join(map(str, lengths))} values"
        for name, values in layers.items():
            if any(size < 1 for sizes in values for size in _as_list(sizes)):
                yield f"{name} must be at least 1, got {values}"
        if any(size % 2 == 0 for sizes in layers["kernel_sizes"] for size in _as_list(sizes)):
            yield f"kernel_sizes must be odd, got {layers['kernel_sizes']}"
        if self.skip_first_map and not self.match_logits and lengths[0] == 1:
            yield "skip_first_map needs a second layer or match_logits, else there is nothing to match"
        views = getattr(self, self.views)
        if not views or min(views) < 1:
            yield f"{self.views} must be numbers from 1 on, at least one, got {views}"

    def networks(self) -> list[nn.Module]:
        """One network per view of the waveform, not yet weight-normalised."""
        raise NotImplementedError

    def build(self) -> list[nn.Module]:
        """The group's discriminators, with weight normalisation on every convolution."""
        networks = self.networks()
        convs = [m for network in networks for m in network.modules() if isinstance(m, nn.Conv1d | nn.Conv2d)]
        for conv in convs:
            if self.preserve_variance:
                nn.init.kaiming_normal_(conv.weight, _SLOPE)
                nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
            weight_norm(conv)
        return networks


@dataclass
class PeriodConfig(GroupConfig):
    """Discriminators that look at every P-th sample, where voiced speech repeats."""

    views = "periods"

    periods: list[int] = field(default_factory=lambda: [2, 3, 5, 7, 11])
    """P of each discriminator, samples; primes overlap least."""
    channels: list[int] = field(default_factory=lambda: [32, 128, 512, 1024, 1024])
    kernel_sizes: list[int] = field(default_factory=lambda: [5, 5, 5, 5, 5])
    strides: list[int] = field(default_factory=lambda: [3, 3, 3, 3, 1])
    pad_whole_period: bool = False
    """Append a whole period where the length is already a multiple of it, as one published discriminator does."""

    def networks(self) -> list[nn.Module]:
        """One network per period."""
        return [PeriodDiscriminator(period, self) for period in self.periods]


@dataclass
class ScaleConfig(GroupConfig):
    """Discriminators that look at the waveform at several sample rates."""

    views = "factors"
    per_layer = (*GroupConfig.per_layer, "groups")

    factors: list[int] = field(default_factory=lambda: [1, 2, 4])
    """Downsampling factor of each discriminator."""
    channels: list[int] = field(default_factory=lambda: [64, 128, 256, 512, 1024, 1024])
    kernel_sizes: list[int] = field(default_factory=lambda: [15, 41, 41, 41, 41, 5])
    strides: list[int] = field(default_factory=lambda: [1, 2, 2, 4, 4, 1])
    groups: list[int] = field(default_factory=lambda: [1, 4, 8, 16, 16, 1])
    """Groups of each convolution; they keep long kernels affordable."""

    def networks(self) -> list[nn.Module]:
        """One network per factor."""
        return [ScaleDiscriminator(factor, self) for factor in self.factors]


@dataclass
class SpectrumConfig(GroupConfig):
    """Discriminators that look at STFTs of several resolutions. Kernels and strides are [frames, bins]."""

    views = "n_ffts"

    n_ffts: list[int] = field(default_factory=lambda: [2048, 1024, 512])
    """Window and transform length of each discriminator, samples."""
    overlap: list[int] = field(default_factory=lambda: [4, 4, 4])
    """Window length / hop length of each discriminator."""
    channels: list[int] = field(default_factory=lambda: [32, 32, 32, 32, 32])
    kernel_sizes: list[list[int]] = field(default_factory=lambda: [[3, 9], [3, 9], [3, 9], [3, 9], [3, 3]])
    strides: list[list[int]] = field(default_factory=lambda: [[1, 1], [1, 2], [1, 2], [1, 2], [1, 1]])
    band_edges: list[float] = field(default_factory=lambda: [0.0, 0.1, 0.25, 0.5, 0.75, 1.0])
    """Each band between two neighbouring edges, as shares of the bins, has its own layers; [0, 1] is one band."""
    is_complex: bool = True
    """Real and imaginary part as two channels, or the magnitude as one."""
    hann_window: bool = True
    """Hann window and unitary scaling; false takes away both, as in the published recipe, and not the window alone."""
    compression: float = 0.5
    """Magnitudes are raised to this power, phases kept; in (0, 1]. Below 1 quiet bins count more."""

    def _mistakes(self) -> Iterator[str]:
        yield from super()._mistakes()
        for name, pairs in (("kernel_sizes", self.kernel_sizes), ("strides", self.strides)):
            if any(len(pair) != 2 for pair in pairs):
                yield f"{name} must be pairs of [frames, bins], got {pairs}"
        edges = self.band_edges
        if len(edges) < 2 or edges[0] != 0 or edges[-1] != 1 or sorted(set(edges)) != list(edges):
            yield f"band_edges must rise from 0 to 1, got {edges}"
        elif narrow := [n for n in self.n_ffts if any(low == high for low, high in bands(n, edges))]:
            yield f"band_edges {edges} leave a band without a bin in an STFT of {narrow[0]}"
        if len(self.overlap) != len(self.n_ffts):
            yield f"n_ffts and overlap must be lists of one length, got {self.n_ffts} and {self.overlap}"
        elif not all(1 <= overlap <= n_fft for n_fft, overlap in zip(self.n_ffts, self.overlap, strict=True)):
            yield f"overlap must be between 1 and n_ffts, got {self.overlap} and {self.n_ffts}"
        if not 0 < self.compression <= 1:
            yield f"compression must be in (0, 1], got {self.compression:g}"

    def networks(self) -> list[nn.Module]:
        """One network per resolution."""
        return [SpectrumDiscriminator(n, n // r, self) for n, r in zip(self.n_ffts, self.overlap, strict=True)]


def bands(n_fft: int, edges: list[float]) -> list[tuple[int, int]]:
    """First bin and end of each band of an STFT."""
    return list(pairwise(int(edge * (n_fft // 2 + 1)) for edge in edges))


@dataclass
class DiscriminatorsConfig:
    """A set of discriminators; null leaves a group out. The default is the full set, meant for a GPU."""

    period: PeriodConfig | None = field(default_factory=PeriodConfig)
    scale: ScaleConfig | None = field(default_factory=ScaleConfig)
    spectrum: SpectrumConfig | None = field(default_factory=SpectrumConfig)
    resolution: SpectrumConfig | None = None
    """The published recipe's magnitude part."""
    dac_period: PeriodConfig | None = None
    """The published recipe's second period part."""
    dac_spectrum: SpectrumConfig | None = None
    """The published recipe's complex part."""

    def __post_init__(self) -> None:
        if not self.groups():
            raise ConfigError("adversary.discriminators: at least one group must be set, all are null")

    def groups(self) -> dict[str, GroupConfig]:
        """The groups that are in use, by name."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}


def _as_list(value: int | list[int]) -> list[int]:
    return [value] if isinstance(value, int) else list(value)


# ---------------------------------------------------------------------------------------------------------------------
# Networks


def level(wav: Tensor) -> Tensor:
    """(B, 1, T) without mean and scaled to a peak of 0.8; silence stays silence."""
    wav = wav - wav.mean(dim=-1, keepdim=True)
    return 0.8 * wav / (wav.abs().amax(dim=-1, keepdim=True) + 1e-9)


def low_pass(factor: int) -> Tensor:
    """Windowed-sinc filter that leaves what fits below the Nyquist frequency of a `factor` times lower sample rate.

    Returns:
        (1, 1, 16 * factor + 1) float32 of unit sum. The cut-off, at half height, is 0.85 of that frequency; the Hann
        window's transition is about 0.15 of it to either side, so what is above it is gone.
    """
    reach = 8 * factor
    time = torch.arange(-reach, reach + 1, dtype=torch.float64)
    window = 0.5 + 0.5 * torch.cos(pi * time / (reach + 1))
    taps = window * torch.special.sinc(0.85 * time / factor)
    return (taps / taps.sum()).float()[None, None]


class PeriodDiscriminator(nn.Module):
    """Convolutions along each of the P interleaved sub-sequences of the waveform, with shared weights.

    The sub-sequences are rows of an image whose kernels are one row high. Columns, as published, come to the same; but
    so a row is contiguous, which on a CPU is faster by a fifth, and makes all periods equally fast.

    Source: HiFi-GAN, arXiv:2010.05646.
    """

    def __init__(self, period: int, config: PeriodConfig) -> None:
        super().__init__()
        self.period, self.level_input, self.pad_whole_period = period, config.level_input, config.pad_whole_period
        self.convs = nn.ModuleList(
            nn.Conv1d(below, above, size, stride, size // 2)
            for (below, above), size, stride in zip(
                pairwise([1, *config.channels]), config.kernel_sizes, config.strides, strict=True
            )
        )
        self.post = nn.Conv1d(config.channels[-1], 1, 3, padding=1)

    def forward(self, wav: Tensor) -> DiscriminatorOutput:
        """(B, 1, T) -> logits (B, P * L), L = ceil(ceil(T / P) / product of the strides)."""
        wav = level(wav) if self.level_input else wav
        missing = -wav.shape[-1] % self.period
        if missing or self.pad_whole_period:
            wav = F.pad(wav, (0, missing or self.period), mode="reflect")
        x = wav.unflatten(-1, (-1, self.period)).transpose(2, 3)  # (B, 1, P, T / P)
        feature_maps = []
        for conv in self.convs:
            x = F.leaky_relu(_as_convolved(_along_rows(conv, x)), _SLOPE)
            feature_maps.append(x)
        return DiscriminatorOutput(_along_rows(self.post, x).flatten(1), feature_maps)


def _as_convolved(x: Tensor) -> Tensor:
    """An image (B, C, N, F) in the order of memory in which the device convolves it.

    A GPU does so with the channels of a place next to each other; left to itself it would reorder what goes into each
    convolution and what comes out.
    """
    return x.contiguous(memory_format=torch.channels_last) if x.is_cuda else x


def _along_rows(conv: nn.Module, x: Tensor) -> Tensor:
    """A one-dimensional convolution of each row: (B, C, P, L) -> (B, C', P, L')."""
    stride, padding = (1, *conv.stride), (0, *conv.padding)  # type: ignore[misc]
    return F.conv2d(x, conv.weight.unsqueeze(2), conv.bias, stride, padding)  # type: ignore[operator, arg-type]


class ScaleDiscriminator(nn.Module):
    """Long grouped convolutions over the waveform after low-pass filtering and downsampling.

    Source: MelGAN, arXiv:1910.06711, with a low-pass filter in place of average pooling, whose stop band leaks.
    """

    taps: Tensor

    def __init__(self, factor: int, config: ScaleConfig) -> None:
        super().__init__()
        self.factor, self.level_input = factor, config.level_input
        self.register_buffer("taps", low_pass(factor), persistent=False)
        self.convs = nn.ModuleList(
            nn.Conv1d(below, above, size, stride, size // 2, groups=groups)
            for (below, above), size, stride, groups in zip(
                pairwise([1, *config.channels]), config.kernel_sizes, config.strides, config.groups, strict=True
            )
        )
        self.post = nn.Conv1d(config.channels[-1], 1, 3, padding=1)

    def downsample(self, wav: Tensor) -> Tensor:
        """(B, 1, T) -> (B, 1, ceil(T / factor))."""
        if self.factor == 1:
            return wav
        with torch.autocast(wav.device.type, enabled=False):
            wav = wav.to(self.taps.dtype)
            return F.conv1d(wav, self.taps, stride=self.factor, padding=self.taps.shape[-1] // 2)

    def forward(self, wav: Tensor) -> DiscriminatorOutput:
        """(B, 1, T) -> logits (B, L), L = ceil(ceil(T / factor) / product of the strides)."""
        x = self.downsample(level(wav) if self.level_input else wav)
        feature_maps = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), _SLOPE)
            feature_maps.append(x)
        return DiscriminatorOutput(self.post(x).flatten(1), feature_maps)


class SpectrumDiscriminator(nn.Module):
    """Two-dimensional convolutions over an STFT, each band of frequencies with its own layers up to the last.

    Source: DAC, arXiv:2306.06546 (complex, banded); UnivNet, arXiv:2106.07889 (magnitude).
    """

    window: Tensor

    def __init__(self, n_fft: int, hop_length: int, config: SpectrumConfig) -> None:
        super().__init__()
        self.n_fft, self.hop_length, self.level_input = n_fft, hop_length, config.level_input
        self.is_complex, self.compression, self.is_unitary = config.is_complex, config.compression, config.hann_window
        window = torch.hann_window(n_fft) if config.hann_window else torch.ones(n_fft)
        self.register_buffer("window", window, persistent=False)
        self.bands = bands(n_fft, config.band_edges)
        first = 2 if config.is_complex else 1
        self.band_convs = nn.ModuleList(
            nn.ModuleList(
                nn.Conv2d(below, above, (size[0], size[1]), (stride[0], stride[1]), (size[0] // 2, size[1] // 2))
                for (below, above), size, stride in zip(
                    pairwise([first, *config.channels]), config.kernel_sizes, config.strides, strict=True
                )
            )
            for _ in self.bands
        )
        self.post = nn.Conv2d(config.channels[-1], 1, 3, padding=1)

    def spectrum(self, wav: Tensor) -> Tensor:
        """(B, 1, T) -> (B, 2 or 1, N, F) float32 whatever autocast says."""
        with torch.autocast(wav.device.type, enabled=False):
            wav = wav.to(torch.promote_types(wav.dtype, torch.float32)).squeeze(1)
            bins = torch.stft(
                wav,
                self.n_fft,
                self.hop_length,
                window=self.window,
                center=True,
                normalized=self.is_unitary,
                return_complex=True,
            )  # (B, F, N)
            bins = bins.transpose(1, 2)  # (B, N, F)
            if not self.is_complex:
                magnitude = bins.abs().unsqueeze(1)
                return magnitude if self.compression == 1 else (magnitude + 1e-3).pow(self.compression)
            x = torch.stack([bins.real, bins.imag], dim=1)  # (B, 2, N, F)
            if self.compression == 1:
                return x
            # |S|^(c - 1) grows without bound towards silence; the 1e-5 caps it, at 18 for c = 1/2.
            power = x.square().sum(dim=1, keepdim=True) + 1e-5
            return x * power.pow((self.compression - 1) / 2)

    def forward(self, wav: Tensor) -> DiscriminatorOutput:
        """(B, 1, T) -> logits (B, any)."""
        spectrum = self.spectrum(level(wav) if self.level_input else wav)  # (B, 2 or 1, N, F)
        feature_maps, ends = [], []
        for (low, high), convs in zip(self.bands, self.band_convs, strict=True):
            x = _as_convolved(spectrum[..., low:high])
            for conv in convs:  # type: ignore[attr-defined]
                x = F.leaky_relu(conv(x), _SLOPE)
                feature_maps.append(x)
            ends.append(x)
        return DiscriminatorOutput(self.post(torch.cat(ends, dim=-1)).flatten(1), feature_maps)


class Discriminators(nn.Module):
    """All discriminators of a configuration, in named groups.

    Args:
        config: which groups, and how wide.
    """

    def __init__(self, config: DiscriminatorsConfig) -> None:
        super().__init__()
        self.config = config
        self.groups = nn.ModuleDict({name: nn.ModuleList(group.build()) for name, group in config.groups().items()})

    def members(self) -> Iterator[tuple[GroupConfig, float, nn.Module]]:
        """(its group's settings, factor of its losses in the sum, network) of each discriminator."""
        for name, group in self.config.groups().items():
            members = self.groups[name]
            share = 1.0 if group.reduction == "sum" else 1.0 / len(members)  # type: ignore[arg-type]
            for member in members:  # type: ignore[attr-defined]
                yield group, share, member

    def forward(self, wav: Tensor) -> dict[str, list[DiscriminatorOutput]]:
        """(B, 1, T) -> by group, the outputs of its discriminators."""
        return {name: [member(wav) for member in group] for name, group in self.groups.items()}  # type: ignore[attr-defined]
