"""How disturbed speech sounds to a model of the ear: the central part of PESQ as a loss with a gradient.

A log-spectrum counts an error in the gap between two harmonics like one on top of them. To an ear, sound that was added
where there was none disturbs most, and what lies below the threshold of hearing, or is masked by louder sound in the
same band, not at all.

Legend: B batch, T samples, N frames, F frequency bins, M bands.
"""

import torch
from torch import Tensor, nn

from codec.training.losses import magnitudes

FRAME_SECONDS = 0.032  # with half of it between frames
HIGHEST_FREQUENCY = 8000.0  # Hz
BARK_PER_BAND = 0.31  # one frequency bin at low frequencies, where single harmonics are heard
SPEECH_LEVEL = 86.0  # dB SPL of the frames that have speech
QUIETEST_SPEECH = 1e-5  # of the power of the loudest frame

REFERENCE_LEVEL = 40.0  # dB SPL of the tone of 1 kHz whose loudness is 1 sone
ZWICKER_EXPONENT = 0.23
MASKED_SHARE = 0.25  # of the loudness of the softer signal
AUDIBLE_LEVEL = 20.0  # dB above the threshold: what counts as the level of a frame
LARGEST_GAIN = 5.0  # in power, when a frame's level is evened out
ASYMMETRY_OFFSET = 50.0  # power, as all others with 1 at 0 dB SPL
ASYMMETRY_EXPONENT = 1.2
LEAST_ASYMMETRY, GREATEST_ASYMMETRY = 3.0, 12.0
FLOOR = 0.01  # sone Bark
SYMMETRIC_WEIGHT, ASYMMETRIC_WEIGHT = 0.1, 0.0309


def bark(hz: Tensor) -> Tensor:
    """Critical-band rate of frequencies in Hz. Source: Traunmüller, 1990, equation 6."""
    return 26.81 * hz / (1960.0 + hz) - 0.53


def hearing_threshold(hz: Tensor) -> Tensor:
    """Sound pressure level of the softest tone that is heard, dB, at frequencies in Hz. Source: Terhardt, 1979."""
    khz = hz / 1000.0
    return 3.64 * khz**-0.8 - 6.5 * torch.exp(-0.6 * (khz - 3.3) ** 2) + 1e-3 * khz**4


def power_of(level: Tensor) -> Tensor:
    """Power of a level in dB SPL, 1 at 0 dB."""
    return 10 ** (level / 10)


def loudness(power: Tensor, thresholds: Tensor, exponents: Tensor) -> Tensor:
    """Loudness of bands (..., M) of some power, in an arbitrary unit; 0 up to the threshold. Source: Zwicker, 1958."""
    relative = (power / thresholds).clamp(min=1)
    return (thresholds / 0.5) ** exponents * ((0.5 + 0.5 * relative) ** exponents - 1)


