"""The pitch of training speech, to supervise the pitch that the stream family's decoder states."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from codec.errors import ModelError
from codec.model.correlation import DECIMATION, lag_correlation
from codec.model.decoder import SpectralDecoderConfig

CORRELATION_SECONDS = 0.03
VOICING_THRESHOLD = 0.6
LEAST_RISE = 0.2  # of the correlation, from where it is least to its peak
OCTAVE_TOLERANCE = 0.85
GOOD_PITCH = 0.05  # in log Hz, about a semitone


class Pitch(NamedTuple):
    """Pitch track."""

    log_pitch: Tensor  # (B, N), natural logarithm of Hz; meaningless where not voiced
    is_voiced: Tensor  # (B, N) bool


@torch.no_grad()
def track_pitch(wav: Tensor, config: SpectralDecoderConfig, num_frames: int) -> Pitch:
    """The pitch where a decoder states its own.

    It is that of the peak of the normalised cross-correlation of a stretch with the one a period earlier. Of the lags
    whose correlation comes within `OCTAVE_TOLERANCE` of the best, the shortest peak is taken, since every multiple of a
    period correlates as well. The peak is refined by a parabola.

    Args:
        wav: (B, T) or (B, 1, T).
        config: of the decoder: its frames, and its lowest and highest pitch.
        num_frames: N.

    Returns:
        The track around the middle of the last hop of each frame's window; voiced where the correlation falls and
        then rises by `LEAST_RISE` to a peak above `VOICING_THRESHOLD`, and the stretch is louder than -60 dB of full
        scale.

    Source: the normalised cross-correlation of RAPT (Talkin, 1995), without its dynamic programming.
    """
    wav = wav.reshape(len(wav), -1).float()
    hop_length, lowest, highest = config.hop_length, config.lowest_pitch, config.highest_pitch
    first = config.n_fft - hop_length // 2  # sample at the middle of the first frame
    rate = config.sample_rate / DECIMATION
    shortest, longest = int(rate / highest), int(rate / lowest) + 1  # lags in decimated samples
    width = round(CORRELATION_SECONDS * rate)
    length = (width + longest + 1) * DECIMATION
    # A stretch and its copy one period earlier lie around the middle of the frame.
    before = length // 2 - first
    after = (num_frames - 1) * hop_length + length - before - wav.shape[-1]
    wav = F.pad(wav, (max(before, 0), max(after, 0)))[:, max(-before, 0) :]
    stretches = wav.unfold(-1, length, hop_length)[:, :num_frames]
    normal = lag_correlation(stretches, longest + 2)  # (B, N, longest + 2)
    inner = normal[..., shortest : longest + 1]
    is_peak = (inner >= normal[..., shortest - 1 : longest]) & (inner >= normal[..., shortest + 1 : longest + 2])
    peaks = torch.where(is_peak, inner, -torch.ones_like(inner))
    best = peaks.amax(-1, keepdim=True)
    chosen = (peaks >= OCTAVE_TOLERANCE * best).float().argmax(-1, keepdim=True)  # the first
    lag = chosen + shortest
    left, middle, right = (normal.gather(-1, lag + offset) for offset in (-1, 0, 1))
    curvature = (left - 2 * middle + right).clamp(max=-1e-9)
    refined = lag + (0.5 * (left - right) / curvature).clamp(-0.5, 0.5)
    loud = stretches[..., -width * DECIMATION :].square().mean(-1) > 1e-6
    # Of slow rumble all lags correlate; a voice does not in between.
    rise = middle - normal.cummin(-1).values.gather(-1, lag)
    is_voiced = ((middle > VOICING_THRESHOLD) & (rise > LEAST_RISE)).squeeze(-1) & loud
    log_pitch = torch.log(rate / refined.squeeze(-1)).clamp(math.log(lowest), math.log(highest))
    return Pitch(log_pitch, is_voiced)


def pitch_loss(log_pitch: Tensor | None, wav: Tensor, config: SpectralDecoderConfig) -> Tensor:
    """Mean of e log(1 + d / e), d the difference in log Hz between stated and tracked pitch, e = `GOOD_PITCH`.

    Where the pitch is nearly right the slope is 1. A frame that is an octave off, or whose tracked pitch is wrong, has
    little slope, so that it does not outweigh those that can be made right. Unvoiced frames count as zero.

    Args:
        log_pitch: (B, N), as the decoder states it: at the last hop of each frame's window.
        wav: (B, 1, T), the speech it should sound like.
        config: of the decoder.

    Raises:
        ModelError: the decoder states no pitch.
    """
    if log_pitch is None:
        raise ModelError("this model's decoder states no pitch that could be learned")
    target = track_pitch(wav, config, log_pitch.shape[1])
    difference = (log_pitch - target.log_pitch).abs()
    return (GOOD_PITCH * torch.log1p(difference / GOOD_PITCH) * target.is_voiced).mean()
