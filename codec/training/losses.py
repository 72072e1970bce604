"""Training losses as functions of tensors: spectral reconstruction, adversarial, feature matching.

Knows neither discriminators nor optimizers. Everything spectral runs in float32 with autocast off, because the
logarithm of a magnitude needs more than eight bits of mantissa. Nothing here waits for the device or writes into its
inputs.

Shapes: B batch, T samples, F frequency bins, M mel bands, N frames. Waveforms are (B, T) or (B, 1, T).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.evaluation.spectra import MEL_SCALES, mel_filters
from codec.limits import not_positive, refuse

_SMALLEST_MAGNITUDE = 1e-20  # that is divided by


def _wide(values: Tensor) -> Tensor:
    """16-bit values as float32, others as they are."""
    return values.float() if values.dtype.itemsize < 4 else values


# ---------------------------------------------------------------------------------------------------------------------
# Spectra


class MelSpectrum(nn.Module):
    """Magnitude spectra of centred Hann windows and their mel bands, in float32 whatever autocast says.

    Args:
        sample_rate: Hz.
        n_fft: length of window and transform.
        hop_length: samples between frames.
        num_mels: M.
        scale: "htk" or "slaney"; the latter also gives the filters unit area.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, sample_rate: int, n_fft: int, hop_length: int, num_mels: int, *, scale: str = "htk") -> None:
        super().__init__()
        self.n_fft, self.hop_length = n_fft, hop_length
        self.register_buffer("window", torch.hann_window(n_fft, dtype=torch.float32), persistent=False)
        filters = torch.tensor(mel_filters(sample_rate, n_fft, num_mels, scale))  # a copy, theirs is kept for others
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, wav: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) or (B, 1, T), T > n_fft // 2 -> magnitudes (B, N, F) and mel bands (B, N, M), N = T // hop_length + 1.

        The ends are reflected. The gradient of a zero bin is zero.
        """
        with torch.autocast(wav.device.type, enabled=False):
            wav = _wide(wav).reshape(len(wav), 1, -1)
            wav = F.pad(wav, (self.n_fft // 2, self.n_fft // 2), mode="reflect").squeeze(1)
            frames = wav.unfold(-1, self.n_fft, self.hop_length) * self.window  # (B, N, n_fft)
            values = magnitudes(frames)  # (B, N, F)
            return values, values @ self.filters


def magnitudes(frames: Tensor) -> Tensor:
    """|rfft(frames)| over the last dimension, an even number of samples; the gradient of a zero bin is zero."""
    return _Magnitudes.apply(frames)


class _Magnitudes(torch.autograd.Function):
    """`magnitudes`.

    The backward pass is one inverse real transform. Differentiated by torch, the half spectrum would be filled up to a
    complex one of full length, at three times the time and memory.
    """

    @staticmethod
    def forward(ctx: Any, frames: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(frames)
        real, imaginary = torch.view_as_real(spectrum).unbind(-1)
        # Not abs(), which takes twice the time to guard against squares that overflow.
        magnitudes = (real * real + imaginary * imaginary).sqrt()
        ctx.save_for_backward(spectrum, magnitudes)
        return magnitudes

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Tensor:
        # d|X| / dx_t is the real part of conj(X) / |X| e^(-2 pi i f t / n). irfft counts every bin but the first and
        # the last twice, for its mirror image, which the loss has not seen.
        spectrum, magnitudes = ctx.saved_tensors
        slope = outer[0] / magnitudes.clamp(min=_SMALLEST_MAGNITUDE)
        slope[..., 1:-1] *= 0.5
        return torch.fft.irfft(spectrum * slope, norm="forward")


def limit_band(wav: Tensor, bandwidth: Tensor, sample_rate: int) -> Tensor:
    """What each recording (B, 1, T) has up to its bandwidth, (B,) in Hz, in float32."""
    with torch.autocast(wav.device.type, enabled=False):
        spectrum = torch.fft.rfft(_wide(wav))
        hz = torch.linspace(0, sample_rate / 2, spectrum.shape[-1], dtype=torch.float32, device=wav.device)
        return torch.fft.irfft(spectrum * (hz <= bandwidth[:, None, None]), n=wav.shape[-1])


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
        mistakes = not_positive(self, "mel", ("floor",))
        if not self.resolutions or any(len(r) != 3 or min(r) < 1 for r in self.resolutions):
            mistakes.append(
                f"mel.resolutions must be triples of positive [n_fft, hop_length, num_mels], got {self.resolutions}"
            )
        if self.scale not in MEL_SCALES:
            mistakes.append(f"mel.scale must be one of {', '.join(MEL_SCALES)}, got {self.scale!r}")
        refuse(mistakes)


class SpectralLosses(NamedTuple):
    """Distances of two recordings' spectra, scalars, averaged over resolutions.

    Each sees another part of the sound: the logarithm all of it alike, down to the floor; loudness what an ear would
    hear; convergence the peaks.
    """

    mel: Tensor
    """Mean absolute difference of log-mel magnitudes."""
    loudness: Tensor
    """Sum |L - L'| / sum L per clip, L the square root of the mel magnitudes."""
    convergence: Tensor
    """||S - S'|| / ||S|| per clip, Frobenius norms of the linear magnitudes."""


