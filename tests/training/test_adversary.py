"""The adversary: who gets gradients in which role, that one run equals two, and that it resumes exactly."""

import copy

import pytest
import torch

from codec.errors import ConfigError, ModelError
from codec.training import losses
from codec.training.adversary import Adversary, AdversaryConfig
from codec.training.discriminators import DiscriminatorsConfig, PeriodConfig, ScaleConfig, SpectrumConfig


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
            channels=[4],
            kernel_sizes=[[3, 5]],
            strides=[[1, 2]],
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


def count_runs(adversary):
    runs = []
    for _, _, member in adversary.discriminators.members():
        member.register_forward_hook(lambda module, inputs, output: runs.append((module, len(inputs[0]))))
    return runs


def test_generator_role_leaves_the_discriminators_without_gradients_and_trainable(adversary, clips):
    real, fake = clips
    sum(adversary.generator_loss(real, fake)).backward()
    assert all(p.grad is None for p in parameters(adversary))
    assert all(p.requires_grad for p in parameters(adversary))
    assert fake.grad.abs().sum() > 0


def test_discriminators_become_trainable_again_after_an_error(adversary):
    with pytest.raises(RuntimeError, match="size of tensor"):
        adversary.generator_loss(torch.zeros(1, 1, 600), torch.zeros(1, 1, 500))
    assert all(p.requires_grad for p in parameters(adversary))


def test_discriminator_role_sends_no_gradient_to_either_waveform(adversary, clips):
    real, fake = clips
    real.requires_grad_()
    adversary.backward(adversary.discriminator_loss(real, fake))
    assert real.grad is None
    assert fake.grad is None
    assert all(p.grad is not None for p in parameters(adversary))


def test_each_discriminator_runs_once_per_role_and_clip(adversary, clips):
    runs = count_runs(adversary)
    members = 5
    adversary.discriminator_loss(*clips)
    assert [size for _, size in runs] == [6] * members
    runs.clear()
    adversary.generator_loss(*clips)
    assert [size for _, size in runs] == [3] * 2 * members
    runs.clear()
    adversary.joint_losses(*clips)
    assert [size for _, size in runs] == [3] * 2 * members


def test_losses_follow_each_groups_definition(adversary, clips):
    real, fake = clips
    on_real, on_fake = adversary.discriminators(real), adversary.discriminators(fake)
    adversarial = sum(losses.hinge_generator_loss(output.logits) for output in on_fake["period"]) / 2
    adversarial += sum(losses.least_squares_generator_loss(output.logits) for output in on_fake["scale"])
    adversarial += losses.hinge_generator_loss(on_fake["spectrum"][0].logits)
    result = adversary.generator_loss(real, fake)
    torch.testing.assert_close(result.adversarial, adversarial)

    pairs = [(r, f) for group in ("period", "scale") for r, f in zip(on_real[group], on_fake[group], strict=True)]
    shares = [0.5, 0.5, 1.0, 1.0]
    matching = sum(
        share * losses.feature_matching_loss(r.feature_maps, f.feature_maps)
        for (r, f), share in zip(pairs, shares, strict=True)
    )
    matching += (on_real["spectrum"][0].logits - on_fake["spectrum"][0].logits).abs().mean()
    torch.testing.assert_close(result.feature_matching, matching)


def test_feature_matching_vanishes_for_a_perfect_copy(adversary, clips):
    real, _ = clips
    assert adversary.generator_loss(real, real.clone()).feature_matching.item() == 0


