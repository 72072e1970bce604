"""Mel filters against formulas and librosa."""

import numpy as np
import pytest

from codec.evaluation.spectra import MEL_SCALES, mel_filters

RATE = 24000


@pytest.mark.parametrize("scale", MEL_SCALES)
def test_mel_scale_inverts(scale):
    hz = np.linspace(0, 12000, 101)
    to_mel, to_hz = MEL_SCALES[scale]
    np.testing.assert_allclose(to_hz(to_mel(hz)), hz, rtol=1e-12, atol=1e-9)


def test_mel_scales_have_their_published_fixed_points():
    # HTK: 1000 Hz is 1000 mel (to its rounded constants). Slaney: 1000 Hz is 15 mel, 6400 Hz is 27 steps further.
    assert MEL_SCALES["htk"][0](1000.0) == pytest.approx(1000.0, abs=0.02)
    assert MEL_SCALES["slaney"][0](np.array([1000.0, 6400.0])) == pytest.approx([15.0, 42.0], abs=1e-4)


def test_neighbouring_filters_of_unit_height_add_up_to_one():
    filters = mel_filters(RATE, 2048, 40)
    first, last = filters[:, 0].argmax(), filters[:, -1].argmax()
    between = filters[first + 1 : last].sum(axis=1)  # inside the outermost centres
    np.testing.assert_allclose(between, 1, rtol=1e-6)  # float32


def test_slaney_filters_have_unit_area():
    filters = mel_filters(RATE, 8192, 20, "slaney")
    # Sampling a triangle at bins a few hertz apart leaves an error of second order in their spacing.
    np.testing.assert_allclose(filters.sum(axis=0) * RATE / 8192, 1, atol=5e-3, rtol=0)


@pytest.mark.parametrize("scale", MEL_SCALES)
def test_filters_equal_librosa(scale):
    librosa = pytest.importorskip("librosa")
    norm = "slaney" if scale == "slaney" else None
    expected = librosa.filters.mel(sr=RATE, n_fft=1024, n_mels=80, htk=scale == "htk", norm=norm)
    np.testing.assert_allclose(mel_filters(RATE, 1024, 80, scale).T, expected, atol=1e-6)
