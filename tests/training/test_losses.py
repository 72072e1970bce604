"""Losses against formulas, the published recipe's numbers and properties a loss must have."""

import math

import numpy as np
import pytest
import torch

from codec.config import compose
from codec.errors import ConfigError
from codec.training import losses
from codec.training.losses import MelLossConfig, MelSpectrum, SpectralLoss
from codec.training.perception import Disturbance

RATE = 24000
PAPER = compose(["recipe=paper"]).mel


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_impossible_mel_loss_settings_are_refused():
    with pytest.raises(ConfigError, match="triples"):
        MelLossConfig(resolutions=[[1024, 256]])
    with pytest.raises(ConfigError, match="triples of positive"):
        MelLossConfig(resolutions=[[1024, 0, 80]])
    with pytest.raises(ConfigError, match="floor"):
        MelLossConfig(floor=0.0)
    with pytest.raises(ConfigError, match="scale"):
        MelLossConfig(scale="bark")


def test_a_tone_lights_the_filter_at_its_frequency():
    spectrum = MelSpectrum(RATE, 1024, 256, 100)
    tone = torch.sin(2 * math.pi * 3000 * torch.arange(RATE) / RATE)[None]
    corners = 700 * (np.logspace(0, np.log10(1 + 12000 / 700), 102) - 1)  # Hz, of the HTK scale
    _, mel = spectrum(tone)  # (1, N, M)
    loudest = mel.mean(dim=1).argmax()
    assert abs(corners[loudest + 1] - 3000) < 100


def test_limiting_the_band_leaves_what_is_below_and_no_gradient_above():
    time = torch.arange(RATE, dtype=torch.float64) / RATE
    low, high = (torch.sin(2 * math.pi * hz * time).float() for hz in (6999, 7001))
    wav = torch.stack([low + high, low + high])[:, None].requires_grad_()
    limited = losses.limit_band(wav, torch.tensor([7000.0, 12000.0]), RATE)
    torch.testing.assert_close(limited[0, 0], low, atol=1e-4, rtol=0)
    torch.testing.assert_close(limited[1, 0], low + high, atol=1e-4, rtol=0)
    (gradient,) = torch.autograd.grad((limited * high).sum(), wav)
    assert gradient[0].abs().max() < 1e-3
    torch.testing.assert_close(gradient[1, 0], high, atol=1e-3, rtol=0)


def test_a_recording_that_fills_the_band_stays_as_it_is():
    wav = noise(1, 1, 480)
    torch.testing.assert_close(losses.limit_band(wav, torch.tensor([RATE / 2]), RATE), wav)


def test_reference_mel_equals_the_published_recipe(parity):
    """Rounding is relative to the loudest band of a frame; the published filters are rounded to float32, to 6e-6."""
    config = PAPER
    _, mel = SpectralLoss(config, RATE).spectra[0](torch.from_numpy(parity["y"]))
    ours = mel.clamp(min=config.floor).transpose(1, 2).numpy()
    loudest = ours.max(axis=1, keepdims=True)
    np.testing.assert_allclose(ours / loudest, np.exp(parity["logmel_y"]) / loudest, rtol=0, atol=1e-5)


def test_reference_mel_loss_and_gradient_equal_the_published_recipe(parity):
    y, y_hat = torch.from_numpy(parity["y"]), torch.from_numpy(parity["y_hat"]).requires_grad_()
    loss = SpectralLoss(PAPER, RATE)(y, y_hat).mel
    loss.backward()
    assert loss.item() == pytest.approx(parity["gen_mel"].item(), rel=1e-6)
    assert y_hat.grad.norm().item() == pytest.approx(parity["gradnorm_mel"].item(), rel=1e-5)


def test_a_silent_clip_does_not_outweigh_the_others_of_a_batch():
    wav = torch.stack([noise(1, 4800)[0], torch.zeros(4800)])
    estimate = torch.stack([0.5 * wav[0], 1e-5 * noise(1, 4800)[0]]).requires_grad_()  # less than the least of 16 bits
    SpectralLoss(MelLossConfig(), RATE)(wav, estimate).convergence.backward()
    loud, silent = estimate.grad.norm(dim=1)
    alone = SpectralLoss(MelLossConfig(), RATE)(wav[1:], estimate[1:]).convergence
    assert alone.item() == pytest.approx(1e-5 * 2**15, rel=0.02)  # relative to noise of one step
    assert silent * 1e-5 < loud * 0.5  # what each has to gain


def test_spectral_losses_of_equal_and_of_halved_audio():
    wav = noise(2, 1, 4800)
    loss = SpectralLoss(MelLossConfig(floor=1e-9), RATE)
    assert loss(wav, wav) == (0, 0, 0)
    halved = loss(wav, 0.5 * wav)
    assert halved.convergence.item() == pytest.approx(0.5, rel=1e-5)
    assert halved.loudness.item() == pytest.approx(1 - 0.5**0.5, rel=1e-3)
    # Every magnitude is halved, so every logarithm moves by log 2, in the bands whose filter is not empty.
    filled = sum(int((spectrum.filters.sum(dim=0) > 0).sum()) / spectrum.filters.shape[1] for spectrum in loss.spectra)
    assert halved.mel.item() == pytest.approx(math.log(2) * filled / len(loss.spectra), rel=1e-3)


