"""How like itself a sound is some time later: what tells the pitch of a voice."""

import torch
import torch.nn.functional as F
from torch import Tensor

from codec.model.layers import where_float64_is

DECIMATION = 3
"""Samples averaged into one first: a pitch needs no more than the band this leaves."""


def lag_correlation(stretches: Tensor, num_lags: int) -> Tensor:
    """Normalised cross-correlation of the end of each stretch of sound with what came lag samples before.

    Args:
        stretches: (..., L * DECIMATION) float32.
        num_lags: lags 0 .. num_lags - 1, in samples after decimation.

    Returns:
        (..., num_lags) in [-1, 1], 0 for silence. What is compared is L - num_lags + 1 decimated samples long.

    Source: the normalised cross-correlation function of RAPT (Talkin, 1995).
    """
    stretches = stretches.unflatten(-1, (-1, DECIMATION)).mean(-1)  # (..., L)
    stretches = stretches - stretches.mean(-1, keepdim=True)
    width = stretches.shape[-1] - num_lags + 1
    end = stretches[..., -width:]
    size = 1 << (stretches.shape[-1] + width).bit_length()
    product = torch.fft.rfft(stretches, size) * torch.fft.rfft(end, size).conj()
    correlation = torch.fft.irfft(product, size)[..., :num_lags].flip(-1)  # the largest lag comes first before flipping
    # Summed in float64, as CPUs do anyway: a quiet end behind loud sound would have no energy in float32.
    energy = where_float64_is(stretches.square()).cumsum(-1, dtype=torch.float64).to(stretches)
    energy = F.pad(energy, (1, 0))
    energy = (energy[..., width:] - energy[..., :-width]).flip(-1)  # (..., num_lags)
    return correlation / (energy * energy[..., :1]).clamp(min=1e-14).sqrt()  # of 0 it would have no gradient
