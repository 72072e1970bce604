"""The pitch tracker on sounds of known pitch."""

import math

import pytest
import torch

from codec.errors import ModelError
from codec.model.decoder import SpectralDecoderConfig
from codec.training.pitch import pitch_loss, track_pitch

CONFIG = SpectralDecoderConfig()
RATE, HOP, FIRST = 24000, 320, 1120


def voice(frequency: torch.Tensor) -> torch.Tensor:
    """Harmonics falling off as 1 / k of a pitch given per sample: (1, T)."""
    phase = 2 * math.pi * torch.cumsum(frequency.double() / RATE, dim=0)
    return 0.1 * sum(torch.sin(k * phase) / k for k in range(1, 20)).float()[None]  # type: ignore[union-attr]


def track(wav: torch.Tensor, num_frames: int = 100):
    return track_pitch(wav, CONFIG, num_frames)


@pytest.mark.parametrize("frequency", [60.0, 100.0, 210.0, 333.0, 480.0])
def test_a_steady_pitch_is_found_within_half_a_percent(frequency: float):
    pitch = track(voice(torch.full((2 * RATE,), frequency)))
    assert pitch.is_voiced.all()
    assert (pitch.log_pitch - math.log(frequency)).abs().max() < 0.005


def test_a_pitch_just_above_the_highest_is_told_as_the_highest():
    pitch = track(voice(torch.full((2 * RATE,), 560.0)))
    assert pitch.is_voiced.all()
    assert (pitch.log_pitch - math.log(CONFIG.highest_pitch)).abs().max() < 1e-6


def test_a_glide_is_found_at_the_middle_of_each_frame():
    frequency = 100 * 2 ** (torch.arange(2 * RATE) / RATE)
    pitch = track(voice(frequency))
    expected = frequency[FIRST + HOP * torch.arange(100)].log()
    assert (pitch.log_pitch - expected).abs().max() < math.log(2) * HOP / RATE  # what it rises by in one hop


def test_frames_beyond_the_end_are_there_and_unvoiced():
    pitch = track(voice(torch.full((2 * RATE,), 200.0)), 2 * RATE // HOP)
    assert pitch.is_voiced.shape == pitch.log_pitch.shape == (1, 150)
    middles = FIRST + HOP * torch.arange(150)
    assert pitch.is_voiced[0, middles < 2 * RATE - 720].all()
    assert not pitch.is_voiced[0, middles > 2 * RATE].any()


def test_a_strong_second_harmonic_is_not_the_pitch():
    """At half a period the correlation is (4 - 1) / (4 + 1), for the second harmonic has four times the power."""
    phase = 2 * math.pi * 150 * torch.arange(2 * RATE) / RATE
    pitch = track(0.1 * (torch.sin(phase) + 2 * torch.sin(2 * phase))[None])
    assert (pitch.log_pitch - math.log(150)).abs().max() < 0.005


@pytest.mark.parametrize(("share", "least", "most"), [(0.4, 0.0, 0.02), (0.7, 0.98, 1.0)])
def test_voiced_is_where_the_voice_has_more_than_three_fifths_of_the_power(share: float, least: float, most: float):
    """A voice with this share of the power in the band of a third of the rate correlates by about as much."""
    wav = voice(torch.full((2 * RATE,), 200.0))
    noise = torch.randn(1, 2 * RATE, generator=torch.Generator().manual_seed(0))
    voice_power, noise_power = (x.unflatten(-1, (-1, 3)).mean(-1).square().mean() for x in (wav, noise))
    wav = wav + noise * ((1 / share - 1) * voice_power / noise_power).sqrt()
    assert least <= track(wav).is_voiced.float().mean() <= most


@pytest.mark.parametrize("level", [0.0, 0.1], ids=["silence", "noise"])
def test_nothing_is_voiced_in(level: float):
    noise = level * torch.randn(1, 2 * RATE, generator=torch.Generator().manual_seed(0))
    assert track(noise).is_voiced.float().mean() < 0.02


@pytest.mark.parametrize("level", [0.0, 0.02], ids=["clean", "noisy"])
@pytest.mark.parametrize("frequency", [5.0, 10.0, 20.0, 40.0])
def test_a_hum_below_the_lowest_pitch_is_not_voiced(frequency: float, level: float):
    """Any lag that is short to its period correlates."""
    hum = 0.1 * torch.sin(2 * math.pi * frequency * torch.arange(2 * RATE) / RATE)
    noise = level * torch.randn(1, 2 * RATE, generator=torch.Generator().manual_seed(0))
    assert not track(hum + noise).is_voiced.any()


def test_loss_has_slope_one_at_the_right_pitch_and_little_an_octave_off():
    wav = voice(torch.full((2 * RATE,), 200.0))[:, None]
    right = torch.full((1, 100), math.log(200.0))
    assert pitch_loss(right, wav, CONFIG) < 0.005
    slightly = right + torch.tensor(0.02, requires_grad=True)
    off = right + torch.tensor(math.log(2), requires_grad=True)
    for stated, slope in ((slightly, 1 / (1 + 0.02 / 0.05)), (off, 1 / (1 + math.log(2) / 0.05))):
        (gradient,) = torch.autograd.grad(pitch_loss(stated, wav, CONFIG), stated)
        assert float(gradient.sum()) == pytest.approx(slope, rel=0.1)  # the tracker errs by up to half a percent
    assert pitch_loss(right, 0 * wav, CONFIG) == 0


def test_what_is_softer_than_60_db_below_full_scale_is_not_voiced():
    wav = voice(torch.full((2 * RATE,), 200.0))
    wav = wav / wav.square().mean().sqrt()
    assert track(0.0013 * wav).is_voiced.all()
    assert not track(0.0007 * wav).is_voiced.any()


def test_unvoiced_frames_count_as_zero_in_the_mean():
    wav = voice(torch.full((2 * RATE,), 200.0))
    wrong = torch.full((1, 140), math.log(250.0))
    half = wav * (torch.arange(2 * RATE) < FIRST + 70 * HOP)
    assert pitch_loss(wrong, half, CONFIG) == pytest.approx(float(pitch_loss(wrong, wav, CONFIG)) / 2, rel=0.1)


def test_a_decoder_that_states_no_pitch_is_named():
    with pytest.raises(ModelError, match="states no pitch"):
        pitch_loss(None, torch.zeros(1, 1, 4800), CONFIG)
