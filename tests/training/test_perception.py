"""The model of the ear on sounds whose loudness is known, and both losses against PESQ and STOI themselves."""

import math
from pathlib import Path

import pytest
import soundfile
import torch
import torch.nn.functional as F
from pesq import pesq
from pystoi import stoi
from scipy.signal import resample_poly

from codec.training import perception
from codec.training.perception import Disturbance, Intelligibility

RATE = 24000


@pytest.fixture(scope="module")
def ear() -> Disturbance:
    return Disturbance(RATE)


@pytest.fixture(scope="module")
def sentence(speech: Path) -> torch.Tensor:
    """Four seconds of real speech, (1, T)."""
    wav, sample_rate = soundfile.read(speech, dtype="float32")
    assert sample_rate == RATE
    return torch.from_numpy(wav)[None, : 4 * RATE]


def noise(like: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed)) * like.std()


def test_scales_have_their_published_fixed_points():
    hz = torch.tensor([100.0, 500.0, 1000.0, 4000.0], dtype=torch.float64)
    # Zwicker's table of critical bands has 1, 5, 8.5 and 17.5 Bark there; Traunmüller's formula is within 0.3.
    assert perception.bark(hz).tolist() == pytest.approx([1.0, 5.0, 8.5, 17.5], abs=0.3)
    # Hearing is most sensitive between 3 and 4 kHz, where tones below 0 dB are heard.
    threshold = perception.hearing_threshold(torch.arange(100.0, 8000.0, 10.0))
    assert 3000 < 100 + 10 * int(threshold.argmin()) < 4000
    assert float(threshold.min()) == pytest.approx(-5.0, abs=0.5)
    ends = perception.hearing_threshold(torch.tensor([1000.0, 8000.0]))
    assert ends.tolist() == pytest.approx([3.4, 4.8], abs=0.1)


@pytest.mark.parametrize("sample_rate", [16000, RATE, 48000])
def test_loudness_doubles_every_ten_decibels(sample_rate: int):
    """The definition of the sone: a tone of 1 kHz has 1 at 40 dB and, about, twice as much for every 10 dB more."""
    ear = Disturbance(sample_rate)
    tone = torch.sin(2 * math.pi * 1000 * torch.arange(sample_rate) / sample_rate)
    power = ear._band_powers(tone[None])[0, 3]  # (M,) of a frame
    levels = perception.power_of(torch.tensor([40.0, 50.0, 60.0, 70.0, 80.0]))
    sones = (ear._sones(levels[:, None] * power / power.sum()) * ear.widths).sum(1)
    assert float(sones[0]) == pytest.approx(1.0, abs=0.05)
    ratios = sones[1:] / sones[:-1]
    assert ((ratios > 1.6) & (ratios < 2.1)).all()
    assert float(ratios[-1]) == pytest.approx(10**0.23, rel=0.03)  # Zwicker's power law, far above the threshold
    assert (ear._sones(0.9 * ear.thresholds) == 0).all()


def test_a_copy_is_not_disturbed_and_its_gradient_is_finite(ear: Disturbance, sentence: torch.Tensor):
    estimate = sentence.clone().requires_grad_()
    disturbance = ear(sentence, estimate)
    assert float(disturbance.detach()) == 0
    disturbance.backward()
    assert torch.isfinite(estimate.grad).all()


@pytest.mark.parametrize("silent", ["reference", "estimate", "both"])
def test_silence_gives_finite_gradients(ear: Disturbance, sentence: torch.Tensor, silent: str):
    zeros = torch.zeros_like(sentence)
    reference = zeros if silent in ("reference", "both") else sentence
    estimate = (zeros if silent in ("estimate", "both") else sentence).clone().requires_grad_()
    disturbance = ear(reference, estimate)
    disturbance.backward()
    assert torch.isfinite(disturbance)
    assert torch.isfinite(estimate.grad).all()


def test_what_is_too_soft_to_be_heard_does_not_disturb(ear: Disturbance, sentence: torch.Tensor):
    """Of white noise, each band of 31 Hz holds 26 dB less than the whole."""
    level = -86 - 10  # dB below the speech's level of 86 dB SPL, so -10 dB SPL
    assert float(ear(sentence, sentence + 10 ** (level / 20) * noise(sentence))) < 1e-3


def test_what_lies_above_8_khz_is_not_judged(ear: Disturbance, sentence: torch.Tensor):
    time = torch.arange(sentence.shape[-1]) / RATE
    below, above = (float(ear(sentence, sentence + 0.01 * torch.sin(2 * math.pi * hz * time))) for hz in (7000, 9000))
    assert below > 1
    assert above < 0.02


