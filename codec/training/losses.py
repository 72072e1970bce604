"""Training losses as functions of tensors: spectral reconstruction, adversarial, feature matching.

Knows neither discriminators nor optimizers. Everything spectral runs in float32 with autocast off, because the
logarithm of a magnitude needs more than eight bits of mantissa. Nothing here waits for the device or writes into its
inputs.

Shapes: B batch, T samples, F frequency bins, M mel bands, N frames. Waveforms are (B, T) or (B, 1, T).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.errors import ConfigError

MEL_SCALES = ("htk", "slaney")
ADVERSARIAL_LOSSES = ("hinge", "least-squares")

# The Slaney scale: linear to 1000 Hz (15 mel), then 27 equal steps for every factor of 6.4 in frequency.
_SLANEY_HZ_PER_MEL = 200.0 / 3.0
_SLANEY_BREAK_HZ = 1000.0
_SLANEY_BREAK_MEL = _SLANEY_BREAK_HZ / _SLANEY_HZ_PER_MEL
_SLANEY_LOG_STEP = math.log(6.4) / 27.0


def _wide(values: Tensor) -> Tensor:
    """16-bit values as float32, others as they are."""
    return values.float() if values.dtype.itemsize < 4 else values


# ---------------------------------------------------------------------------------------------------------------------
# Mel filters


def hz_to_mel(hz: Tensor, scale: str) -> Tensor:
    """Frequencies in Hz on the "htk" or "slaney" mel scale."""
    if scale == "htk":
        return 2595.0 * torch.log10(1.0 + hz / 700.0)
    logarithmic = _SLANEY_BREAK_MEL + torch.log(hz.clamp(min=1e-9) / _SLANEY_BREAK_HZ) / _SLANEY_LOG_STEP
    return torch.where(hz < _SLANEY_BREAK_HZ, hz / _SLANEY_HZ_PER_MEL, logarithmic)


def mel_to_hz(mel: Tensor, scale: str) -> Tensor:
    """Inverse of `hz_to_mel`."""
    if scale == "htk":
        return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)
    logarithmic = _SLANEY_BREAK_HZ * torch.exp(_SLANEY_LOG_STEP * (mel - _SLANEY_BREAK_MEL))
    return torch.where(mel < _SLANEY_BREAK_MEL, mel * _SLANEY_HZ_PER_MEL, logarithmic)


def mel_filterbank(
    sample_rate: int,
    n_fft: int,
    num_mels: int,
    *,
    scale: str = "htk",
    normalize: bool = False,
    f_min: float = 0.0,
    f_max: float | None = None,
) -> Tensor:
    """Triangular filters whose corners are equally spaced on the mel scale.

    Args:
        sample_rate: Hz.
        n_fft: STFT length; there are n_fft // 2 + 1 bins.
        num_mels: number of filters.
        scale: "htk" or "slaney".
        normalize: give each filter unit area over Hz instead of unit height.
        f_min: lower corner of the first filter, Hz.
        f_max: upper corner of the last filter, Hz; None means half the sample rate.

    Returns:
        (F, M) float32, F = n_fft // 2 + 1. A filter narrower than the bin spacing can be all zeros.

    Raises:
        ConfigError: unknown scale, or corners out of order.
    """
    f_max = sample_rate / 2 if f_max is None else f_max
    if scale not in MEL_SCALES:
        raise ConfigError(f"mel scale must be one of {', '.join(MEL_SCALES)}, got {scale!r}")
    if num_mels < 1 or not 0 <= f_min < f_max <= sample_rate / 2:
        raise ConfigError(
            f"mel filters need num_mels >= 1 and 0 <= f_min < f_max <= {sample_rate / 2:g} Hz, "
            f"got num_mels {num_mels}, f_min {f_min:g}, f_max {f_max:g}"
        )
    ends = hz_to_mel(torch.tensor([f_min, f_max], dtype=torch.float64), scale)
    steps = torch.linspace(0.0, 1.0, num_mels + 2, dtype=torch.float64)
    corners = mel_to_hz(ends[0] + (ends[1] - ends[0]) * steps, scale)  # (M + 2,)
    bins = torch.linspace(0.0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)  # (F,)
    rising = (bins[:, None] - corners[:-2]) / (corners[1:-1] - corners[:-2])  # (F, M)
    falling = (corners[2:] - bins[:, None]) / (corners[2:] - corners[1:-1])
    filters = torch.minimum(rising, falling).clamp(min=0.0)
    if normalize:
        filters = filters * (2.0 / (corners[2:] - corners[:-2]))
    return filters.float()


# ---------------------------------------------------------------------------------------------------------------------
# Spectra


def magnitudes(wav: Tensor, n_fft: int, hop_length: int, window: Tensor) -> Tensor:
    """Magnitude STFT, centred with reflection, in float32 whatever autocast says.

    Args:
        wav: (B, T) or (B, 1, T), T > n_fft // 2.
        n_fft: length of window and transform.
        hop_length: samples between frames.
        window: (n_fft,).

    Returns:
        (B, F, N), F = n_fft // 2 + 1, N = T // hop_length + 1. The gradient of a zero bin is zero.
    """
    wav = wav.squeeze(1) if wav.dim() == 3 else wav
    with torch.autocast(wav.device.type, enabled=False):
        return torch.stft(_wide(wav), n_fft, hop_length, n_fft, window, center=True, return_complex=True).abs()


class LogMel(nn.Module):
    """Natural logarithm of a mel magnitude spectrum.

    Args:
        sample_rate: Hz.
        n_fft: length of the Hann window and of the transform.
        hop_length: samples between frames.
        num_mels: M.
        scale: "htk" or "slaney"; the latter also gives the filters unit area.
        floor: smaller values are raised to this before the logarithm; their gradient is zero.
    """

    window: Tensor
    filters: Tensor

    def __init__(
        self, sample_rate: int, n_fft: int, hop_length: int, num_mels: int, *, scale: str = "htk", floor: float = 1e-7
    ) -> None:
        super().__init__()
        self.n_fft, self.hop_length, self.floor = n_fft, hop_length, floor
        filters = mel_filterbank(sample_rate, n_fft, num_mels, scale=scale, normalize=scale == "slaney")
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, wav: Tensor) -> Tensor:
        """(B, T) or (B, 1, T) -> (B, M, N), N = T // hop_length + 1."""
        spectrum = magnitudes(wav, self.n_fft, self.hop_length, self.window)  # (B, F, N)
        with torch.autocast(wav.device.type, enabled=False):
            mel = torch.matmul(self.filters.T, spectrum)  # (B, M, N)
            return mel.clamp(min=self.floor).log()


