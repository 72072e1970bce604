"""Short-time Fourier analysis and synthesis with the same frames: frame n covers samples n*hop .. n*hop + n_fft - 1.

Synthesis is causal: once frame n is known, the samples up to (n + 1)*hop are final, so a decoder built on it emits
sound for every code at once. Analysis therefore looks n_fft - hop samples ahead of the end of frame n.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.model.layers import State


def log_magnitude_frames(wav: Tensor, n_fft: int, hop_length: int, floor: float = 1e-4) -> Tensor:
    """Log-magnitude spectra of the windows that fit in `wav`: (B, T) -> (B, (T - n_fft) // hop + 1, n_fft // 2 + 1).

    Computed in float32. Magnitudes are normalised by the window's sum (a full-scale sine reads about 1/2) and `floor`
    is added before the logarithm, so that digital silence is finite.
    """
    window = torch.hann_window(n_fft, device=wav.device)
    frames = wav.unfold(-1, n_fft, hop_length) * window
    spectrum = torch.fft.rfft(frames)
    return torch.log(spectrum.abs() / window.sum() + floor)


class CausalInverseSTFT(nn.Module):
    """Overlap-add of windowed inverse spectra: complex (B, N, n_fft // 2 + 1) -> (B, N * hop).

    The sum is divided by the summed squared window of the frames that exist, so the start of a signal is not faded in
    by missing earlier frames. Where that sum is below `envelope_floor` (the first hundredth of a second only), the
    floor is used: dividing by less would amplify the network's errors.
    """

    window: Tensor

    def __init__(self, n_fft: int, hop_length: int, envelope_floor: float = 0.1):
        super().__init__()
        self.n_fft = n_fft
        self.hop_length = hop_length
        self.envelope_floor = envelope_floor
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

    def forward(self, spectrum: Tensor, state: State | None = None) -> Tensor:
        frames = torch.fft.irfft(spectrum, n=self.n_fft) * self.window  # (B, N, n_fft)
        # Signal and squared window are overlap-added side by side, so that their tails travel together.
        frames = torch.cat([frames, (self.window**2).expand(1, *frames.shape[1:])])  # (B + 1, N, n_fft)
        summed = self._overlap_add(frames)  # (B + 1, (N - 1) * hop + n_fft)
        finished = spectrum.shape[1] * self.hop_length
        if state is not None:
            if self in state:
                tail = state[self]
                summed = summed + F.pad(tail, (0, summed.shape[-1] - tail.shape[-1]))
            state[self] = summed[:, finished:]
        signal, envelope = summed[:-1, :finished], summed[-1, :finished]
        return signal / envelope.clamp(min=self.envelope_floor)

    def _overlap_add(self, frames: Tensor) -> Tensor:
        """(B, N, n_fft) -> (B, (N - 1) * hop + n_fft), as n_fft / hop shifted sums of rows of one hop."""
        overlap = self.n_fft // self.hop_length
        rows = frames.unflatten(-1, (overlap, self.hop_length))  # (B, N, overlap, hop)
        shifted = (F.pad(rows[:, :, k], (0, 0, k, overlap - 1 - k)) for k in range(overlap))
        total: Tensor = sum(shifted, torch.zeros((), dtype=frames.dtype, device=frames.device))
        return total.flatten(1)
