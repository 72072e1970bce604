"""Each degradation does what its sentence says, measured on sounds whose answer is known, and on speech."""

import numpy as np
import pytest
from scipy.signal import find_peaks

from codec.training import degradation

RATE = 24000


@pytest.fixture(params=range(5))
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers."""
    return np.random.default_rng(request.param)


def decibels(power: float) -> float:
    return 10 * np.log10(power)


def power(wav: np.ndarray) -> float:
    return float(np.square(wav).mean())


def draws(kind: degradation.Degradation, wav: np.ndarray) -> list[np.ndarray]:
    """What 64 random choices make of a sound."""
    return [kind(wav, RATE, np.random.default_rng(seed)) for seed in range(64)]


def check_range(values: list[float], low: float, high: float, tolerance: float = 0.0) -> None:
    """They fill a range, of which a tenth may be left free at either end, and do not leave it."""
    margin = (high - low) / 10
    assert low - tolerance <= min(values) < low + margin
    assert high - margin < max(values) <= high + tolerance


@pytest.fixture(scope="module")
def white() -> np.ndarray:
    """One second, so that its spectrum has a bin for each Hz."""
    return np.random.default_rng(9).standard_normal(RATE).astype(np.float32)


@pytest.fixture(scope="module")
def click() -> np.ndarray:
    """One second that begins with one."""
    return np.eye(1, RATE)[0]


@pytest.mark.parametrize(
    ("kind", "softest", "loudest"),
    [(degradation.room, -12, 0), (degradation.noise, -40, -5), (degradation.music, -35, -5)],
)
def test_what_is_added_is_as_loud_as_it_says(kind, softest, loudest, white):
    levels = [decibels(power(heard - white) / power(white)) for heard in draws(kind, white)]
    check_range(levels, softest, loudest, tolerance=0.01)


def test_a_room_answers_with_60_db_less_after_its_time(click):
    """The time is how long the answer lasts; from 5 to 25 dB of its decay, as ISO 3382 measures, follow 60 dB."""
    times, ratios = [], []
    for heard in draws(degradation.room, click):
        tail = heard - click
        times.append(np.flatnonzero(np.abs(tail) > 1e-9)[-1] / RATE)
        left = np.square(tail)[::-1].cumsum()[::-1]
        begin, end = (np.argmax(left < left[0] * 10 ** (-db / 10)) / RATE for db in (5, 25))
        ratios.append(3 * (end - begin) / times[-1])
    check_range(times, 0.15, 0.7)
    assert np.abs(np.array(ratios) - 1).max() < 0.1


def test_a_room_does_not_answer_before_it_is_spoken_to(click, rng):
    late = np.roll(click, -100)
    np.testing.assert_allclose(degradation.room(late, RATE, rng)[:-100], 0, atol=1e-9)


def test_noise_lies_between_white_and_brown(white):
    """Decibels fall by 0 to 6 an octave."""
    octaves = np.log2(np.arange(100, 10000))
    slopes = []
    for heard in draws(degradation.noise, white):
        spectrum = np.abs(np.fft.rfft(heard - white)[100:10000])
        slopes.append(np.polyfit(octaves, 20 * np.log10(spectrum), 1, w=2 ** (-octaves / 2))[0])
    check_range(slopes, -6.02, 0, tolerance=0.2)


def test_music_has_tones_whose_lowest_partials_are_loudest(white):
    loudest, shares, num_tones = [], [], []
    for heard in draws(degradation.music, white):
        spectrum = np.abs(np.fft.rfft((heard - white) * np.hanning(RATE))) ** 2
        loudest.append(np.log(spectrum.argmax()))
        shares.append(spectrum[2000:].sum() / spectrum.sum())
        peaks, _ = find_peaks(10 * np.log10(spectrum), height=decibels(spectrum.max()) - 40, prominence=10)
        num_tones.append(len(peaks))
        assert np.sort(spectrum)[-RATE // 40 :].sum() > 0.8 * spectrum.sum()  # noise has a fifth in as many bins
    check_range(loudest, np.log(80), np.log(1500), tolerance=0.02)
    assert max(shares) > 0.1  # from notes of at most 1500 Hz
    assert np.median(num_tones) > 8  # of more than one note


def test_notes_begin_at_any_time_and_fade(white):
    music = [heard - white for heard in draws(degradation.music, white)]
    at_the_start = [power(added[:200]) / power(added) for added in music]
    assert min(at_the_start) < 1e-6
    assert max(at_the_start) > 1
    # About half: held notes alone would rarely be louder at first.
    assert sum(power(added[: RATE // 2]) > power(added[RATE // 2 :]) for added in music) > 16


def test_a_band_has_the_edges_and_the_tilt_that_it_says(click):
    """Edges are where 3 dB are lost, the tilt is that from 1 to 2 kHz."""
    hz = np.arange(1, RATE // 2 + 1)
    low, high, tilts = [], [], []
    for heard in draws(degradation.band, click):
        response = 20 * np.log10(np.abs(np.fft.rfft(heard))[1:])
        assert response[999] == pytest.approx(0, abs=0.02)
        tilts.append(response[1999] - response[999])
        level = response - tilts[-1] * np.log2(hz / 1000)
        passed = hz[level > -3.01]
        low.append(np.log(passed[0]))
        high.append(np.log(passed[-1]))
        assert level[passed[0] // 2 - 1] < -20  # an octave beyond
        if passed[-1] < RATE // 4:
            assert level[2 * passed[-1] - 1] < -60
    check_range(low, np.log(30), np.log(400), tolerance=0.04)
    check_range(high, np.log(3000), np.log(RATE / 2), tolerance=0.01)
    check_range(tilts, -2, 2, tolerance=0.01)


def test_clipping_cuts_off_peaks_and_changes_nothing_else(wav, rng):
    loud = degradation.clip(wav, RATE, rng)
    is_cut = np.abs(loud) == 1
    gain = np.abs(loud[~is_cut]).max() / np.abs(wav[~is_cut]).max()
    np.testing.assert_allclose(loud[~is_cut], gain * wav[~is_cut], rtol=1e-5)


def test_clipping_cuts_off_a_thousandth_to_a_twentieth(white):
    shares = [np.log((np.abs(loud) == 1).mean()) for loud in draws(degradation.clip, white)]
    check_range(shares, np.log(0.001), np.log(0.05), tolerance=0.05)


def test_softer_is_a_gain(wav, rng):
    soft = degradation.soften(wav, RATE, rng)
    np.testing.assert_allclose(soft, wav * np.sqrt(power(soft) / power(wav)), rtol=1e-5, atol=1e-9)


def test_softer_is_by_up_to_40_db(white):
    check_range([decibels(power(soft) / power(white)) for soft in draws(degradation.soften, white)], -40, 0)


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


def test_some_windows_stay_whole_and_clipping_comes_before_softening(white):
    wav = 0.1 * white[:500]
    degraded = [degradation.degrade(wav, RATE, np.random.default_rng(seed)) for seed in range(400)]
    is_whole = [np.array_equal(heard, wav) for heard in degraded]
    expected = np.prod(1 - np.array(list(degradation.PROBABILITIES.values())))
    assert abs(np.mean(is_whole) - expected) < 4 * np.sqrt(expected * (1 - expected) / 400)
    peaks = [np.abs(heard).max() for heard in degraded]
    assert min(peak for heard, peak in zip(degraded, peaks, strict=True) if (np.abs(heard) == peak).sum() > 10) < 0.1


def test_the_same_random_numbers_degrade_alike(wav):
    first, again, other = (degradation.degrade(wav, RATE, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert first.dtype == np.float32
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
