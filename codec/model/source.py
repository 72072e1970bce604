"""The sound source of the stream family's decoder: pulses at a given pitch, and noise, as the spectra of its frames.

An inverse-STFT head states the phase of every bin anew for every frame. A steady voice looks the same in every frame,
so a small network learns phases that do not move, which is a buzz at the frame rate. Here pulses carry the phase from
frame to frame instead, and the network shapes their spectrum and that of a noise: it says what to sing, not each sine.

Source: the harmonic-plus-noise source of neural source-filter models (arXiv:1904.12088) and its use before an inverse
STFT (HiFTNet, arXiv:2309.09493).
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.model.layers import CausalConv1d, State, where_float64_is

NUM_NOISE_SAMPLES = 1 << 16


class SourceSpectra(NamedTuple):
    """Spectra of windowed source frames, (B, N, n_fft // 2 + 1) complex64 each."""

    pulses: Tensor
    noise: Tensor


class PitchPredictor(nn.Module):
    """Pitch of every frame from the codes up to it: quantized latent (B, D, N) -> log Hz (B, N) within given limits.

    The phase of the pulses is the sum of the pitch over the whole recording, so rounding must not add up: outside
    training steps all is computed in float64. It reads the quantized latent, which is the same bit for bit however a
    recording is cut, so the sound is too, up to the last digits of float32.
    """

    def __init__(
        self, latent_dim: int, width: int, input_kernel_size: int, kernel_size: int, lowest: float, highest: float
    ):
        super().__init__()
        self.lowest, self.highest = lowest, highest
        self.input = CausalConv1d(latent_dim, width, input_kernel_size)
        self.hidden = CausalConv1d(width, width, kernel_size)
        self.output = CausalConv1d(width, 1, 1)

    def forward(self, latent: Tensor, state: State | None = None) -> Tensor:
        """With a state, the frames after the last call's."""
        x = latent.transpose(1, 2).float()  # (B, N, D)
        if not (self.training and torch.is_grad_enabled()):
            x = where_float64_is(x).double()
        x = F.gelu(self.input(x, state))
        x = F.gelu(self.hidden(x, state))
        low, high = math.log(self.lowest), math.log(self.highest)
        return low + (high - low) * torch.sigmoid(self.output(x, state).squeeze(-1))


class Source(nn.Module):
    """Pulse train and noise of unit power, cut into the frames n * hop .. n * hop + n_fft - 1.

    The pitch of frame n is that of the last hop of its window, which is the part no earlier frame has described. So
    everything a frame needs is known when its code is, and nothing looks ahead.
    """

    window: Tensor
    noise: Tensor

    def __init__(self, n_fft: int, hop_length: int, sample_rate: int):
        super().__init__()
        self.n_fft = n_fft
        self.hop_length = hop_length
        self.sample_rate = sample_rate
        self.register_buffer("window", torch.hann_window(n_fft, dtype=torch.float32), persistent=False)
        # Kept with the weights, so that codes sound the same whatever random numbers a version of torch draws.
        self.register_buffer("noise", torch.randn(NUM_NOISE_SAMPLES))

    def forward(self, pitch: Tensor, state: State | None = None) -> SourceSpectra:
        """Pitch in Hz (B, N), best in float64 -> spectra of the frames; with a state, those after the last call's."""
        overlap = self.n_fft - self.hop_length
        device = self.window.device
        if state is not None and self in state:
            (past,) = state[self]
        else:  # the hops before the first frame's last one have the first frame's pitch
            pitch = torch.cat([pitch[:, :1].expand(-1, overlap // self.hop_length), pitch], dim=1)
            # Every training batch meets another stretch of the noise, so that none is learned by heart.
            position = torch.zeros_like(pitch[:, :1])
            if self.training and torch.is_grad_enabled():
                position = position + torch.randint(NUM_NOISE_SAMPLES, (), device=pitch.device)
            past = torch.cat([pitch[:, :1], torch.zeros_like(pitch[:, :1]), position], dim=1)
        before, phase, position, tail = past.split([1, 1, 1, past.shape[1] - 3], dim=1)
        pulses, phase = self._pulses(pitch, before, phase)  # (B, n * hop), (B, 1)
        samples = torch.arange(pulses.shape[1], device=device)
        # A power of two, so that whole numbers go round by their bits, in an eighth of the time that % takes.
        noise = self.noise[(position.long().to(device) + samples) & (NUM_NOISE_SAMPLES - 1)]  # (B, n * hop)
        both = torch.stack([pulses, noise], dim=1)  # (B, 2, n * hop)
        both = torch.cat([tail.to(both).unflatten(1, (2, -1)), both], dim=2)
        if state is not None:
            position = (position + len(samples)) % NUM_NOISE_SAMPLES
            tail = both[..., -overlap:].flatten(1)
            state[self] = (torch.cat([pitch[:, -1:], phase, position, tail.to(pitch)], dim=1),)
        frames = both.unfold(-1, self.n_fft, self.hop_length) * self.window  # (B, 2, N, n_fft)
        pulses, noise = frames.unbind(1)  # not of complex numbers, which ONNX cannot take apart
        return SourceSpectra(torch.fft.rfft(pulses), torch.fft.rfft(noise))

    def _pulses(self, pitch: Tensor, before: Tensor, phase: Tensor) -> tuple[Tensor, Tensor]:
        """Band-limited pulses of unit power, the pitch gliding through each hop from the last frame's to its own.

        M harmonics of amplitude 1 add up to (sin((2 M + 1) x) / sin(x) - 1) / 2, x = pi * phase.

        Args:
            pitch: (B, n) Hz.
            before: (B, 1) Hz, of the frame before the first.
            phase: (B, 1) in cycles, at the end of that frame.

        Returns:
            Pulses (B, n * hop) on the module's device, and the phase at the end (B, 1) in cycles.
        """
        hop = self.hop_length
        start = torch.cat([before, pitch[:, :-1]], dim=1)  # (B, n)
        advance = (start * (hop - 1) + pitch * (hop + 1)) / (2 * self.sample_rate)  # cycles in each hop
        ends = (phase + torch.cumsum(advance, dim=1)) % 1
        begins = torch.cat([phase, ends[:, :-1]], dim=1)
        # Within a hop float32 is enough.
        start, glide, begins = (x.to(self.window)[..., None] for x in (start, pitch - start, begins))  # (B, n, 1)
        i = torch.arange(1, hop + 1, dtype=torch.float32, device=self.window.device)
        cycles = begins + (start * i + glide * (i * (i + 1) / (2 * hop))) / self.sample_rate  # (B, n, hop)
        # The last harmonic fades in and out, so that the smallest change of pitch cannot switch it on or off.
        num_harmonics = 0.5 * self.sample_rate / (start + glide.clamp(min=0)) - 1
        num_full = torch.floor(num_harmonics)
        x = math.pi * (cycles - cycles.round())  # -pi/2 .. pi/2
        denominator = torch.sin(x)
        is_peak = denominator.abs() < 1e-6
        ratio = torch.sin((2 * num_full + 1) * x) / denominator.masked_fill(is_peak, 1)
        total = (torch.where(is_peak, 2 * num_full + 1, ratio) - 1) / 2
        total = total + (num_harmonics - num_full) * torch.cos(2 * (num_full + 1) * x)
        return (total * torch.sqrt(2 / num_harmonics)).flatten(1), ends[:, -1:]
