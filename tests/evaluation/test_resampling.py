"""The resampler of the metrics: what passes, what does not, and that it is the one behind the published numbers."""

import math

import numpy as np
import pytest

from codec.errors import ConfigError
from codec.evaluation.resampling import resample

RATES = [(24000, 16000), (16000, 24000), (22050, 24000), (44100, 16000), (48000, 24000), (24000, 10000), (24000, 11025)]


def tone(frequency: float, rate: int, seconds: float = 0.5) -> np.ndarray:
    return np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate).astype(np.float32)


@pytest.mark.parametrize(("source", "target"), RATES)
def test_tone_in_the_pass_band_keeps_its_phase_and_level(source, target):
    resampled = resample(tone(1000, source), source, target)
    expected = tone(1000, target)
    inside = slice(100, min(len(resampled), len(expected)) - 100)
    # The window is short, so the pass band has a ripple of about half a percent.
    assert np.abs(resampled[inside] - expected[inside]).max() < 0.01


def test_tone_above_the_new_nyquist_frequency_vanishes():
    resampled = resample(tone(10500, 24000), 24000, 16000)
    assert np.abs(resampled[100:-100]).max() < 0.01


@pytest.mark.parametrize(("source", "target"), RATES)
@pytest.mark.parametrize("num_samples", [1, 2, 5, 100, 4801])
def test_length_is_the_ceiling(source, target, num_samples):
    assert len(resample(np.ones(num_samples), source, target)) == math.ceil(num_samples * target / source)


def test_same_rate_changes_nothing(reference):
    assert np.array_equal(resample(reference, 24000, 24000), reference)


@pytest.mark.parametrize(("source", "target"), RATES)
def test_equals_torchaudio_with_its_defaults(source, target):
    from codec._torchaudio import import_torchaudio

    try:
        torchaudio = import_torchaudio()
    except ConfigError:
        pytest.skip("torchaudio is not installed: pip install 'codec[eval]'")
    import torch

    wav = np.random.default_rng(0).standard_normal(4801)
    # In double precision, because in single precision torchaudio also rounds the instants of its filter.
    expected = torchaudio.functional.resample(torch.from_numpy(wav), source, target).numpy()
    assert np.abs(resample(wav, source, target) - expected).max() < 1e-6  # our output is float32


def test_equals_stored_values_of_torchaudio():
    """Of torchaudio 2.11, for where it is not installed: samples 0, 100, 200, ... of a chirp from 24 to 16 kHz."""
    time = np.arange(1200) / 24000
    resampled = resample(np.sin(2 * np.pi * (200 * time + 60000 * time**2)), 24000, 16000)
    assert resampled[::100] == pytest.approx(STORED, abs=1e-6)


STORED = [0.005144, -0.5553756, -0.7069263, -0.8320754, -3.18e-05, -0.8299855, -0.7085763, -0.5591949]