@pytest.mark.parametrize(
    "loss",
    [lambda *pair: SpectralLoss(MelLossConfig(), RATE)(*pair), lambda *pair: (Disturbance(RATE)(*pair),)],
    ids=["spectral", "disturbance"],
)
def test_a_loss_of_a_batch_is_the_mean_over_its_clips_however_loud_they_are(loss):
    """So the mean over processes that share a batch is the loss of the batch."""
    levels = torch.tensor([0.3, 0.01, 0.1])[:, None]
    wav = levels * noise(3, 4800)
    estimate = wav + levels * torch.tensor([0.1, 2.0, 0.5])[:, None] * noise(3, 4800, seed=1)
    of_clips = torch.tensor([loss(wav[clip : clip + 1], estimate[clip : clip + 1]) for clip in range(3)])
    torch.testing.assert_close(torch.tensor(loss(wav, estimate)), of_clips.mean(0))


@pytest.mark.parametrize("config", [MelLossConfig(), PAPER], ids=["ours", "published"])
def test_spectral_losses_vanish_with_finite_gradients_at_silence(config):
    estimate = torch.zeros(2, 1, 4800, requires_grad=True)
    total = sum(SpectralLoss(config, RATE)(torch.zeros(2, 1, 4800), estimate))
    total.backward()
    assert total == 0
    assert estimate.grad.isfinite().all()


def test_spectral_losses_are_float32_under_autocast_and_leave_their_inputs_alone():
    reference, estimate = noise(2, 4800), noise(2, 4800, seed=1)
    kept = reference.clone(), estimate.clone()
    loss = SpectralLoss(MelLossConfig(), RATE)
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(reference, estimate)
    assert all(term.dtype == torch.float32 for term in inside)
    assert inside == loss(reference, estimate)
    assert reference.equal(kept[0])
    assert estimate.equal(kept[1])


def test_spectral_losses_send_no_gradient_to_the_reference():
    reference = noise(1, 4800).requires_grad_()
    estimate = noise(1, 4800, seed=1).requires_grad_()
    sum(SpectralLoss(MelLossConfig(), RATE)(reference, estimate)).backward()
    assert reference.grad is None
    assert estimate.grad.abs().sum() > 0


@pytest.mark.parametrize("n_fft", [64, 2048])
def test_the_slope_of_magnitudes_is_that_of_torch(n_fft):
    spectrum = MelSpectrum(RATE, n_fft, n_fft // 4, 8).double()
    ours, plain = (noise(2, 4800).double().requires_grad_() for _ in range(2))
    magnitudes, _ = spectrum(ours)
    stft = torch.stft(plain, n_fft, n_fft // 4, n_fft, spectrum.window, center=True, return_complex=True)
    expected = stft.abs().transpose(1, 2)
    torch.testing.assert_close(magnitudes, expected)
    weight = noise(*magnitudes.shape, seed=1).double()  # so that no bin's slope hides behind another's
    (magnitudes * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(ours.grad, plain.grad)


def test_hinge_losses_stop_at_the_margin():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 0.5])
    assert losses.hinge_discriminator_loss(real, fake).item() == pytest.approx(0.25 + 0.75)
    assert losses.hinge_generator_loss(fake).item() == pytest.approx((3.0 + 0.5) / 2)


def test_least_squares_losses_follow_their_formula():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 0.5])
    assert losses.least_squares_discriminator_loss(real, fake).item() == pytest.approx(1.25 / 2 + 4.25 / 2)
    assert losses.least_squares_generator_loss(fake).item() == pytest.approx((9.0 + 0.25) / 2)


@pytest.mark.parametrize("loss", losses.ADVERSARIAL_LOSSES.values(), ids=losses.ADVERSARIAL_LOSSES)
def test_adversarial_losses_pull_in_opposite_directions(loss):
    undecided = torch.linspace(0.1, 0.9, 9)
    real, fake = undecided.clone().requires_grad_(), undecided.clone().requires_grad_()
    loss.discriminator(real, fake).backward()
    assert (real.grad < 0).all()
    assert (fake.grad > 0).all()
    fake.grad = None
    loss.generator(fake).backward()
    assert (fake.grad < 0).all()


@pytest.mark.parametrize("loss", losses.ADVERSARIAL_LOSSES.values(), ids=losses.ADVERSARIAL_LOSSES)
def test_the_least_loss_of_a_discriminator_that_tells_nothing_apart_is_told(loss):
    logits = torch.linspace(-2, 2, 41)
    assert min(loss.discriminator(same, same).item() for same in logits) == pytest.approx(loss.undecided)


@pytest.mark.parametrize("loss", losses.ADVERSARIAL_LOSSES.values(), ids=losses.ADVERSARIAL_LOSSES)
def test_adversarial_losses_of_16_bit_logits_are_not_rounded_to_16_bits(loss):
    real, fake = noise(2, 1000).bfloat16()
    assert loss.discriminator(real, fake).item() == pytest.approx(
        loss.discriminator(real.double(), fake.double()).item()
    )
    assert loss.generator(fake).item() == pytest.approx(loss.generator(fake.double()).item())


def test_feature_matching_is_zero_for_equal_maps_and_detaches_the_real_ones():
    maps = [noise(2, 4, 9).requires_grad_(), noise(2, 3, 5).requires_grad_()]
    assert losses.feature_matching_loss(maps, maps).item() == 0
    fake = [m.detach() + 0.5 for m in maps]
    loss = losses.feature_matching_loss(maps, fake)
    assert loss.item() == pytest.approx(1.0)
    assert not loss.requires_grad


def test_feature_matching_of_16_bit_maps_is_not_rounded_to_16_bits():
    maps = [torch.ones(1000, dtype=torch.bfloat16), torch.tensor([0, 1, 1], dtype=torch.bfloat16)]
    loss = losses.feature_matching_loss([torch.zeros_like(m) for m in maps], maps)
    assert loss.item() == pytest.approx(1 + 2 / 3, rel=1e-6)


def test_feature_matching_refuses_unpaired_maps():
    with pytest.raises(ValueError, match="pairs"):
        losses.feature_matching_loss([torch.zeros(1)], [])
