"""Metrics against formulas, against their packages, and at the edges where they have no value."""

import math

import numpy as np
import pesq
import pystoi
import pytest
from scipy.fft import dct
from scipy.signal import lfilter, stft

from codec.config import compose
from codec.evaluation.metric import Pair, Settings, Undefined
from codec.evaluation.pesq import MAX_UTTERANCES, count_utterances
from codec.evaluation.registry import GROUPS, METRICS, choose
from codec.evaluation.resampling import resample
from codec.evaluation.spectra import mel_magnitudes

CORE = GROUPS["core"]
PERFECT = {"pesq_wb": 4.644, "pesq_nb": 4.549, "stoi": 1.0, "estoi": 1.0, "mel": 0.0, "stft": 0.0, "mcd": 0.0}


def score(name: str, pair: Pair) -> float:
    return METRICS[name](Settings()).score(pair)[name]


def noise(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(length).astype(np.float32)


@pytest.mark.parametrize("name", PERFECT)
def test_perfect_estimate_has_the_best_value(name, reference):
    assert score(name, Pair(reference, reference.copy(), 24000)) == pytest.approx(PERFECT[name], abs=1e-3)


@pytest.mark.parametrize("name", CORE)
def test_more_noise_is_worse(name, reference):
    values = [score(name, Pair(reference, reference + level * noise(len(reference)), 24000)) for level in (0.001, 0.01)]
    is_higher_better = METRICS[name].columns[0].better == "higher"
    assert (values[0] > values[1]) == is_higher_better


@pytest.mark.parametrize("name", CORE)
def test_values_are_the_same_again(name, pair):
    assert score(name, pair) == score(name, pair)


# -- equal to the packages and to the published recipe


@pytest.mark.parametrize(("name", "mode"), [("pesq_wb", "wb"), ("pesq_nb", "nb")])
def test_pesq_is_that_of_the_package_at_16_khz(name, mode, pair):
    at_16k = [resample(wav, 24000, 16000) for wav in (pair.reference, pair.estimate)]
    assert score(name, pair) == pesq.pesq(16000, *at_16k, mode)


@pytest.mark.parametrize(("name", "extended"), [("stoi", False), ("estoi", True)])
def test_stoi_is_that_of_the_package_at_the_own_rate(name, extended, pair):
    assert score(name, pair) == pytest.approx(pystoi.stoi(pair.reference, pair.estimate, 24000, extended), abs=1e-9)


@pytest.mark.parametrize("level", [1, 0], ids=["speech", "silence"])
def test_spectral_distances_are_the_losses_of_training(pair, level):
    import torch

    from codec.training.losses import SpectralLoss

    tensors = [torch.from_numpy(wav)[None] for wav in (pair.reference, level * pair.estimate)]
    expected = SpectralLoss(compose(["recipe=paper"]).mel, 24000)(*tensors).mel
    distance = score("mel", Pair(pair.reference, level * pair.estimate, 24000))
    assert distance == pytest.approx(float(expected), rel=1e-4)  # float32 on either side


def test_stft_distance_follows_its_formula(pair):
    distances = []
    for length in (512, 1024, 2048):
        reference, estimate = (
            np.abs(
                stft(
                    np.pad(wav.astype(np.float64), length // 2, mode="reflect"),
                    window="hann", nperseg=length, noverlap=length * 3 // 4, boundary=None, padded=False,
                )[2]
            )
            * (length / 2)
            for wav in (pair.reference, pair.estimate)
        )  # fmt: skip
        convergence = np.linalg.norm(reference - estimate) / np.linalg.norm(reference)
        logarithms = (np.log(np.maximum(spectrum, 1e-5)) for spectrum in (reference, estimate))
        distances.append(convergence + np.abs(np.subtract(*logarithms)).mean())
    assert score("stft", pair) == pytest.approx(np.mean(distances), rel=1e-4)


# -- formulas


def test_si_sdr_of_orthogonal_noise_is_its_level():
    signal = np.sin(2 * np.pi * 50 * np.arange(24000) / 24000).astype(np.float32)
    other = np.sin(2 * np.pi * 70 * np.arange(24000) / 24000).astype(np.float32)
    assert score("si_sdr", Pair(signal, 3 * (signal + 0.1 * other), 24000)) == pytest.approx(20, abs=1e-3)


def test_si_sdr_does_not_see_a_constant_offset(reference, estimate):
    expected = score("si_sdr", Pair(reference, estimate, 24000))
    offset = np.float32(0.2)
    for pair in (Pair(reference + offset, estimate, 24000), Pair(reference, estimate - offset, 24000)):
        assert score("si_sdr", pair) == pytest.approx(expected, abs=1e-3)


def test_mel_distance_of_another_level_is_its_logarithm():
    wav = noise(24000)
    assert score("mel", Pair(wav, 0.5 * wav, 24000)) == pytest.approx(math.log(2), abs=1e-4)


def test_mcd_ignores_the_level():
    wav = noise(24000)
    assert score("mcd", Pair(wav, 0.5 * wav, 24000)) == pytest.approx(0, abs=1e-4)


def test_mcd_is_the_distance_of_cosine_transforms_of_log_mel_spectra_in_db(reference):
    estimate = lfilter([1, -0.5], [1], reference).astype(np.float32)
    cepstra = [
        dct(10 * np.log10(np.maximum(mel_magnitudes(wav, 24000, 1024, 256, 80), 1e-5)), type=2)[:, 1:14] / 80
        for wav in (reference, estimate)
    ]
    expected = np.sqrt(2 * ((cepstra[0] - cepstra[1]) ** 2).sum(axis=1)).mean()
    assert score("mcd", Pair(reference, estimate, 24000)) == pytest.approx(expected, rel=1e-5)
    assert expected > 1


def test_estoi_leaves_the_random_numbers_of_others_alone(pair):
    before = np.random.get_state()
    score("estoi", pair)
    np.testing.assert_equal(np.random.get_state(), before)


# -- no value is no number


@pytest.mark.parametrize(
    ("name", "seconds", "reason"),
    [
        ("pesq_wb", 0.2, "at least 0.25 s"),
        ("pesq_nb", 0.2, "at least 0.25 s"),
        ("stoi", 0.3, "30 frames"),
        ("estoi", 0.3, "30 frames"),
        ("mel", 0.02, "needs more than 512"),
        ("stft", 0.02, "needs more than 512"),
        ("mcd", 0.02, "needs more than 512"),
    ],
)
def test_too_short_is_undefined(name, seconds, reason, reference, estimate):
    part = slice(24000, 24000 + round(seconds * 24000))
    with pytest.raises(Undefined, match=reason):
        score(name, Pair(reference[part], estimate[part], 24000))


@pytest.mark.parametrize("name", ["pesq_wb", "pesq_nb", "stoi", "estoi", "si_sdr"])
def test_silent_estimate_is_undefined(name, reference):
    with pytest.raises(Undefined, match=r"."):
        score(name, Pair(reference, np.zeros_like(reference), 24000))


@pytest.mark.parametrize("name", ["pesq_wb", "pesq_nb", "stoi", "estoi", "si_sdr", "stft"])
def test_silent_reference_is_undefined(name, reference):
    with pytest.raises(Undefined, match=r"."):
        score(name, Pair(np.zeros_like(reference), reference, 24000))


def test_infinite_si_sdr_is_undefined(reference):
    with pytest.raises(Undefined, match="infinite"):
        score("si_sdr", Pair(reference, 2 * reference, 24000))


def test_more_utterances_than_pesq_can_hold_are_undefined(reference):
    """The package would end the process."""
    burst = np.concatenate([reference[24000:33000], np.zeros(7500, np.float32)])
    many = np.tile(burst, MAX_UTTERANCES + 30)
    assert count_utterances(resample(many, 24000, 16000)) > MAX_UTTERANCES
    with pytest.raises(Undefined, match="PESQ takes at most"):
        score("pesq_wb", Pair(many, many, 24000))


def test_utterances_are_counted_across_pauses(reference):
    wav = resample(reference, 24000, 16000)
    pause = np.zeros(16000, np.float32)
    once = count_utterances(wav)
    assert 1 <= once <= 4
    assert count_utterances(np.concatenate([wav, pause, wav])) == pytest.approx(2 * once, abs=1)
    assert count_utterances(pause) == 0
    assert count_utterances(pause[:10]) == 0


@pytest.mark.parametrize(("power", "count"), [(1.05, 0), (1.15, 1)])
def test_an_utterance_is_two_deviations_above_the_background(power, count):
    """Powers spread evenly over 0 .. 1 have mean 1/2 and deviation 1/sqrt(12): two above the mean is 1.08."""
    background = np.random.default_rng(0).permutation(np.linspace(0, 1, 1000))
    powers = np.concatenate([background, np.full(60, power), background])
    assert count_utterances(np.repeat(np.sqrt(powers), 64)) == count


# -- names


def test_groups_and_names_choose_each_metric_once_in_order():
    assert choose(["stoi", "core", "pesq_wb"]) == list(CORE)


@pytest.mark.parametrize("names", [["pesq"], [], ["core", "nisqa"]])
def test_unknown_metric_is_named(names):
    from codec.errors import ConfigError

    with pytest.raises(ConfigError, match=names[-1] if names else "no metric named"):
        choose(names)


def test_columns_are_unique_and_every_convention_is_written_down():
    columns = [column.name for metric in METRICS.values() for column in metric.columns]
    assert len(columns) == len(set(columns))
    for metric in METRICS.values():
        assert len(metric.__doc__ or "") > 100, metric
        assert metric.columns[0].better in ("higher", "lower")
        assert all(not column.weight or column.weight in columns for column in metric.columns)


def test_pair_must_be_of_one_length():
    with pytest.raises(ValueError, match="of one length"):
        Pair(np.zeros(5, np.float32), np.zeros(6, np.float32), 24000)
