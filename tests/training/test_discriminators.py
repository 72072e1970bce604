"""Discriminators: what each kind sees, and what their settings promise."""

import math

import pytest
import torch

from codec.config import compose
from codec.errors import ConfigError
from codec.training.discriminators import (
    Discriminators,
    DiscriminatorsConfig,
    PeriodConfig,
    PeriodDiscriminator,
    ScaleConfig,
    ScaleDiscriminator,
    SpectrumConfig,
    SpectrumDiscriminator,
)

TINY = DiscriminatorsConfig(
    period=PeriodConfig(periods=[2, 3], channels=[4, 8], kernel_sizes=[5, 3], strides=[3, 1]),
    scale=ScaleConfig(factors=[1, 2, 4], channels=[4, 8], kernel_sizes=[15, 9], strides=[2, 4], groups=[1, 2]),
    spectrum=SpectrumConfig(
        n_ffts=[256, 128],
        overlap=[4, 4],
        channels=[4, 4],
        kernel_sizes=[[3, 5], [3, 3]],
        strides=[[1, 2], [1, 1]],
        band_edges=[0.0, 0.5, 1.0],
    ),
)


def shipped(name):
    """The discriminators of `configs/adversary/NAME.yaml`."""
    return compose([f"adversary={name}", "data.train=unused"]).adversary.discriminators


def tone(hertz, samples=4800, rate=24000):
    return torch.sin(2 * math.pi * hertz * torch.arange(samples) / rate)[None, None]


def test_published_sizes():
    with torch.device("meta"):
        sizes = {
            name: sum(p.numel() for p in group.parameters())
            for name, group in Discriminators(shipped("paper")).groups.items()
        }
    millions = [sizes["period"], sizes["resolution"], sizes["dac_period"] + sizes["dac_spectrum"]]
    assert [round(size / 1e6, 2) for size in millions] == [41.11, 0.60, 42.52]


def test_small_set_has_all_kinds_and_stays_small():
    discriminators = Discriminators(shipped("small"))
    assert set(discriminators.groups) == {"period", "scale", "spectrum"}
    assert sum(p.numel() for p in discriminators.parameters()) < 1.5e6


def test_periods_as_rows_equal_the_published_columns():
    torch.manual_seed(0)
    member = Discriminators(TINY).groups["period"][1]
    wav = torch.randn(2, 1, 301)
    padded = torch.nn.functional.pad(wav, (0, 2), mode="reflect")
    x = padded.view(2, 1, 101, 3)
    for conv, stride in zip(member.convs, (3, 1), strict=True):
        pad = conv.weight.shape[-1] // 2
        x = torch.nn.functional.conv2d(x, conv.weight[..., None], conv.bias, (stride, 1), (pad, 0))
        x = torch.nn.functional.leaky_relu(x, 0.1)
    x = torch.nn.functional.conv2d(x, member.post.weight[..., None], member.post.bias, padding=(1, 0))
    logits = member(wav).logits
    torch.testing.assert_close(logits.view(2, 3, -1).transpose(1, 2), x[:, 0])


def test_a_signal_of_the_period_looks_constant():
    torch.manual_seed(0)
    member = PeriodDiscriminator(5, PeriodConfig(channels=[4], kernel_sizes=[5], strides=[1]))
    feature_map = member(torch.randn(5).repeat(20)[None, None]).feature_maps[0]
    assert feature_map.shape == (1, 4, 5, 20)
    inner = feature_map[..., 2:-2]  # what the zero padding does not reach
    torch.testing.assert_close(inner, inner[..., :1].expand_as(inner))
    assert inner.std(dim=2).min() > 0.01


@pytest.mark.parametrize("factor", [2, 4])
def test_scales_really_are_downsampled_without_aliasing(factor):
    member = ScaleDiscriminator(factor, TINY.scale)
    nyquist = 12000 / factor
    inner = slice(16, -16)  # away from the zero padding
    high = member.downsample(tone(1.2 * nyquist))
    low = member.downsample(tone(0.5 * nyquist))
    assert low.shape[-1] == 4800 // factor
    assert high[..., inner].abs().max() < 0.01
    torch.testing.assert_close(low[..., inner], tone(0.5 * nyquist)[..., ::factor][..., inner], atol=0.01, rtol=0)


