"""The inverse STFT against the overlap-add formula, and its promise to finish every hop at once."""

import math

import pytest
import torch

from codec.model.stft import CausalInverseSTFT, log_magnitudes

N_FFT, HOP = 64, 16


def analyse(wav: torch.Tensor, inverse: CausalInverseSTFT) -> torch.Tensor:
    """Windowed spectra (B, N, F) of the frames n * hop .. n * hop + n_fft - 1."""
    return torch.fft.rfft(wav.unfold(-1, N_FFT, HOP) * inverse.window)


def test_resynthesis_of_an_analysis_returns_the_signal():
    inverse = CausalInverseSTFT(N_FFT, HOP)
    wav = torch.randn(2, 40 * HOP, generator=torch.Generator().manual_seed(0))
    spectrum = analyse(wav, inverse)
    resynthesised = inverse(spectrum)
    # Only where the first window alone reaches, and is below the floor, is the signal faded in.
    faded = round(N_FFT / math.pi * math.asin(0.1**0.25)) + 1
    torch.testing.assert_close(resynthesised[:, faded:], wav[:, faded : spectrum.shape[1] * HOP], atol=1e-5, rtol=1e-5)


def test_resynthesis_in_pieces_equals_the_whole():
    inverse = CausalInverseSTFT(N_FFT, HOP)
    spectrum = torch.randn(1, 20, N_FFT // 2 + 1, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    state: dict = {}
    pieces = [inverse(part, state) for part in spectrum.split([1, 1, 2, 5, 11], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), inverse(spectrum), atol=1e-6, rtol=1e-5)


def test_a_later_frame_never_changes_finished_samples():
    inverse = CausalInverseSTFT(N_FFT, HOP)
    spectrum = torch.randn(1, 9, N_FFT // 2 + 1, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    changed = spectrum.clone()
    changed[:, 5:] += 1
    assert torch.equal(inverse(spectrum)[:, : 5 * HOP], inverse(changed)[:, : 5 * HOP])


@pytest.mark.parametrize("bin_index", [4, 10, 20])
def test_a_sine_peaks_in_its_bin_at_half_its_amplitude(bin_index: int):
    time = torch.arange(10 * N_FFT)
    sine = torch.sin(2 * math.pi * bin_index * time / N_FFT)[None]
    frames = log_magnitudes(sine.unfold(-1, N_FFT, HOP))
    assert frames.shape == (1, (10 * N_FFT - N_FFT) // HOP + 1, N_FFT // 2 + 1)
    assert (frames.argmax(dim=-1) == bin_index).all()
    torch.testing.assert_close(frames.amax(dim=-1).exp(), torch.full((1, frames.shape[1]), 0.5001), atol=1e-3, rtol=0)


def test_silence_is_finite():
    assert torch.isfinite(log_magnitudes(torch.zeros(1, 5, N_FFT))).all()