class Disturbance(nn.Module):
    """Audible difference of two recordings, in points of the raw PESQ score.

    Powers of critical bands become loudness; what the louder of two signals masks is taken off their difference; the
    rest is summed over bands, once as it is and once with more weight on what the estimate adds. The mean over frames
    takes the place of the norms that let PESQ's worst moments decide, and no frame's disturbance is cut off, so that
    bad frames keep a gradient. Level is that of the reference; what differs in level from frame to frame is evened out
    first.

    Args:
        sample_rate: Hz.

    Source: ITU-T P.862, section 10; as a loss, PMSQE (Martín-Doñas et al., 2018). Bands, threshold and loudness come
    from formulas instead of the recommendation's tables.
    """

    window: Tensor
    bands: Tensor  # (F, M), which bins each band adds up
    widths: Tensor  # (M,) Bark
    thresholds: Tensor  # (M,) power
    exponents: Tensor  # (M,)
    sone: Tensor  # scalar, loudness of the tone of 1 kHz at 40 dB

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        self.n_fft = 2 * round(sample_rate * FRAME_SECONDS / 2)
        hz = torch.arange(1, self.n_fft // 2 + 1, dtype=torch.float64) * sample_rate / self.n_fft  # but the constant
        hz = hz[hz <= HIGHEST_FREQUENCY]
        numbers = ((bark(hz) - bark(hz[0])) / BARK_PER_BAND).round().long().unique(return_inverse=True)[1]
        bands = torch.zeros(self.n_fft // 2 + 1, int(numbers[-1]) + 1, dtype=torch.float64)
        bands[torch.arange(1, len(hz) + 1), numbers] = 1
        counts = bands.sum(0)
        centres = hz @ bands[1 : len(hz) + 1] / counts
        thresholds = power_of(hearing_threshold(centres))
        exponents = ZWICKER_EXPONENT * (6 / (bark(centres) + 2)).clamp(1, 2) ** 0.15  # P.862's, below 4 Bark
        half_widths = counts * hz[0] / 2
        tone = torch.tensor([1000.0], dtype=torch.float64)
        exponent = torch.tensor([ZWICKER_EXPONENT], dtype=torch.float64)
        reference = power_of(torch.tensor([REFERENCE_LEVEL], dtype=torch.float64))
        sone = loudness(reference, power_of(hearing_threshold(tone)), exponent)
        self.register_buffer("window", torch.hann_window(self.n_fft), persistent=False)
        for name, values in {
            "bands": bands,
            "widths": bark(centres + half_widths) - bark(centres - half_widths),
            "thresholds": thresholds,
            "exponents": exponents,
            "sone": sone.squeeze(),
        }.items():
            self.register_buffer(name, values.float(), persistent=False)

    def forward(self, reference: Tensor, estimate: Tensor) -> Tensor:
        """(B, T) or (B, 1, T) twice, T >= 32 ms -> scalar. No gradient reaches the reference."""
        with torch.autocast(reference.device.type, enabled=False):
            with torch.no_grad():
                target = self._band_powers(reference)  # (B, N, M)
                total = target.sum(-1)
                is_speech = total > QUIETEST_SPEECH * total.amax(1, keepdim=True)
                level = (total * is_speech).sum(1) / is_speech.sum(1).clamp(min=1)
                gain = (10 ** (SPEECH_LEVEL / 10) / level.clamp(min=1e-10))[:, None, None]
                target = gain * target
                target_sones = self._sones(target)
            power = gain * self._band_powers(estimate)
            power = power * self._level_ratio(target, power)[..., None]
            sones = self._sones(power)
            difference = (sones - target_sones).abs()
            difference = (difference - MASKED_SHARE * torch.minimum(sones, target_sones)).clamp(min=0)
            added = ((power + ASYMMETRY_OFFSET) / (target + ASYMMETRY_OFFSET)) ** ASYMMETRY_EXPONENT
            added = torch.where(added < LEAST_ASYMMETRY, 0.0, added.clamp(max=GREATEST_ASYMMETRY))
            total_width = self.widths.sum()
            # The root has an infinite slope at 0, where an exact copy would be.
            symmetric = ((difference * self.widths).square().sum(-1) * total_width + FLOOR**2).sqrt() - FLOOR  # (B, N)
            asymmetric = (difference * added * self.widths).sum(-1)
            importance = ((target.sum(-1) + 1e5) / 1e7) ** -0.04  # of loud frames a little less
            return ((SYMMETRIC_WEIGHT * symmetric + ASYMMETRIC_WEIGHT * asymmetric) * importance).mean()

    def _band_powers(self, wav: Tensor) -> Tensor:
        frames = wav.float().reshape(len(wav), -1).unfold(-1, self.n_fft, self.n_fft // 2) * self.window
        return magnitudes(frames).square() @ self.bands

    def _sones(self, power: Tensor) -> Tensor:
        return loudness(power, self.thresholds, self.exponents) / self.sone

    def _level_ratio(self, target: Tensor, power: Tensor) -> Tensor:
        """By how much the power of each frame is to be raised to the target's, (B, N)."""
        least = 10 ** (AUDIBLE_LEVEL / 10) * self.thresholds
        audible = [(values * (values > least)).sum(-1) + 5e3 for values in (target, power)]
        return (audible[0] / audible[1]).clamp(3e-4, LARGEST_GAIN)