def test_one_joint_run_equals_both_roles(adversary, clips):
    real, fake = clips
    result = adversary.generator_loss(real, fake)
    (2 * (0.7 * result.adversarial + 3 * result.feature_matching)).backward()
    expected = fake.grad.clone()
    loss = adversary.discriminator_loss(real, fake)
    adversary.backward(loss)
    gradients = [p.grad.clone() for p in parameters(adversary)]

    fake.grad = None
    joint = adversary.joint_losses(real, fake, adversarial_weight=0.7, feature_matching_weight=3)
    assert fake.grad is None
    (2 * joint.generator).backward()
    torch.testing.assert_close(fake.grad, expected, rtol=1e-4, atol=1e-5)
    # One batch of both clips or two batches of one: sums are taken in another order.
    torch.testing.assert_close([p.grad for p in parameters(adversary)], gradients, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(joint[1:], (result.adversarial, result.feature_matching, loss.detach()))
    torch.testing.assert_close(joint.generator.detach(), 0.7 * result.adversarial + 3 * result.feature_matching)


def test_joint_gradient_reaches_the_generators_parameters(adversary, clips):
    real, fake = clips
    gain = torch.tensor(0.5, requires_grad=True)
    adversary.joint_losses(real, gain * fake.detach()).generator.backward()
    expected = torch.tensor(0.5, requires_grad=True)
    sum(adversary.generator_loss(real, expected * fake.detach())).backward()
    torch.testing.assert_close(gain.grad, expected.grad)


@pytest.mark.parametrize("role", ["generator", "discriminator", "joint"])
def test_losses_are_float32_under_autocast_and_close_to_full_precision(adversary, clips, role):
    run = getattr(adversary, f"{role}_loss" + ("es" if role == "joint" else ""))
    with torch.autocast("cpu", torch.bfloat16):
        inside = run(*clips)
    outside = run(*clips)
    for a, b in zip(*((x,) if torch.is_tensor(x) else x for x in (inside, outside)), strict=True):
        assert a.dtype == torch.float32
        assert a.item() == pytest.approx(b.item(), rel=0.02)


def test_discriminators_learn_to_tell(adversary, clips):
    real, fake = clips
    before = adversary.discriminator_loss(real, fake).item()
    adversary.optimizer.param_groups[0]["lr"] = 1e-2
    for _ in range(30):
        adversary.joint_losses(real, fake)
        adversary.step()
    assert adversary.discriminator_loss(real, fake).item() < 0.5 * before
    on_real, on_fake = adversary.discriminators(real), adversary.discriminators(fake)
    for group in on_real:
        for r, f in zip(on_real[group], on_fake[group], strict=True):
            assert r.logits.mean() > f.logits.mean()


def test_a_step_with_a_non_finite_gradient_changes_nothing(adversary, clips):
    real, fake = clips
    adversary.joint_losses(real, fake)
    adversary.step()
    before = copy.deepcopy(adversary.state_dict())
    adversary.joint_losses(real, fake * torch.tensor(float("nan")))
    assert not adversary.step().isfinite()
    torch.testing.assert_close(adversary.state_dict(), before, rtol=0, atol=0)
    adversary.joint_losses(real, fake)
    assert adversary.step().isfinite()
    assert any(not p.equal(q) for p, q in zip(parameters(adversary), before["discriminators"].values(), strict=True))


def test_gradients_are_clipped_to_the_limit(clips):
    torch.manual_seed(0)
    adversary = Adversary(config(max_gradient_norm=1e-3))
    adversary.joint_losses(*clips)
    norm = adversary.step()
    assert norm > 1e-3
    assert all(p.grad is None for p in parameters(adversary))
    # After one step AdamW's first moment is (1 - beta) times the gradient it was given.
    moments = [state["exp_avg"].norm() for state in adversary.optimizer.state.values()]
    assert torch.stack(moments).norm().item() / (1 - 0.8) == pytest.approx(1e-3, rel=1e-3)


def test_resuming_from_a_state_dict_is_exact(adversary, clips):
    for _ in range(2):
        adversary.joint_losses(*clips)
        adversary.step()
    resumed = Adversary(config())
    resumed.load_state_dict(copy.deepcopy(adversary.state_dict()))
    for side in (adversary, resumed):
        side.joint_losses(*clips)
        side.step()
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
    for a, b in zip(parameters(adversary), parameters(other), strict=True):
        torch.testing.assert_close(a, b, rtol=2**-11, atol=1e-7)  # half-precision rounding


def test_weights_of_another_set_are_refused(adversary, tmp_path):
    adversary.save_weights(tmp_path / "discriminators.safetensors")
    settings = config()
    settings.discriminators.scale = None
    with pytest.raises(ModelError, match=r"discriminators.safetensors: made with other discriminator settings"):
        Adversary(settings).load_weights(tmp_path / "discriminators.safetensors")


def test_weights_that_are_cut_off_are_refused(adversary, tmp_path):
    path = tmp_path / "discriminators.safetensors"
    adversary.save_weights(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ModelError, match=r"discriminators.safetensors: is not a whole file .*; copy it again"):
        adversary.load_weights(path)
    assert not adversary.has_learned


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"betas": [0.9]}, "betas must be two numbers"),
        ({"weight_decay": -1.0}, "weight_decay must not be negative"),
        ({"max_gradient_norm": 0.0}, "max_gradient_norm must be positive"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        config(**settings)


def test_settings_survive_hydra_schemas():
    omegaconf = pytest.importorskip("omegaconf")
    schema = omegaconf.OmegaConf.structured(AdversaryConfig)
    merged = omegaconf.OmegaConf.merge(schema, {"betas": [0.5, 0.9], "discriminators": {"spectrum": None}})
    assert omegaconf.OmegaConf.to_object(merged).discriminators.spectrum is None
