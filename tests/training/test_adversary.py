"""The adversary: its losses and gradients are those of their definitions, and it resumes exactly."""

import copy
import errno
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from codec.errors import ConfigError, ModelError
from codec.training import losses
from codec.training.adversary import Adversary, AdversaryConfig
from codec.training.discriminators import DiscriminatorsConfig, PeriodConfig, ScaleConfig, SpectrumConfig
from codec.training.state import flatten_optimizer, restore_optimizer


def config(**settings):
    discriminators = DiscriminatorsConfig(
        period=PeriodConfig(periods=[2, 3], channels=[4, 8], kernel_sizes=[5, 3], strides=[3, 1]),
        scale=ScaleConfig(
            factors=[1, 2],
            channels=[4, 8],
            kernel_sizes=[15, 9],
            strides=[2, 4],
            groups=[1, 2],
            loss="least-squares",
            reduction="sum",
        ),
        spectrum=SpectrumConfig(
            n_ffts=[128],
            overlap=[4],
            channels=[4, 6],
            kernel_sizes=[[3, 5], [3, 3]],
            strides=[[1, 2], [1, 1]],
            band_edges=[0.0, 1.0],
            skip_first_map=True,
            match_logits=True,
        ),
    )
    return AdversaryConfig(discriminators=discriminators, **settings)


@pytest.fixture
def adversary():
    torch.manual_seed(0)
    return Adversary(config())


@pytest.fixture
def clips():
    generator = torch.Generator().manual_seed(1)
    real, noise = torch.randn(2, 3, 1, 600, generator=generator)
    return real, (0.5 * real + 0.5 * noise).requires_grad_()


def parameters(adversary):
    return list(adversary.discriminators.parameters())


def state_of(adversary):
    return copy.deepcopy((adversary.discriminators.state_dict(), flatten_optimizer(adversary.optimizer)))


def by_definition(adversary, real, fake):
    """Adversarial, feature matching and discriminator loss of `config()`'s groups, from whole runs, with all graphs."""
    on_real, on_fake = adversary.discriminators(real), adversary.discriminators(fake)
    hinge = [  # the first group is averaged, the last has one member
        (share, r.logits, f.logits)
        for share, group in ((0.5, "period"), (1.0, "spectrum"))
        for r, f in zip(on_real[group], on_fake[group], strict=True)
    ]
    least_squares = [(r.logits, f.logits) for r, f in zip(on_real["scale"], on_fake["scale"], strict=True)]
    adversarial = sum(share * losses.hinge_generator_loss(f) for share, _, f in hinge)
    adversarial += sum(losses.least_squares_generator_loss(f) for _, f in least_squares)
    discriminator = sum(share * losses.hinge_discriminator_loss(r, f) for share, r, f in hinge)
    discriminator += sum(losses.least_squares_discriminator_loss(r, f) for r, f in least_squares)
    matching = sum(
        share * losses.feature_matching_loss(r.feature_maps, f.feature_maps)
        for share, group in ((0.5, "period"), (1.0, "scale"))
        for r, f in zip(on_real[group], on_fake[group], strict=True)
    )
    # Of the spectrum's two maps the first is left out, and the logits are one more.
    (r,), (f,) = on_real["spectrum"], on_fake["spectrum"]
    matching += (r.feature_maps[1] - f.feature_maps[1]).abs().mean() + (r.logits - f.logits).abs().mean()
    return adversarial, matching, discriminator


def test_losses_follow_each_groups_definition(adversary, clips):
    joint = adversary.joint_losses(*clips, adversarial_weight=0.7, feature_matching_weight=3)
    adversarial, matching, discriminator = (value.detach() for value in by_definition(adversary, *clips))
    torch.testing.assert_close(joint[1:], (adversarial, matching, discriminator))
    torch.testing.assert_close(joint.generator.detach(), 0.7 * adversarial + 3 * matching)


def test_undecided_is_the_loss_of_logits_that_tell_nothing_apart(adversary):
    # A hinge for the average of two periods and for a spectrum; least squares for the sum of two scales.
    assert adversary.undecided_loss() == 2 + 2 + 2 * 0.5


