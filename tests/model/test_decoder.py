"""The stream family's decoder: gains within bounds, and what its sound may teach the pitch."""

import math

import pytest
import torch

from codec.model.decoder import SpectralDecoder, SpectralDecoderConfig


@pytest.fixture
def decoder() -> SpectralDecoder:
    torch.manual_seed(0)
    config = SpectralDecoderConfig(
        hop_length=32, n_fft=128, width=8, num_blocks=1, num_attention=0, latent_dim=4, pitch_width=4, attention_heads=1
    )
    return SpectralDecoder(config)


def sound_with_log_gain(decoder: SpectralDecoder, gain: str, value: float) -> torch.Tensor:
    with torch.no_grad():
        decoder.filters.weight.zero_()
        pulses, _, noise = decoder.filters.bias.zero_().chunk(3)
        {"pulses": pulses, "noise": noise}[gain].fill_(value)
    torch.manual_seed(0)  # the place in the noise at which training begins
    return decoder(torch.randn(1, 4, 6))


@pytest.mark.parametrize("gain", ["pulses", "noise"])
def test_gains_stop_at_a_hundred_and_break_no_gradient(decoder: SpectralDecoder, gain: str):
    loudest = sound_with_log_gain(decoder, gain, math.log(100))
    assert torch.equal(sound_with_log_gain(decoder, gain, 1000.0), loudest)  # e^1000 is infinite
    assert not torch.equal(sound_with_log_gain(decoder, gain, math.log(99)), loudest)
    sound_with_log_gain(decoder, gain, 1000.0).square().mean().backward()
    assert all(p.grad.isfinite().all() for p in decoder.parameters() if p.grad is not None)


def test_the_sound_teaches_the_pitch_nothing_and_its_own_loss_all_of_it(decoder: SpectralDecoder):
    wav, log_pitch = decoder.synthesize(torch.randn(1, 4, 6))
    wav.square().mean().backward()
    assert all(p.grad is None for p in decoder.pitch.parameters())
    log_pitch.square().mean().backward()
    assert all(p.grad.any() for p in decoder.pitch.parameters())


def test_autocast_rounds_no_phase_outside_training(decoder: SpectralDecoder):
    x = torch.randn(1, 6, 8)
    expected = decoder.eval()._filter_values(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(decoder._filter_values(x), expected)
        assert not torch.equal(decoder.train()._filter_values(x), expected)


def test_autocast_rounds_no_pitch(decoder: SpectralDecoder):
    latent = torch.randn(1, 4, 6)
    expected = decoder.synthesize(latent).log_pitch
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(decoder.synthesize(latent).log_pitch, expected)
