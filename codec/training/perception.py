"""What of a difference is heard, as losses with a gradient: the central part of PESQ, and STOI.

A log-spectrum counts an error in the gap between two harmonics like one on top of them. To an ear, sound that was added
where there was none disturbs most, and what lies below the threshold of hearing, or is masked by louder sound in the
same band, not at all. What is understood hangs on how bands get louder and softer together with those of the original.

Legend: B batch, T samples, N frames, F frequency bins, M bands, S stretches of several frames.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.training.losses import magnitudes

LEAST_RATE = 500  # Hz; with less, bands that the losses weigh against each other are empty
FRAME_SECONDS = 0.032  # with half of it between frames
HIGHEST_FREQUENCY = 8000.0  # Hz
BARK_PER_BAND = 0.31  # one frequency bin at low frequencies, where single harmonics are heard
SPEECH_LEVEL = 86.0  # dB SPL of the frames that have speech
QUIETEST_SPEECH = 1e-5  # of the power of the loudest frame

REFERENCE_LEVEL = 40.0  # dB SPL of the tone of 1 kHz whose loudness is 1 sone
ZWICKER_EXPONENT = 0.23
LOWEST_FREQUENCY = 100.0  # Hz; below, headphones are told less and less
TELEPHONE_BAND = 325.0, 3250.0  # Hz, in which two recordings are made equally loud
LEVEL_RATIOS = 1e-2, 1e2  # in power, by which a recording may be
RESPONSE_RATIOS = 1e-2, 1e2  # in power, by which a band may be louder all the time without disturbing
RESPONSE_FLOOR = 1e3  # power, as all powers here with 1 at 0 dB SPL
AUDIBLE_FRAME = 1e7  # power of a frame that tells something about the response
AUDIBLE_BAND = 100.0  # times the threshold of hearing, the power of a band that does; P.862's
MASKED_SHARE = 0.25  # of the loudness of the softer signal
FRAME_FLOOR = 5e3  # power that is added to each frame's when its level is evened out; P.862's, as the next
LEAST_GAIN, LARGEST_GAIN = 3e-4, 5.0  # in power, of a frame
ASYMMETRY_OFFSET = 50.0  # power
ASYMMETRY_EXPONENT = 1.2
LEAST_ASYMMETRY, GREATEST_ASYMMETRY = 3.0, 12.0
FLOOR = 0.01  # sone Bark
MOST_DISTURBED = 45.0  # sone Bark; a frame cannot be worse
IMPORTANCE_FLOOR, IMPORTANCE_UNIT = 1e5, 1e7  # power that is added to a frame's, and of one that counts as it is
IMPORTANCE_EXPONENT = -0.04  # loud frames count a little less; all three P.862's
SYLLABLE = 20  # frames, and half of them from one to the next
WITHIN_SYLLABLE, BETWEEN_SYLLABLES = 6.0, 2.0  # the norms in which disturbances add up: the worst moment decides
SYMMETRIC_WEIGHT, ASYMMETRIC_WEIGHT = 0.1, 0.0309

STOI_FRAME_SECONDS = 0.0256  # with half of it between frames
STOI_STRETCH = 30  # frames
LOWEST_THIRD = 150.0  # Hz, centre of the lowest third of an octave
NUM_THIRDS = 15
QUIETEST_STOI_FRAME = 1e-4  # of the energy of the loudest frame
STOI_CLIP = 15.0  # dB by which an envelope may be above the original's
SMALLEST = 1e-8


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

    Both are made equally loud, and what differs in the level of a band throughout, or from frame to frame in that of
    all bands, is evened out. Powers of critical bands become loudness; what the louder of two signals masks is taken
    off their difference; the rest is summed over bands, once as it is and once with more weight on what the estimate
    adds, and over time in norms that let the worst moments decide.

    Args:
        sample_rate: Hz.

    Source: ITU-T P.862, section 10, and P.862.2; as a loss, PMSQE (Martín-Doñas et al., 2018). Bands, threshold and
    loudness come from formulas instead of the recommendation's tables.
    """

    window: Tensor
    bands: Tensor  # (F, M), how much of a bin's power each band adds up
    widths: Tensor  # (M,) Bark
    thresholds: Tensor  # (M,) power
    exponents: Tensor  # (M,)
    telephone: Tensor  # (M,) bool, those that tell the level
    sone: Tensor  # scalar, loudness of the tone of 1 kHz at 40 dB, over all bands

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        self.n_fft = self.shortest(sample_rate)
        hz = torch.arange(1, self.n_fft // 2 + 1, dtype=torch.float64) * sample_rate / self.n_fft  # but the constant
        hz = hz[hz <= HIGHEST_FREQUENCY]
        numbers = ((bark(hz) - bark(hz[0])) / BARK_PER_BAND).round().long().unique(return_inverse=True)[1]
        bands = torch.zeros(self.n_fft // 2 + 1, int(numbers[-1]) + 1, dtype=torch.float64)
        bands[torch.arange(1, len(hz) + 1), numbers] = 1
        counts = bands.sum(0)
        centres = hz @ bands[1 : len(hz) + 1] / counts
        bands[1 : len(hz) + 1] *= 1 / (1 + (LOWEST_FREQUENCY / hz[:, None]) ** 4)
        thresholds = power_of(hearing_threshold(centres))
        exponents = ZWICKER_EXPONENT * (6 / (bark(centres) + 2)).clamp(1, 2) ** 0.15  # P.862's, below 4 Bark
        half_widths = counts * hz[0] / 2
        self.register_buffer("window", torch.hann_window(self.n_fft, dtype=torch.float32), persistent=False)
        self.register_buffer(
            "telephone", (centres > TELEPHONE_BAND[0]) & (centres < TELEPHONE_BAND[1]), persistent=False
        )
        for name, values in {
            "bands": bands,
            "widths": bark(centres + half_widths) - bark(centres - half_widths),
            "thresholds": thresholds,
            "exponents": exponents,
            "sone": torch.ones(()),
        }.items():
            self.register_buffer(name, values.float(), persistent=False)
        tone = torch.sin(2 * math.pi * 1000.0 / sample_rate * torch.arange(self.n_fft, dtype=torch.float32))
        power = self._band_powers(tone[None])[0]  # (1, M): a window spreads a tone over several bands
        power *= power_of(torch.tensor(REFERENCE_LEVEL, dtype=torch.float32)) / power.sum()
        self.sone.copy_((self._sones(power) * self.widths).sum())

    @staticmethod
    def shortest(sample_rate: int) -> int:
        """The least number of samples that can be judged: a frame."""
        return _even_samples(sample_rate, FRAME_SECONDS)

    def forward(self, reference: Tensor, estimate: Tensor) -> Tensor:
        """(B, T) or (B, 1, T) twice, T >= `shortest` -> scalar. No gradient reaches the reference."""
        with torch.autocast(reference.device.type, enabled=False):
            with torch.no_grad():
                target = self._band_powers(reference)  # (B, N, M)
                total = target.sum(-1)
                is_speech = total > QUIETEST_SPEECH * total.amax(1, keepdim=True)
                level = (total * is_speech).sum(1) / is_speech.sum(1).clamp(min=1)
                gain = (10 ** (SPEECH_LEVEL / 10) / level.clamp(min=1e-10))[:, None, None]
                target = gain * target
            power = gain * self._band_powers(estimate)
            power = power * self._ratio_of_levels(target, power)
            target = target * self._ratio_of_responses(power, target)
            power = power * self._ratio_of_frames(target, power)[..., None]
            target_sones, sones = self._sones(target), self._sones(power)
            difference = (sones - target_sones).abs()
            difference = (difference - MASKED_SHARE * torch.minimum(sones, target_sones)).clamp(min=0)
            added = ((power + ASYMMETRY_OFFSET) / (target + ASYMMETRY_OFFSET)) ** ASYMMETRY_EXPONENT
            added = torch.where(added < LEAST_ASYMMETRY, 0.0, added.clamp(max=GREATEST_ASYMMETRY))
            total_width = self.widths.sum()
            # Roots have an infinite slope at 0, where an exact copy would be: hence the floors.
            symmetric = ((difference * self.widths).square().sum(-1) * total_width + FLOOR**2).sqrt() - FLOOR  # (B, N)
            asymmetric = (difference * added * self.widths).sum(-1)
            importance = ((target.sum(-1) + IMPORTANCE_FLOOR) / IMPORTANCE_UNIT) ** IMPORTANCE_EXPONENT
            of_frames = torch.stack([symmetric, asymmetric], dim=1) * importance[:, None]  # (B, 2, N)
            of_recordings = _worst_moments(of_frames.clamp(max=MOST_DISTURBED))  # (B, 2)
            return (SYMMETRIC_WEIGHT * of_recordings[:, 0] + ASYMMETRIC_WEIGHT * of_recordings[:, 1]).mean()

    def _band_powers(self, wav: Tensor) -> Tensor:
        return magnitudes(_frames(wav, self.window)).square() @ self.bands

    def _sones(self, power: Tensor) -> Tensor:
        return loudness(power, self.thresholds, self.exponents) / self.sone

    def _ratio_of_levels(self, target: Tensor, power: Tensor) -> Tensor:
        """By how much the power of a whole recording is to be raised to the target's, (B, 1, 1)."""
        levels = [(values * self.telephone).sum((1, 2), keepdim=True) for values in (target, power)]
        return (levels[0] / levels[1].clamp(min=1e-10)).clamp(*LEVEL_RATIOS)

    def _ratio_of_responses(self, power: Tensor, target: Tensor) -> Tensor:
        """How much more power the estimate has in each band than the target, over all audible frames, (B, 1, M)."""
        is_audible = ((target * (target > self.thresholds)).sum(-1, keepdim=True) > AUDIBLE_FRAME).float()
        means = [
            (values * (values > AUDIBLE_BAND * self.thresholds) * is_audible).mean(1, keepdim=True) + RESPONSE_FLOOR
            for values in (power, target)
        ]
        return (means[0] / means[1]).clamp(*RESPONSE_RATIOS)

    def _ratio_of_frames(self, target: Tensor, power: Tensor) -> Tensor:
        """By how much the power of each frame is to be raised to the target's, (B, N)."""
        audible = [(values * (values > self.thresholds)).sum(-1) + FRAME_FLOOR for values in (target, power)]
        return (audible[0] / audible[1]).clamp(LEAST_GAIN, LARGEST_GAIN)


def _worst_moments(of_frames: Tensor) -> Tensor:
    """Disturbance of recordings from that of their frames, (..., N) -> (...); the last syllable is filled with 0."""
    step = SYLLABLE // 2
    missing = max(SYLLABLE - of_frames.shape[-1], -of_frames.shape[-1] % step)
    disturbance = F.pad(of_frames, (0, missing)).unfold(-1, SYLLABLE, step)  # (..., S, SYLLABLE)
    for power in (WITHIN_SYLLABLE, BETWEEN_SYLLABLES):
        disturbance = ((disturbance**power).mean(-1) + FLOOR**power) ** (1 / power) - FLOOR
    return disturbance


class Intelligibility(nn.Module):
    """How much less of a recording is understood: 1 - STOI.

    Source: short-time objective intelligibility (Taal et al., 2011), at the recordings' own sample rate; frames without
    speech are left out after the windows were cut, not before.

    Args:
        sample_rate: Hz.
    """

    window: Tensor
    bands: Tensor  # (F, M), 0 or 1

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        size = _even_samples(sample_rate, STOI_FRAME_SECONDS)
        hz = torch.arange(size + 1, dtype=torch.float64) * sample_rate / (2 * size)  # (F,)
        centres = LOWEST_THIRD * 2 ** (torch.arange(NUM_THIRDS, dtype=torch.float64) / 3)
        bands = (hz[:, None] >= centres * 2 ** (-1 / 6)) & (hz[:, None] < centres * 2 ** (1 / 6))
        self.register_buffer("bands", bands[:, bands.any(0)].float(), persistent=False)  # as far as there are any
        self.register_buffer("window", torch.hann_window(size, dtype=torch.float32), persistent=False)

    @staticmethod
    def shortest(sample_rate: int) -> int:
        """The least number of samples that can be judged: a stretch of frames, 0.4 s."""
        return (STOI_STRETCH + 1) * _even_samples(sample_rate, STOI_FRAME_SECONDS) // 2

    def forward(self, reference: Tensor, estimate: Tensor) -> Tensor:
        """(B, T) or (B, 1, T) twice, T >= `shortest` -> scalar; a recording without as much speech counts as 0.

        No gradient reaches the reference.
        """
        with torch.autocast(reference.device.type, enabled=False):
            with torch.no_grad():
                target, energy = self._envelopes(reference)  # (B, N, M), (B, N)
                is_speech = energy > QUIETEST_STOI_FRAME * energy.amax(1, keepdim=True)
                order = is_speech.float().argsort(dim=1, descending=True, stable=True)  # speech first, as it was
            envelope, _ = self._envelopes(estimate)
            # (B, S, M, STOI_STRETCH) each
            target, envelope = (
                values.gather(1, order[..., None].expand_as(values)).unfold(1, STOI_STRETCH, 1)
                for values in (target, envelope)
            )
            last = torch.arange(target.shape[1], device=target.device) + STOI_STRETCH  # (S,)
            is_judged = (last <= is_speech.sum(1, keepdim=True)).float()  # (B, S)
            gain = (target.square().sum(-1, keepdim=True) / (envelope.square().sum(-1, keepdim=True) + SMALLEST)).sqrt()
            envelope = torch.minimum(gain * envelope, (1 + 10 ** (STOI_CLIP / 20)) * target)
            likeness = (_normalized(target) * _normalized(envelope)).sum(-1).mean(-1)  # (B, S)
            of_recordings = ((1 - likeness) * is_judged).sum(1) / is_judged.sum(1).clamp(min=1)
            return of_recordings.mean()

    def _envelopes(self, wav: Tensor) -> tuple[Tensor, Tensor]:
        """Magnitude of each third of an octave (B, N, M), and energy of each frame (B, N)."""
        frames = _frames(wav, self.window)
        power = magnitudes(F.pad(frames, (0, len(self.window)))).square() @ self.bands
        return (power + SMALLEST).sqrt(), frames.square().sum(-1)


def _even_samples(sample_rate: int, seconds: float) -> int:
    return 2 * round(sample_rate * seconds / 2)


def _frames(wav: Tensor, window: Tensor) -> Tensor:
    """Windowed frames with half of one from each to the next: (B, T) or (B, 1, T) -> (B, N, length of the window)."""
    return wav.float().reshape(len(wav), -1).unfold(-1, len(window), len(window) // 2) * window


def _normalized(stretches: Tensor) -> Tensor:
    """Without mean, of length 1, along the last dimension."""
    stretches = stretches - stretches.mean(-1, keepdim=True)
    return stretches / (stretches.square().sum(-1, keepdim=True) + SMALLEST).sqrt()