def test_each_side_gets_the_gradient_of_its_own_loss(adversary, clips):
    real, fake = clips
    adversary.joint_losses(-real, -fake)  # leaves nothing behind
    real.requires_grad_()
    joint = adversary.joint_losses(real, fake, adversarial_weight=0.7, feature_matching_weight=3)
    gradients = [p.grad.clone() for p in parameters(adversary)]
    assert (real.grad, fake.grad) == (None, None)
    (2 * joint.generator).backward()
    assert real.grad is None
    torch.testing.assert_close([p.grad for p in parameters(adversary)], gradients, rtol=0, atol=0)

    adversarial, matching, discriminator = by_definition(adversary, real, fake)
    (expected,) = torch.autograd.grad(2 * (0.7 * adversarial + 3 * matching), fake, retain_graph=True)
    torch.testing.assert_close(fake.grad, expected, rtol=1e-4, atol=1e-5)
    expected_gradients = list(torch.autograd.grad(discriminator, parameters(adversary)))
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-4, atol=1e-5)


def test_each_discriminator_runs_once_per_clip(adversary, clips):
    runs = []
    for _, _, member in adversary.discriminators.members():
        member.register_forward_hook(lambda module, inputs, output: runs.append(len(inputs[0])))
    adversary.joint_losses(*clips)
    assert runs == [3] * 2 * 5


def test_feature_matching_vanishes_for_a_perfect_copy(adversary, clips):
    real, _ = clips
    assert adversary.joint_losses(real, real.clone()).feature_matching.item() == 0


def test_joint_gradient_reaches_the_generators_parameters(adversary, clips):
    real, fake = clips
    gain = torch.tensor(0.5, requires_grad=True)
    adversary.joint_losses(real, gain * fake.detach()).generator.backward()
    expected = torch.tensor(0.5, requires_grad=True)
    sum(by_definition(adversary, real, expected * fake.detach())[:2]).backward()
    torch.testing.assert_close(gain.grad, expected.grad)


def test_losses_are_float32_under_autocast_and_close_to_full_precision(adversary, clips):
    with torch.autocast("cpu", torch.bfloat16):
        inside = adversary.joint_losses(*clips)
    for a, b in zip(inside, adversary.joint_losses(*clips), strict=True):
        assert a.dtype == torch.float32
        assert a.item() == pytest.approx(b.item(), rel=0.02)


def update(adversary: Adversary, real: Tensor, fake: Tensor, is_skipped: float = 0.0) -> Tensor:
    adversary.joint_losses(real, fake)
    norm = adversary.clip_gradients()
    adversary.step(torch.tensor(is_skipped))
    return norm


def test_discriminators_learn_to_tell(adversary, clips):
    real, fake = clips
    before = adversary.joint_losses(real, fake).discriminator.item()
    adversary.optimizer.param_groups[0]["lr"] = 1e-2
    for _ in range(30):
        update(adversary, real, fake)
    assert adversary.joint_losses(real, fake).discriminator.item() < 0.5 * before
    on_real, on_fake = adversary.discriminators(real), adversary.discriminators(fake)
    for group in on_real:
        for r, f in zip(on_real[group], on_fake[group], strict=True):
            assert r.logits.mean() > f.logits.mean()


def test_a_step_that_is_skipped_changes_nothing(adversary, clips):
    real, fake = clips
    update(adversary, real, fake)
    before = state_of(adversary)
    assert not update(adversary, real, fake * torch.tensor(float("nan")), is_skipped=1.0).isfinite()
    torch.testing.assert_close(state_of(adversary), before, rtol=0, atol=0)
    assert update(adversary, real, fake).isfinite()
    assert any(not p.equal(q) for p, q in zip(parameters(adversary), before[0].values(), strict=True))


def test_a_first_step_is_that_of_adamw_with_its_rate_and_decay(clips):
    """In which the moments cancel out but for the sign."""
    torch.manual_seed(0)
    adversary = Adversary(config(learning_rate=1e-2, weight_decay=0.5))
    before = [p.detach().clone() for p in parameters(adversary)]
    adversary.joint_losses(*clips)
    gradients = [p.grad for p in parameters(adversary)]
    adversary.step(torch.tensor(0.0))
    for parameter, old, gradient in zip(parameters(adversary), before, gradients, strict=True):
        expected = old * (1 - 1e-2 * 0.5) - 1e-2 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-4, atol=1e-6)


