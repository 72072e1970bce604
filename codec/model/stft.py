"""Short-time Fourier analysis and synthesis with the same frames: frame n covers samples n*hop .. n*hop + n_fft - 1.

Synthesis is causal: once frame n is known, the samples up to (n + 1)*hop are final, so a decoder built on it emits
sound for every code at once. Analysis therefore looks n_fft - hop samples ahead of the end of frame n.
"""

import torch
from torch import Tensor, nn

from codec.model.layers import State, last_steps

FLOOR = 1e-4
"""Below every magnitude, relative to a full-scale sine of 1/2."""
SMALLEST_ENVELOPE = 0.1


def log_magnitudes(frames: Tensor) -> Tensor:
    """Log-magnitude spectra of frames, in float32: (..., n_fft) -> (..., n_fft // 2 + 1).

    Magnitudes are normalised by the Hann window's sum (a full-scale sine reads about 1/2) and `FLOOR` is added before
    the logarithm, so that digital silence is finite.
    """
    window = torch.hann_window(frames.shape[-1], dtype=torch.float32, device=frames.device)
    return torch.log(torch.fft.rfft(frames * window).abs() / window.sum() + FLOOR)


class CausalInverseSTFT(nn.Module):
    """Overlap-add of windowed inverse spectra: complex (B, N, n_fft // 2 + 1) -> (B, N * hop).

    The sum is divided by the summed squared window of the frames that exist, so the start of a signal is not faded in
    by missing earlier frames. Where that sum is below `SMALLEST_ENVELOPE` (the first hundredth of a second only), it
    is used instead: dividing by less would amplify the network's errors.
    """

    window: Tensor
    envelopes: Tensor  # (n_fft / hop, hop), of the first hops of a signal; all others are like the last of them

    def __init__(self, n_fft: int, hop_length: int):
        super().__init__()
        self.n_fft = n_fft
        self.hop_length = hop_length
        self.overlap = n_fft // hop_length
        window = torch.hann_window(n_fft, dtype=torch.float32)
        envelopes = (window**2).unflatten(0, (self.overlap, hop_length)).cumsum(0).clamp(min=SMALLEST_ENVELOPE)
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("envelopes", envelopes, persistent=False)

    def forward(self, spectrum: Tensor, state: State | None = None) -> Tensor:
        num_frames, last = spectrum.shape[1], self.overlap - 1
        frames = torch.fft.irfft(spectrum, n=self.n_fft) * self.window  # (B, N, n_fft)
        summed = frames.new_zeros(frames.shape[0], num_frames + last, self.hop_length)
        overlap_add(summed, frames)
        first = torch.zeros(1, dtype=torch.int64, device=spectrum.device)  # hop of each signal, at most `last`
        if state is not None:
            if self in state:
                first, tail = state[self]
                summed[:, :last] += tail
            num_hops = (first + num_frames).clamp(max=last).expand(frames.shape[0])
            state[self] = num_hops, last_steps(summed, last, dim=1)
        hops = (first[:, None] + torch.arange(num_frames, device=spectrum.device)).clamp(max=last)
        return (summed[:, :num_frames] / self.envelopes[hops]).flatten(1)


def overlap_add(total: Tensor, frames: Tensor) -> None:
    """Add frames (B, N, n_fft) into rows of one hop (B, N + n_fft / hop - 1, hop), in place."""
    num_frames, hop_length = frames.shape[1], total.shape[2]
    for k, rows in enumerate(frames.split(hop_length, dim=-1)):
        total[:, k : k + num_frames] += rows
