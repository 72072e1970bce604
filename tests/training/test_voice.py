"""Voices are changed in what is said to change, and in nothing else: measured on speech."""

import numpy as np
import pytest
import torch

from codec.model.decoder import SpectralDecoderConfig
from codec.training.pitch import track_pitch
from codec.training.voice import move_formants, random_response, whisper

RATE = 24000


def levels(sound: np.ndarray, hz: np.ndarray) -> np.ndarray:
    """Decibels around frequencies, in bands of Gaussian shape, 120 Hz to either side; their mean is 0."""
    power = np.abs(np.fft.rfft(sound)) ** 2
    distance = np.arange(len(power)) * RATE / len(sound) - hz[:, None]
    decibels = 10 * np.log10((power * np.exp(-np.square(distance / 120) / 2)).sum(axis=1))
    return decibels - decibels.mean()


def pitch(sound: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    tracked = track_pitch(torch.from_numpy(sound).float()[None], SpectralDecoderConfig(), 140)
    return tracked.log_pitch, tracked.is_voiced


@pytest.mark.parametrize("factor", [0.85, 0.9, 0.95, 1.05, 1.1, 1.2])
def test_the_spectrum_is_that_of_formants_so_much_higher(wav, factor):
    moved = move_formants(wav, RATE, factor)
    assert moved.shape == wav.shape
    assert moved.dtype == np.float32
    hz = np.arange(400.0, 4500.0, 50.0)
    factors = np.arange(0.75, 1.31, 0.01)
    after = levels(moved, hz)
    distances = [np.abs(after - levels(wav, hz / other)).mean() for other in factors]
    assert abs(factors[np.argmin(distances)] - factor) < 0.025
    assert min(distances) < 0.5 * np.abs(after - levels(wav, hz)).mean()


def test_formants_that_stay_leave_the_sound_as_it_is(wav):
    np.testing.assert_allclose(move_formants(wav[:-7], RATE, 1.0), wav[:-7], atol=1e-6)


def test_soft_speech_has_its_formants_moved_like_loud_speech(wav):
    moved = move_formants(wav, RATE, 1.1)
    np.testing.assert_allclose(1000 * move_formants(wav / 1000, RATE, 1.1), moved, atol=0.01 * np.abs(moved).max())


@pytest.mark.parametrize("factor", [0.88, 1.12])
def test_speech_keeps_its_pitch_and_loudness_when_its_formants_move(wav, factor):
    moved = move_formants(wav, RATE, factor)
    (before, was_voiced), (after, is_voiced) = pitch(wav), pitch(moved)
    both = was_voiced & is_voiced
    assert both.sum() > 0.9 * was_voiced.sum()
    assert ((before - after)[both].abs() < 0.03).float().mean() > 0.9
    assert abs(10 * np.log10(np.square(moved).mean() / np.square(wav).mean())) < 1


def test_a_high_voice_without_formants_keeps_all_its_harmonics():
    """Impulses at 375 Hz, whose harmonics are equally strong, so that a shifted envelope is the same again."""
    wav = np.tile(np.eye(1, RATE // 375), 375)[0]
    harmonics = 375 * np.arange(1, 27)
    before, after = (np.abs(np.fft.rfft(sound))[harmonics] for sound in (wav, move_formants(wav, RATE, 1.1)))
    assert np.abs(20 * np.log10(after / before)).max() < 0.5


def test_no_frequency_gets_softer_by_more_than_15_db():
    """Where formants of noise that ends at 4 kHz are moved down, little is to be heard from 3.2 kHz on."""
    hz = np.fft.rfftfreq(2 * RATE, 1 / RATE)
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(2 * RATE)) * np.where(hz < 4000, 1, 1e-4)
    moved = np.fft.rfft(move_formants(np.fft.irfft(spectrum), RATE, 0.8))
    bands = [(hz >= low) & (hz < low + 100) for low in range(3400, 3900, 100)]
    changes = [20 * np.log10(np.linalg.norm(moved[band]) / np.linalg.norm(spectrum[band])) for band in bands]
    assert changes == pytest.approx([-15] * len(bands), abs=0.5)


def test_responses_are_smooth_and_spread_by_so_many_decibels():
    rng = np.random.default_rng(0)
    responses = 20 / np.log(10) * np.stack([random_response(RATE, 3.0, rng) for _ in range(2000)])
    hz = np.linspace(0, RATE / 2, responses.shape[1])
    mels = 2595 * np.log10(1 + hz / 700)
    by_mel = np.stack([np.interp(np.linspace(0, mels[-1], 500), mels, response) for response in responses])
    assert abs(np.sqrt(by_mel.var(axis=1).mean()) - 3.0) < 0.1
    slopes = np.abs(np.diff(by_mel)) / (mels[-1] / 499)  # dB for a mel
    lower, upper = np.split(np.square(slopes[:, :498]).mean(axis=0), 2)
    assert lower.mean() == pytest.approx(upper.mean(), rel=0.2)
    assert np.quantile(slopes, 0.99) < 0.04  # 3 dB in the 80 mel of a semitone and a half at 1 kHz


def test_coloured_noise_has_the_response_and_a_coloured_sum_is_the_sum_of_coloured_parts():
    rng = np.random.default_rng(1)
    response = random_response(RATE, 4.0, rng)
    sounds = [rng.standard_normal(20 * RATE).astype(np.float32) for _ in range(2)]
    coloured = [move_formants(sound, RATE, 1.0, response) for sound in sounds]
    np.testing.assert_allclose(move_formants(sounds[0] + sounds[1], RATE, 1.0, response), sum(coloured), atol=1e-4)
    hz = np.arange(200.0, 11800.0, 100.0)
    expected = 20 / np.log(10) * np.interp(hz, np.linspace(0, RATE / 2, len(response)), response)
    measured = levels(coloured[0], hz) - levels(sounds[0], hz)
    assert np.abs(measured - (expected - expected.mean())).max() < 0.3


def test_whispered_noise_is_noise_of_the_mean_logarithm():
    """That of the power of Gaussian noise lies below the logarithm of the mean by Euler's constant."""
    wav = np.random.default_rng(0).standard_normal(4 * RATE)
    whispered = whisper(wav, RATE, np.random.default_rng(1))
    assert np.log(np.square(whispered).mean()) == pytest.approx(-np.euler_gamma, abs=0.15)


def test_silence_stays_silent():
    assert np.abs(move_formants(np.zeros(RATE, np.float32), RATE, 1.15)).max() == 0


@pytest.mark.parametrize("seed", range(5))
def test_whispered_speech_has_its_envelope_and_no_voice(wav, seed):
    whispered = whisper(wav, RATE, np.random.default_rng(seed))
    assert whispered.shape == wav.shape
    assert pitch(wav)[1].float().mean() > 0.6
    assert pitch(whispered)[1].float().mean() < 0.1
    in_time = [np.log(np.square(sound).reshape(-1, 480).sum(axis=1)) for sound in (wav, whispered)]
    in_frequency = [levels(sound, np.arange(250.0, 12000.0, 500.0)) for sound in (wav, whispered)]
    assert np.corrcoef(*in_time)[0, 1] > 0.9
    assert np.corrcoef(*in_frequency)[0, 1] > 0.9