@dataclass
class MelLossConfig:
    """Which log-mel spectra are compared. The default is ours: short windows for onsets, long ones for harmonics."""

    resolutions: list[list[int]] = field(
        default_factory=lambda: [
            [64, 16, 5],
            [128, 32, 10],
            [256, 64, 20],
            [512, 128, 40],
            [1024, 256, 80],
            [2048, 512, 160],
        ]
    )
    """[n_fft, hop_length, num_mels] of each spectrum; all are weighted alike."""
    scale: str = "slaney"
    """"htk" (unit-height filters) or "slaney" (unit-area filters)."""
    floor: float = 1e-5
    """Values below are raised to this before the logarithm; > 0. Keeps near-silence from dominating."""

    def __post_init__(self) -> None:
        self.resolutions = [list(resolution) for resolution in self.resolutions]
        if not self.resolutions or any(len(r) != 3 or min(r) < 1 for r in self.resolutions):
            raise ConfigError(
                f"mel resolutions must be triples of positive [n_fft, hop_length, num_mels], got {self.resolutions}"
            )
        if self.scale not in MEL_SCALES:
            raise ConfigError(f"mel scale must be one of {', '.join(MEL_SCALES)}, got {self.scale!r}")
        if not self.floor > 0:
            raise ConfigError(f"mel floor must be positive, got {self.floor:g}")

    @classmethod
    def reference(cls) -> "MelLossConfig":
        """The published recipe's single spectrum: 1024 / 256, 100 HTK bands, floor 1e-7."""
        return cls(resolutions=[[1024, 256, 100]], scale="htk", floor=1e-7)


class MelLoss(nn.Module):
    """Mean absolute difference of log-mel spectra, averaged over resolutions.

    Args:
        config: the resolutions.
        sample_rate: Hz.
    """

    def __init__(self, config: MelLossConfig, sample_rate: int) -> None:
        super().__init__()
        self.spectra = nn.ModuleList(
            LogMel(sample_rate, n_fft, hop_length, num_mels, scale=config.scale, floor=config.floor)
            for n_fft, hop_length, num_mels in config.resolutions
        )

    def forward(self, reference: Tensor, estimate: Tensor) -> Tensor:
        """(B, T) or (B, 1, T) twice -> scalar. The reference is a target: no gradient reaches it."""
        losses = []
        for spectrum in self.spectra:
            with torch.no_grad():
                target = spectrum(reference)
            losses.append(F.l1_loss(spectrum(estimate), target))
        return torch.stack(losses).mean()