def test_speech_that_is_hardly_there_disturbs_like_none(ear: Disturbance, sentence: torch.Tensor):
    """Or a decoder could go silent."""
    assert ear(sentence, 1e-4 * sentence) > 0.9 * ear(sentence, torch.zeros_like(sentence)) > 1


def test_pauses_neither_disturb_nor_set_the_level(ear: Disturbance, sentence: torch.Tensor):
    """The root of a mean of squares over four times as many syllables is half of that over those of speech."""
    estimate = sentence + 0.03 * noise(sentence)
    with_pause, estimate_with_pause = (F.pad(wav, (0, 3 * wav.shape[-1])) for wav in (sentence, estimate))
    assert float(ear(with_pause, estimate_with_pause) / ear(sentence, estimate)) == pytest.approx(0.5, abs=0.02)


def test_what_is_added_disturbs_more_than_what_is_missing(ear: Disturbance, sentence: torch.Tensor):
    time = torch.arange(sentence.shape[-1]) / RATE
    tone = 0.003 * torch.sin(2 * math.pi * 3000 * time)[None]
    assert ear(sentence, sentence + tone) > 1.3 * ear(sentence + tone, sentence)


def test_only_the_reference_sets_the_level(ear: Disturbance, sentence: torch.Tensor):
    estimate = sentence + 0.1 * noise(sentence)
    expected = ear(sentence, estimate)
    torch.testing.assert_close(ear(0.1 * sentence, 0.1 * estimate), expected, rtol=1e-3, atol=0)
    torch.testing.assert_close(ear(sentence[:, None], estimate[:, None]), expected)


def test_what_differs_all_the_time_disturbs_little(ear: Disturbance, sentence: torch.Tensor):
    """Another level, and another response of the microphone, as P.862 has it."""
    assert float(ear(sentence, 0.3 * sentence)) < 1e-3
    spectrum = torch.fft.rfft(sentence)
    tilt = 10 ** (torch.linspace(-6, 6, spectrum.shape[-1]) / 20)
    tilted = torch.fft.irfft(spectrum * tilt, n=sentence.shape[-1])
    sudden = torch.cat([sentence[:, : 2 * RATE], tilted[:, 2 * RATE :]], dim=1)
    assert float(ear(sentence, tilted)) < 0.5 * float(ear(sentence, sudden))


def test_a_gain_that_varies_disturbs_less_than_that_of_a_part(ear: Disturbance, sentence: torch.Tensor):
    gain = 10 ** (6 * torch.sin(2 * math.pi * torch.arange(sentence.shape[-1]) / RATE) / 20)
    spectrum = torch.fft.rfft(sentence)
    hz = torch.fft.rfftfreq(sentence.shape[-1], 1 / RATE)
    low = torch.fft.irfft(spectrum * (hz < 1500), n=sentence.shape[-1])
    assert ear(sentence, gain * sentence) < 0.2 * ear(sentence, gain * low + sentence - low)