def test_gradients_are_clipped_to_the_limit(clips):
    torch.manual_seed(0)
    adversary = Adversary(config(max_gradient_norm=1e-3))
    norm = update(adversary, *clips)
    assert norm > 1e-3
    assert all(p.grad is None for p in parameters(adversary))
    # After one step AdamW's first moment is (1 - beta) times the gradient it was given.
    moments = [state["exp_avg"].norm() for state in adversary.optimizer.state.values()]
    assert torch.stack(moments).norm().item() / (1 - 0.8) == pytest.approx(1e-3, rel=1e-3)


def test_resuming_from_a_state_is_exact(adversary, clips):
    for _ in range(2):
        update(adversary, *clips)
    resumed = Adversary(config())
    discriminators, optimizer = state_of(adversary)
    resumed.discriminators.load_state_dict(discriminators)
    restore_optimizer(resumed.optimizer, optimizer)
    for side in (adversary, resumed):
        update(side, *clips)
    for a, b in zip(parameters(adversary), parameters(resumed), strict=True):
        assert a.equal(b)


def test_saved_weights_take_two_bytes_each_and_come_back(adversary, clips, tmp_path):
    adversary.save_weights(tmp_path / "discriminators.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["discriminators.safetensors"]
    size = sum(p.numel() for p in parameters(adversary))
    header = 8 + int.from_bytes((tmp_path / "discriminators.safetensors").read_bytes()[:8], "little")
    assert (tmp_path / "discriminators.safetensors").stat().st_size == header + 2 * size
    other = Adversary(config())
    other.load_weights(tmp_path / "discriminators.safetensors")
    assert (adversary.has_learned, other.has_learned) == (False, True)
    for a, b in zip(parameters(adversary), parameters(other), strict=True):
        torch.testing.assert_close(a, b, rtol=2**-11, atol=1e-7)  # half-precision rounding


def test_weights_of_another_set_are_refused(adversary, tmp_path):
    adversary.save_weights(tmp_path / "discriminators.safetensors")
    settings = config()
    settings.discriminators.scale = None
    with pytest.raises(ModelError, match=r"discriminators.safetensors: made with other discriminator settings"):
        Adversary(settings).load_weights(tmp_path / "discriminators.safetensors")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (
            lambda path: path.write_bytes(path.read_bytes()[:-10]),
            "is not a whole safetensors file .*; copy or download",
        ),
        (lambda path: path.write_bytes(b""), "is not a whole safetensors file"),
        (Path.unlink, "cannot be read"),
        (lambda path: (path.unlink(), path.mkdir()), "cannot be read"),
    ],
    ids=["cut off", "empty", "missing", "folder"],
)
def test_weights_that_cannot_be_read_are_refused(adversary, tmp_path, damage, sentence):
    path = tmp_path / "discriminators.safetensors"
    adversary.save_weights(path)
    damage(path)
    with pytest.raises(ModelError, match=rf"{path}: {sentence}.*, or remove it to begin with new discriminators"):
        adversary.load_weights(path)
    assert not adversary.has_learned


def test_a_full_disk_leaves_the_old_weights_and_nothing_else(adversary, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "discriminators.safetensors"
    adversary.save_weights(path)
    old = path.read_bytes()
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr("os.fsync", full)
        adversary.save_weights(path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == old


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"betas": [0.9]}, "betas must be two numbers"),
        ({"betas": [0.9, 0.99, 0.999]}, "betas must be two numbers"),
        ({"betas": [0.9, 1.0]}, "betas must be two numbers in \\[0, 1\\)"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
        ({"max_gradient_norm": 0.0}, "max_gradient_norm must be positive"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        config(**settings)


def test_settings_survive_hydra_schemas():
    schema = OmegaConf.structured(AdversaryConfig)
    merged = OmegaConf.merge(schema, {"betas": [0.5, 0.9], "discriminators": {"spectrum": None}})
    assert OmegaConf.to_object(merged).discriminators.spectrum is None
