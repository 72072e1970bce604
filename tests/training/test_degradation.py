"""Each degradation does what its sentence says, measured on sounds whose answer is known, and on speech."""

from pathlib import Path

import numpy as np
import pytest

from codec import audio
from codec.training import degradation

RATE = 24000


@pytest.fixture(scope="module")
def wav(speech: Path) -> np.ndarray:
    """Two seconds."""
    return audio.read(speech, RATE)[0][0, : 2 * RATE]


@pytest.fixture(params=range(5))
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers."""
    return np.random.default_rng(request.param)


def decibels(power: float) -> float:
    return 10 * np.log10(power)


def power(wav: np.ndarray) -> float:
    return float(np.square(wav).mean())


def band_powers(wav: np.ndarray, width: float = 500.0) -> np.ndarray:
    """Power in bands of a width in Hz."""
    spectrum = np.abs(np.fft.rfft(wav)) ** 2
    size = round(width * len(wav) / RATE)
    return spectrum[: len(spectrum) // size * size].reshape(-1, size).sum(axis=1)


def test_a_room_answers_within_its_time(rng):
    click = np.zeros(2 * RATE)
    click[1000] = 1.0
    heard = degradation.room(click, RATE, rng)
    np.testing.assert_allclose(heard[:1000], 0, atol=1e-9)
    np.testing.assert_allclose(heard[1000 + round(0.7 * RATE) :], 0, atol=1e-9)
    tail = heard - click
    assert -12 <= decibels(np.square(tail).sum()) <= 0
    assert power(tail[1000:2500]) > power(tail[4000:5500])  # it dies away


def test_noise_is_as_loud_as_it_says_and_no_brighter_than_white(wav, rng):
    added = degradation.noise(wav, RATE, rng) - wav
    assert -40.1 < decibels(power(added) / power(wav)) < -4.9
    bands = band_powers(added)
    assert bands[1] > 0.8 * bands[-1]


def test_music_is_as_loud_as_it_says_and_made_of_tones(wav, rng):
    added = degradation.music(wav, RATE, rng) - wav
    assert -35.1 < decibels(power(added) / power(wav)) < -4.9
    spectrum = np.sort(np.abs(np.fft.rfft(added * np.hanning(len(added)))) ** 2)
    assert spectrum[-len(spectrum) // 20 :].sum() > 0.95 * spectrum.sum()  # noise has a fifth there


def test_a_band_keeps_1_khz_and_loses_what_lies_outside(rng):
    white = np.random.default_rng(9).standard_normal(RATE)
    passed = degradation.band(white, RATE, rng)
    ratio = np.abs(np.fft.rfft(passed)) / np.abs(np.fft.rfft(white))  # one bin a Hz
    assert ratio[1000] == pytest.approx(1, abs=0.02)
    assert ratio[10] < 10 ** (-12 / 20)
    edge = int(np.flatnonzero(ratio > ratio[1000] / 2)[-1])
    assert 2500 < edge <= RATE / 2
    if edge < RATE / 4:
        assert ratio[2 * edge] < 10 ** (-40 / 20)


def test_clipping_cuts_off_a_share_and_changes_nothing_else(wav, rng):
    loud = degradation.clip(wav, RATE, rng)
    is_cut = np.abs(loud) == 1
    assert 0.0009 < is_cut.mean() < 0.051
    gain = np.abs(loud[~is_cut]).max() / np.abs(wav[~is_cut]).max()
    np.testing.assert_allclose(loud[~is_cut], gain * wav[~is_cut], rtol=1e-5)


def test_softer_is_a_gain(wav, rng):
    soft = degradation.soften(wav, RATE, rng)
    assert -40 <= decibels(power(soft) / power(wav)) <= 0
    np.testing.assert_allclose(soft, wav * np.sqrt(power(soft) / power(wav)), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("kind", degradation.PROBABILITIES)
def test_silence_stays_silent_and_finite(kind, rng):
    assert np.abs(kind(np.zeros(RATE, np.float32), RATE, rng)).max() < 1e-6


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100])
@pytest.mark.parametrize("kind", degradation.PROBABILITIES)
def test_windows_of_any_rate_and_length_keep_their_length(kind, rate):
    white = 0.1 * np.random.default_rng(0).standard_normal(rate + 7).astype(np.float32)
    degraded = kind(white, rate, np.random.default_rng(1))
    assert degraded.shape == white.shape
    assert np.isfinite(degraded).all()


def test_the_same_random_numbers_degrade_alike(wav):
    first, again, other = (degradation.degrade(wav, RATE, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert first.dtype == np.float32
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