def test_the_worst_moment_decides(ear: Disturbance, sentence: torch.Tensor):
    """Noise in one of eight half seconds disturbs more than an eighth as much as noise in all of them."""
    half = slice(RATE, RATE + RATE // 2)
    noises = 0.05 * noise(sentence)
    short = sentence.clone()
    short[:, half] += noises[:, half]
    here, everywhere = float(ear(sentence, short)), float(ear(sentence, sentence + noises))
    assert here > 1.5 * everywhere / 8


def test_the_last_moment_counts(ear: Disturbance, sentence: torch.Tensor):
    """Whether or not recordings end with a syllable, of which a new one begins every 0.16 s."""
    noises = F.pad(0.05 * noise(sentence)[:, -RATE // 8 :], (sentence.shape[-1] - RATE // 8, 0))
    for length in range(sentence.shape[-1] - RATE // 6, sentence.shape[-1], RATE // 24):
        assert ear(sentence[:, -length:], (sentence + noises)[:, -length:]) > 0.1


def degraded(sentence: torch.Tensor) -> list[torch.Tensor]:
    """Noise of seven levels and five kinds of blurred spectra."""

    def blurred(strength: float) -> torch.Tensor:
        window = torch.hann_window(768)
        spectrum = torch.stft(sentence, 768, 192, window=window, return_complex=True)
        gains = torch.randn(spectrum.shape, generator=torch.Generator().manual_seed(1))
        return torch.istft(spectrum * torch.exp(strength * gains), 768, 192, window=window, length=sentence.shape[-1])

    noisy = [sentence + level * noise(sentence) for level in (0.003, 0.01, 0.03, 0.06, 0.1, 0.2, 0.4)]
    return noisy + [blurred(strength) for strength in (0.1, 0.3, 0.6, 1.0, 1.5)]


def test_it_ranks_degradations_as_pesq_does(ear: Disturbance, sentence: torch.Tensor):
    """The order that the reference implementation gives."""
    estimates = degraded(sentence)
    at_16k = [resample_poly(wav[0].numpy(), 2, 3) for wav in (sentence, *estimates)]
    scores = torch.tensor([pesq(16000, at_16k[0], wav, "wb") for wav in at_16k[1:]])
    disturbances = torch.stack([ear(sentence, estimate) for estimate in estimates])
    ranks = torch.stack([values.argsort().argsort().float() for values in (scores, -disturbances)])
    assert float(torch.corrcoef(ranks)[0, 1]) > 0.9


@pytest.mark.parametrize("kind", ["blurred", "with soft tones"])  # the first is what a codec does
def test_it_counts_in_points_of_the_raw_score(ear: Disturbance, sentence: torch.Tensor, kind: str):
    """4.5 without any disturbance; P.862.2 maps the raw score to what `pesq` gives. Bands here come from formulas."""
    time = torch.arange(sentence.shape[-1]) / RATE
    tones = [sentence + 0.001 * torch.sin(2 * math.pi * hz * time) for hz in (500, 1000, 3000, 6000)]
    errors = []
    for estimate in degraded(sentence)[7:] if kind == "blurred" else tones:
        reference_at_16k, estimate_at_16k = (resample_poly(wav[0].numpy(), 2, 3) for wav in (sentence, estimate))
        score = pesq(16000, reference_at_16k, estimate_at_16k, "wb")
        raw = (3.8224 - math.log(4 / (score - 0.999) - 1)) / 1.3669
        errors.append(4.5 - float(ear(sentence, estimate)) - raw)
    assert abs(sum(errors) / len(errors)) < 0.4


@pytest.fixture(scope="module")
def listener() -> Intelligibility:
    return Intelligibility(RATE)


def test_intelligibility_is_that_of_the_reference_implementation(listener: Intelligibility, sentence: torch.Tensor):
    """`pystoi` resamples to 10 kHz, and takes silence out before it cuts frames."""
    for estimate in degraded(sentence):
        expected = stoi(sentence[0].numpy(), estimate[0].numpy(), RATE)
        assert 1 - float(listener(sentence, estimate)) == pytest.approx(expected, abs=0.01)


def test_intelligibility_neither_hears_level_nor_moves_the_reference(listener: Intelligibility, sentence: torch.Tensor):
    reference, estimate = sentence.clone().requires_grad_(), (0.1 * sentence + 0.02 * noise(sentence)).requires_grad_()
    loss = listener(reference[:, None], estimate[:, None])
    torch.testing.assert_close(loss, listener(reference, 5 * estimate), rtol=1e-3, atol=0)
    loss.backward()
    assert reference.grad is None
    assert torch.isfinite(estimate.grad).all()
    assert float(listener(sentence, 0.5 * sentence)) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("num_samples", [round(0.4 * RATE), RATE])
def test_silence_is_not_judged_for_intelligibility(listener: Intelligibility, num_samples: int):
    reference = torch.zeros(2, num_samples)
    estimate = noise(torch.randn(2, num_samples)).requires_grad_()
    loss = listener(reference, estimate)
    loss.backward()
    assert torch.isfinite(estimate.grad).all()
    reference[:, : RATE // 5] = 0.1 * torch.randn(2, RATE // 5)  # speech, but too little of it
    assert float(listener(reference, estimate).detach()) == 0


def test_recordings_count_alike_however_little_speech_they_have(listener: Intelligibility, sentence: torch.Tensor):
    """So the mean over processes that share a batch is the loss of the batch."""
    half = torch.where(torch.arange(sentence.shape[-1]) < sentence.shape[-1] // 2, sentence, 0)
    reference = torch.cat([sentence[:1], half[:1]])
    estimate = reference + noise(reference)
    of_each = torch.stack([listener(reference[item : item + 1], estimate[item : item + 1]) for item in range(2)])
    assert of_each.min() > 0.01
    torch.testing.assert_close(listener(reference, estimate), of_each.mean())


@pytest.mark.parametrize("sample_rate", [perception.LEAST_RATE, 8000, 16000, 22050, 24000, 44100])
@pytest.mark.parametrize(("loss", "least"), [(Disturbance, 0.0), (Intelligibility, 0.1)])
def test_the_shortest_window_is_judged(loss: type[Disturbance | Intelligibility], least: float, sample_rate: int):
    length = loss.shortest(sample_rate)
    reference, estimate = torch.randn(2, 1, length, generator=torch.Generator().manual_seed(0))
    assert least <= loss(sample_rate)(reference, estimate) < math.inf  # a single frame's disturbance is evened out
    with pytest.raises(RuntimeError):
        loss(sample_rate)(reference[:, 1:], estimate[:, 1:])
