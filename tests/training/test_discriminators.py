"""Discriminators: what each kind sees, and what their settings promise."""

import math
from dataclasses import replace

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
    logits, maps = member(wav)
    for conv, found, stride in zip(member.convs, maps, (3, 1), strict=True):
        pad = conv.weight.shape[-1] // 2
        x = torch.nn.functional.conv2d(x, conv.weight[..., None], conv.bias, (stride, 1), (pad, 0))
        x = torch.nn.functional.leaky_relu(x, 0.1)
        torch.testing.assert_close(found.transpose(2, 3), x)
    x = torch.nn.functional.conv2d(x, member.post.weight[..., None], member.post.bias, padding=(1, 0))
    torch.testing.assert_close(logits.view(2, 3, -1).transpose(1, 2), x[:, 0])


def test_a_signal_of_the_period_looks_constant():
    torch.manual_seed(0)
    member = PeriodDiscriminator(5, PeriodConfig(channels=[4], kernel_sizes=[5], strides=[1]))
    feature_map = member(torch.randn(5).repeat(20)[None, None]).feature_maps[0]
    assert feature_map.shape == (1, 4, 5, 20)
    inner = feature_map[..., 2:-2]  # what the zero padding does not reach
    torch.testing.assert_close(inner, inner[..., :1].expand_as(inner))
    assert inner.std(dim=2).min() > 0.01


def test_the_maps_of_a_scale_are_those_of_its_layers():
    torch.manual_seed(0)
    member = Discriminators(TINY).groups["scale"][0]  # at the full sample rate
    wav = torch.randn(2, 1, 301)
    logits, maps = member(wav)
    x = wav
    for conv, found, stride, padding, groups in zip(member.convs, maps, (2, 4), (7, 4), (1, 2), strict=True):
        x = torch.nn.functional.conv1d(x, conv.weight, conv.bias, stride, padding, groups=groups)
        x = x.where(x > 0, 0.1 * x)
        torch.testing.assert_close(found, x)
    x = torch.nn.functional.conv1d(x, member.post.weight, member.post.bias, padding=1)
    torch.testing.assert_close(logits, x[:, 0])


@pytest.mark.parametrize("factor", [2, 4])
def test_scales_really_are_downsampled_without_aliasing(factor):
    member = ScaleDiscriminator(factor, TINY.scale)
    nyquist = 12000 / factor
    inner = slice(16, -16)  # away from the zero padding
    high = member.downsample(tone(1.05 * nyquist))
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


def test_spectra_of_noise_have_the_power_of_its_windowed_samples():
    """By Parseval's theorem, for the transform of n samples is divided by sqrt(n)."""
    wav = torch.randn(1, 1, 96000, generator=torch.Generator().manual_seed(0))
    member = SpectrumDiscriminator(256, 64, SpectrumConfig(compression=1.0))
    power = member.spectrum(wav).square().sum(dim=1).mean()
    assert power.item() == pytest.approx(3 / 8, rel=0.02)  # the mean square of a Hann window


def test_each_bin_belongs_to_one_band():
    """Of an STFT of 256 samples, whose windows are centred at each 64th; the edges are those of DAC."""
    config = SpectrumConfig(n_ffts=[256], overlap=[4], channels=[4], kernel_sizes=[[3, 3]], strides=[[1, 1]])
    (member,) = config.networks()
    maps = member(torch.randn(1, 1, 640)).feature_maps
    assert [feature_map.shape[-2:] for feature_map in maps] == [(11, bins) for bins in (12, 20, 32, 32, 33)]


def test_magnitudes_are_compressed_to_their_root():
    wav = 3 * tone(750.0, 2560)
    plain, root = (
        SpectrumDiscriminator(256, 64, SpectrumConfig(is_complex=False, compression=power)).spectrum(wav)
        for power in (1.0, 0.5)
    )
    loud = plain > 1
    torch.testing.assert_close(root[loud], plain[loud].sqrt(), rtol=1e-3, atol=0)


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


@pytest.mark.parametrize("config", TINY.groups().values(), ids=TINY.groups())
def test_level_input_makes_loudness_invisible_in_each_clip_of_a_batch(config):
    torch.manual_seed(0)
    wav = tone(440.0)
    clips = torch.cat([wav, 0.01 * wav + 0.3, 0 * wav])
    for member in replace(config, level_input=True).build():
        logits = member(clips).logits
        torch.testing.assert_close(logits[1], logits[0], atol=1e-4, rtol=1e-3)
        assert logits.isfinite().all()


@pytest.mark.parametrize(("preserve_variance", "least", "most"), [(True, 0.5, 2), (False, 0, 0.2)])
def test_first_weights_keep_the_size_of_activations_unless_they_are_torchs(preserve_variance, least, most):
    torch.manual_seed(0)
    wav = torch.randn(2, 1, 6000)
    for group in shipped("small").groups().values():
        for member in replace(group, preserve_variance=preserve_variance).build():
            rms = [feature_map.square().mean().sqrt().item() for feature_map in member(wav).feature_maps]
            assert least < rms[-1] / rms[0] < most


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PeriodConfig(loss="wasserstein"), "loss must be one of hinge"),
        (lambda: PeriodConfig(reduction="max"), "reduction must be one of mean, sum"),
        (lambda: PeriodConfig(channels=[4]), "per layer"),
        (lambda: ScaleConfig(kernel_sizes=[15, 40, 41, 41, 41, 5]), "must be odd"),
        (lambda: ScaleConfig(groups=[1, 4, 8, 16, 16, 0]), "groups must be at least 1"),
        (lambda: PeriodConfig(channels=[32, 128, 0, 1024, 1024]), "channels must be at least 1"),
        (lambda: PeriodConfig(channels=[4], kernel_sizes=[5], strides=[1], skip_first_map=True), "nothing to match"),
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