class StftLossResult(NamedTuple):
    """Both terms of `stft_loss`, scalars."""

    convergence: Tensor
    log_magnitude: Tensor


def stft_loss(
    reference: Tensor,
    estimate: Tensor,
    resolutions: Sequence[tuple[int, int]] = ((512, 128), (1024, 256), (2048, 512)),
    floor: float = 1e-5,
) -> StftLossResult:
    """Spectral convergence and log-magnitude difference, averaged over resolutions.

    Convergence is ||S - S'|| / ||S|| per clip, with Frobenius norms: it sees the peaks. The logarithm sees the rest.

    Args:
        reference: (B, T) or (B, 1, T), the target; no gradient reaches it.
        estimate: the same shape.
        resolutions: (n_fft, hop_length) of each Hann-windowed magnitude STFT.
        floor: smaller magnitudes are raised to this before the logarithm, and a silent clip's norm before dividing.

    Source: Parallel WaveGAN, arXiv:1910.11480, equations 4 to 6.
    """
    convergence, log_magnitude = [], []
    for n_fft, hop_length in resolutions:
        window = torch.hann_window(n_fft, device=reference.device)
        with torch.no_grad():
            target = magnitudes(reference, n_fft, hop_length, window)
        spectrum = magnitudes(estimate, n_fft, hop_length, window)
        error = (target - spectrum).square().sum(dim=(1, 2))  # (B,)
        energy = target.square().sum(dim=(1, 2))
        # sqrt has an infinite slope at 0, where an exact copy would land.
        convergence.append(((error + floor**2).sqrt() - floor).div((energy + floor**2).sqrt()).mean())
        log_magnitude.append(F.l1_loss(spectrum.clamp(min=floor).log(), target.clamp(min=floor).log()))
    return StftLossResult(torch.stack(convergence).mean(), torch.stack(log_magnitude).mean())


# ---------------------------------------------------------------------------------------------------------------------
# Adversarial losses of one discriminator


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """mean max(0, 1 - real) + mean max(0, 1 + fake): satisfied once real is above 1 and fake below -1."""
    return F.relu(1.0 - _wide(real)).mean() + F.relu(1.0 + _wide(fake)).mean()


def hinge_generator_loss(fake: Tensor) -> Tensor:
    """mean max(0, 1 - fake): satisfied once the fake logits are above 1."""
    return F.relu(1.0 - _wide(fake)).mean()


def least_squares_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """mean (1 - real)^2 + mean fake^2: real is drawn to 1, fake to 0."""
    return (1.0 - _wide(real)).square().mean() + _wide(fake).square().mean()


def least_squares_generator_loss(fake: Tensor) -> Tensor:
    """mean (1 - fake)^2: the fake logits are drawn to 1."""
    return (1.0 - _wide(fake)).square().mean()


def discriminator_loss(real: Tensor, fake: Tensor, kind: str) -> Tensor:
    """Loss of one discriminator on its logits; `kind` is "hinge" or "least-squares"."""
    return {"hinge": hinge_discriminator_loss, "least-squares": least_squares_discriminator_loss}[kind](real, fake)


def generator_loss(fake: Tensor, kind: str) -> Tensor:
    """Loss of the generator under one discriminator; `kind` is "hinge" or "least-squares"."""
    return {"hinge": hinge_generator_loss, "least-squares": least_squares_generator_loss}[kind](fake)


def feature_matching_loss(real: Sequence[Tensor], fake: Sequence[Tensor], *, relative: bool = False) -> Tensor:
    """Sum over feature maps of their mean absolute difference.

    Args:
        real: the maps of the reference; no gradient reaches them.
        fake: the maps of the estimate, same shapes.
        relative: divide each map's term by the mean magnitude of the real map, so that neither depth nor a
            discriminator that scales its features up changes the weight of a map.
    """
    if len(real) != len(fake) or not real:
        raise ValueError(f"feature maps come in pairs, got {len(real)} real and {len(fake)} fake ones")
    losses = []
    for target, estimate in zip(real, fake, strict=True):
        target = target.detach()
        wide = torch.promote_types(target.dtype, torch.float32)
        loss = (estimate - target).abs().mean(dtype=wide)  # maps stay 16 bit under autocast, the sum does not
        losses.append(loss / target.abs().mean(dtype=wide).clamp(min=1e-5) if relative else loss)
    return torch.stack(losses).sum()