def test_complex_spectrum_sees_phase_and_magnitude_spectrum_does_not():
    wav = tone(750.0, 2560)  # whole periods, so that negation is a shift by half a period
    settings = {"n_ffts": [256], "overlap": [4], "compression": 1.0}
    complex_one = SpectrumDiscriminator(256, 64, SpectrumConfig(**settings))
    magnitude_one = SpectrumDiscriminator(256, 64, SpectrumConfig(is_complex=False, **settings))
    assert not torch.allclose(complex_one.spectrum(wav), complex_one.spectrum(-wav), atol=0.1)
    torch.testing.assert_close(magnitude_one.spectrum(wav), magnitude_one.spectrum(-wav))


def test_compression_keeps_phase_and_takes_the_root_of_the_magnitude():
    wav = 3 * tone(750.0, 2560)
    plain = SpectrumDiscriminator(256, 64, SpectrumConfig(compression=1.0)).spectrum(wav)
    root = SpectrumDiscriminator(256, 64, SpectrumConfig(compression=0.5)).spectrum(wav)
    loud = plain.norm(dim=1) > 1
    torch.testing.assert_close(root.norm(dim=1)[loud], plain.norm(dim=1)[loud].sqrt(), rtol=1e-4, atol=0)
    angles = [torch.atan2(x[:, 1], x[:, 0])[loud] for x in (plain, root)]
    torch.testing.assert_close(*angles)


def test_spectra_ignore_autocast():
    member = Discriminators(TINY).groups["spectrum"][0]
    wav = torch.randn(1, 1, 1000, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        inside = member.spectrum(wav)
        assert member(wav).logits.dtype == torch.bfloat16
    assert inside.equal(member.spectrum(wav))


@pytest.mark.parametrize("group", ["period", "scale", "spectrum"])
def test_gradients_are_finite_at_silence_and_clips_do_not_mix(group):
    torch.manual_seed(0)
    discriminators = Discriminators(TINY)
    wav = torch.randn(2, 1, 901)
    wav[0] = 0
    wav.requires_grad_()
    for output in discriminators(wav)[group]:
        (gradient,) = torch.autograd.grad(output.logits[0].sum(), wav, retain_graph=True)
        assert gradient.isfinite().all()
        assert gradient[0].abs().sum() > 0
        assert gradient[1].abs().sum() == 0


def test_level_input_makes_loudness_invisible():
    config = PeriodConfig(periods=[2], channels=[4], kernel_sizes=[5], strides=[3], level_input=True)
    member = Discriminators(DiscriminatorsConfig(period=config, scale=None, spectrum=None)).groups["period"][0]
    wav = tone(440.0)
    torch.testing.assert_close(member(wav).logits, member(0.01 * wav + 0.3).logits, atol=1e-4, rtol=1e-3)
    assert member(torch.zeros(1, 1, 480)).logits.isfinite().all()


def test_first_weights_keep_the_size_of_activations():
    torch.manual_seed(0)
    discriminators = Discriminators(shipped("small"))
    for outputs in discriminators(torch.randn(2, 1, 6000)).values():
        for output in outputs:
            rms = [feature_map.square().mean().sqrt().item() for feature_map in output.feature_maps]
            assert 0.5 < rms[-1] / rms[0] < 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PeriodConfig(loss="wasserstein"), "loss must be one of hinge"),
        (lambda: PeriodConfig(reduction="max"), "reduction must be one of mean, sum"),
        (lambda: PeriodConfig(channels=[4]), "per layer"),
        (lambda: ScaleConfig(kernel_sizes=[15, 40, 41, 41, 41, 5]), "must be odd"),
        (lambda: SpectrumConfig(band_edges=[0.0, 0.5]), "rise from 0 to 1"),
        (lambda: SpectrumConfig(compression=0.0), "compression must be in"),
        (lambda: SpectrumConfig(overlap=[4]), "n_ffts and overlap must be lists of one length"),
        (lambda: DiscriminatorsConfig(period=None, scale=None, spectrum=None), "at least one group"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_settings_survive_hydra_schemas():
    omegaconf = pytest.importorskip("omegaconf")
    schema = omegaconf.OmegaConf.structured(DiscriminatorsConfig)
    merged = omegaconf.OmegaConf.merge(schema, {"scale": None, "resolution": {"n_ffts": [256], "overlap": [4]}})
    config = omegaconf.OmegaConf.to_object(merged)
    assert config.scale is None
    assert config.resolution.n_ffts == [256]
    assert isinstance(config.period, PeriodConfig)
