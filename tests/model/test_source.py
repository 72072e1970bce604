"""The decoder's sound source against the sum of sines it stands for."""

import math

import pytest
import torch

from codec.model.source import PitchPredictor, Source

N_FFT, HOP, RATE = 1280, 320, 24000


@pytest.fixture
def source() -> Source:
    torch.manual_seed(0)
    return Source(N_FFT, HOP, RATE).eval()


def pulses_of(source: Source, pitch: torch.Tensor, before: torch.Tensor | None = None) -> torch.Tensor:
    """The pulse train itself: (B, n) -> (B, n * hop); `before` it the pitch was (B, 1), or what it is at first."""
    before = pitch[:, :1] if before is None else before
    return source._pulses(pitch, before, torch.zeros(len(pitch), 1, dtype=torch.float64))[0]


def sum_of_harmonics(cycles: torch.Tensor, highest: float) -> torch.Tensor:
    """At the phase (T,) of the first, those that are below Nyquist at a pitch of `highest` Hz."""
    num_harmonics = RATE / 2 / highest - 1
    total = torch.zeros_like(cycles)
    for harmonic in range(1, math.floor(num_harmonics) + 2):
        amplitude = min(1.0, num_harmonics - harmonic + 1)  # the last one is faded
        total += amplitude * torch.cos(2 * math.pi * harmonic * cycles)
    return total * math.sqrt(2 / num_harmonics)


@pytest.mark.parametrize("pitch", [60.0, 100.0, 217.3, 480.0])
def test_pulses_are_all_harmonics_below_nyquist_in_phase(source: Source, pitch: float):
    expected = sum_of_harmonics(torch.arange(1, 20 * HOP + 1, dtype=torch.float64) / RATE * pitch, pitch)
    pulses = pulses_of(source, torch.full((1, 20), pitch, dtype=torch.float64))[0]
    # Single precision within a hop, times the slope of the hundredth harmonic.
    torch.testing.assert_close(pulses.double(), expected, atol=2e-2, rtol=0)
    assert abs(float(pulses.square().mean()) - 1) < 0.1


@pytest.mark.parametrize(("start", "end"), [(100.0, 400.0), (400.0, 100.0)], ids=["rising", "falling"])
def test_all_harmonics_of_a_hop_are_below_nyquist_however_steep_it_is(source: Source, start: float, end: float):
    pitch = start + (end - start) * torch.arange(1, HOP + 1, dtype=torch.float64) / HOP
    before, at_the_end = torch.tensor([[[start]], [[end]]], dtype=torch.float64)
    pulses = pulses_of(source, at_the_end, before)[0]
    expected = sum_of_harmonics(torch.cumsum(pitch / RATE, dim=0), max(start, end))
    torch.testing.assert_close(pulses.double(), expected, atol=2e-2, rtol=0)


def test_a_glide_has_no_jumps_in_phase(source: Source):
    """Between hops the pitch goes on where it was, so the period hardly changes from pulse to pulse."""
    pitch = torch.linspace(100, 200, 75, dtype=torch.float64)[None]
    pulses = pulses_of(source, pitch)[0]
    peaks = ((pulses[1:-1] > pulses[:-2]) & (pulses[1:-1] > pulses[2:]) & (pulses[1:-1] > 0.4 * pulses.max())).nonzero()
    periods = peaks.flatten().diff()
    assert len(periods) > 140  # the integral of the pitch over one second, less the last pulses
    assert (periods.diff().abs() <= 3).all()


def test_spectra_in_pieces_are_bit_equal_to_the_whole(source: Source):
    pitch = 100 + 50 * torch.rand(2, 300, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = source(pitch)
    state: dict = {}
    pieces = [source(part, state) for part in pitch.split([1, 1, 2, 100, 196], dim=1)]
    for index, spectrum in enumerate(whole):
        assert torch.equal(torch.cat([piece[index] for piece in pieces], dim=1), spectrum)


def test_pieces_do_not_drift_apart_over_a_long_recording():
    """Ten minutes through the pitch predictor one way and the other: the phase of the pulses must not depend on it."""
    torch.manual_seed(0)
    predictor, source = PitchPredictor(4, 8, 9, 7, 55.0, 550.0).eval(), Source(N_FFT, HOP, RATE).eval()
    latent = torch.randn(1, 4, 45000)
    states: list[dict] = [{}, {}]
    with torch.no_grad():
        for state, size in zip(states, (45000, 900), strict=True):
            for part in latent.split(size, dim=2):
                spectra = source(predictor(part, state).exp(), state)
            last = spectra.pulses[:, -1]
            if size == 45000:
                expected = last
    torch.testing.assert_close(last, expected, atol=1e-2, rtol=1e-4)  # of values up to 60


def test_noise_is_white_and_of_unit_power(source: Source):
    noise = source(torch.full((1, 200), 100.0, dtype=torch.float64)).noise.abs().square().mean(dim=(0, 1))
    expected = float(source.window.square().sum())
    # 200 frames with three quarters of overlap: about 50 independent ones, a relative error of 1/7 per bin.
    assert abs(float(noise.mean()) / expected - 1) < 0.05
    assert (noise[2:-2] / expected - 1).abs().max() < 0.8


def test_only_training_hears_other_noise_each_time(source: Source):
    pitch = torch.full((1, 4), 100.0, dtype=torch.float64)
    assert torch.equal(source(pitch).noise, source(pitch).noise)
    first, second = source.train()(pitch), source(pitch)
    assert not torch.equal(first.noise, second.noise)
    assert torch.equal(first.pulses, second.pulses)
    with torch.no_grad():
        assert torch.equal(source(pitch).noise, source(pitch).noise)


def test_pitch_stays_within_its_limits():
    torch.manual_seed(0)
    predictor = PitchPredictor(4, 8, 3, 3, 55.0, 550.0).eval()
    log_pitch = predictor(1000 * torch.randn(1, 4, 50))
    assert log_pitch.dtype == torch.float64
    lowest, highest = log_pitch.detach().aminmax()
    assert math.log(55) - 1e-9 <= float(lowest) <= float(highest) <= math.log(550) + 1e-9