class SpectralLoss(nn.Module):
    """Distances of magnitude spectra, which are computed once for all of them.

    Args:
        config: the resolutions.
        sample_rate: Hz.

    Source: convergence from Parallel WaveGAN, arXiv:1910.11480, equation 4. Loudness as the square root of amplitude is
    near the exponents of Zwicker (0.46) and Stevens (0.6).
    """

    def __init__(self, config: MelLossConfig, sample_rate: int) -> None:
        super().__init__()
        self.floor = config.floor
        self.spectra = nn.ModuleList(
            MelSpectrum(sample_rate, n_fft, hop_length, num_mels, scale=config.scale)
            for n_fft, hop_length, num_mels in config.resolutions
        )

    def forward(self, reference: Tensor, estimate: Tensor) -> SpectralLosses:
        """(B, T) or (B, 1, T) twice -> scalars. The reference is a target: no gradient reaches it."""
        losses = [self._distances(spectrum, reference, estimate) for spectrum in self.spectra]  # type: ignore[arg-type]
        return SpectralLosses(*(torch.stack(terms).mean() for terms in zip(*losses, strict=True)))

    def _distances(self, spectrum: MelSpectrum, reference: Tensor, estimate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            target, target_mel = spectrum(reference)
            target_mel = target_mel.clamp(min=self.floor)
            target_loudness = target_mel.sqrt()
        magnitudes, mel = spectrum(estimate)
        mel = mel.clamp(min=self.floor)
        # sqrt has an infinite slope at 0, where an exact copy would be. A silent clip counts like one of the softest
        # noise that 16 bits hold, or else the least sound in it would outweigh all other clips of a batch.
        error = (target - magnitudes).square().sum(dim=(1, 2))  # (B,)
        softest = target[0].numel() * spectrum.window.square().sum() / 2**30
        energy = target.square().sum(dim=(1, 2)) + softest
        convergence = ((error + self.floor**2).sqrt() - self.floor) / energy.sqrt()
        loudness = (target_loudness - mel.sqrt()).abs().sum(dim=(1, 2)) / target_loudness.sum(dim=(1, 2))
        return F.l1_loss(mel.log(), target_mel.log()), loudness.mean(), convergence.mean()


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


class AdversarialLoss(NamedTuple):
    """The losses of both sides under one discriminator, scalars."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    """Of the real and the fake logits."""
    generator: Callable[[Tensor], Tensor]
    """Of the fake logits."""
    undecided: float
    """The discriminator's loss if it tells nothing apart: the least that it has where both logits are equal."""


ADVERSARIAL_LOSSES = {
    "hinge": AdversarialLoss(hinge_discriminator_loss, hinge_generator_loss, undecided=2.0),
    "least-squares": AdversarialLoss(least_squares_discriminator_loss, least_squares_generator_loss, undecided=0.5),
}


def feature_matching_loss(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Sum over feature maps of their mean absolute difference.

    Args:
        real: the maps of the reference; no gradient reaches them.
        fake: the maps of the estimate, same shapes.
    """
    if len(real) != len(fake) or not real:
        raise ValueError(f"feature maps come in pairs, got {len(real)} real and {len(fake)} fake ones")
    losses = []
    for target, estimate in zip(real, fake, strict=True):
        wide = torch.promote_types(target.dtype, torch.float32)
        # Maps stay 16 bit under autocast, the sum does not.
        losses.append((estimate - target.detach()).abs().mean(dtype=wide))
    return torch.stack(losses).sum()
