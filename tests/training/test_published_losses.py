"""The published recipe's adversarial losses and gradients, with weights from an arithmetic fill rule.

Expected numbers: `../shared/parity/losses.npz`, computed by the published code in float32; its README gives the rule,
the definitions and how far float32 and float64 lie apart, which is what the tolerances follow.
"""

import json
import zlib

import numpy as np
import pytest
import torch
from parity import PARITY, fill

from codec.config import compose
from codec.model.upstream import our_discriminators
from codec.training.adversary import Adversary, AdversaryConfig
from codec.training.discriminators import Discriminators
from codec.training.losses import ADVERSARIAL_LOSSES, SpectralLoss

GROUPS = {"mp": ["period"], "mr": ["resolution"], "dac": ["dac_period", "dac_spectrum"]}
NAMES = {"mp": "multiperioddisc", "mr": "multiresddisc", "dac": "dac"}


@pytest.fixture(scope="module")
def parity():
    if not (PARITY / "losses.npz").exists():
        pytest.skip("needs ../shared/parity/losses.npz")
    return np.load(PARITY / "losses.npz")


@pytest.fixture(scope="module")
def paper(parity):
    """The published set, filled: every key of the fixtures is used, and every tensor has the stored checksum."""
    keys = json.loads((PARITY / "losses_keys.json").read_text())["keys"]
    keys = {key: entry for key, entry in keys.items() if "melspec" not in key}
    state = {key: torch.from_numpy(fill(key, entry["shape"])) for key, entry in keys.items()}
    assert all(zlib.crc32(state[key].numpy().tobytes()) == entry["crc32"] for key, entry in keys.items())
    discriminators = Discriminators(compose(["recipe=paper"]).adversary.discriminators)
    ours = our_discriminators("simvq", state)
    assert len(ours) == len(keys)
    discriminators.load_state_dict(ours)
    return discriminators


@pytest.fixture(scope="module")
def outputs(paper, parity):
    with torch.no_grad():
        return paper(torch.from_numpy(parity["y"])), paper(torch.from_numpy(parity["y_hat"]))


def adversary_of(paper, groups):
    """An adversary that consists of some groups of the filled set."""
    config = compose(["recipe=paper"]).adversary.discriminators
    for name in config.groups():
        if name not in groups:
            setattr(config, name, None)
    with torch.device("meta"):
        adversary = Adversary(AdversaryConfig(discriminators=config), device="meta")
    for name in groups:
        adversary.discriminators.groups[name] = paper.groups[name]
    return adversary


@pytest.mark.parametrize("part", GROUPS)
def test_published_logits_and_map_counts(part, parity, outputs):
    for output_by_group, side in zip(outputs, ("real", "fake"), strict=True):
        members = [output for group in GROUPS[part] for output in output_by_group[group]]
        means = [output.logits.mean().item() for output in members]
        assert means == pytest.approx(parity[f"{part}_{side}_mean"].tolist(), abs=2e-6)
        assert [output.logits.shape[1] for output in members] == parity[f"{part}_score_len"].tolist()
        # The fixtures count the logits as a map, and leave the first map of the period part out.
        counts = [len(output.feature_maps) + (part != "mp") for output in members]
        assert counts == parity[f"{part}_fmap_count"].tolist()


@pytest.mark.parametrize("part", GROUPS)
def test_published_discriminator_loss(part, parity, paper, outputs):
    real, fake = outputs
    total = 0.0
    for group in GROUPS[part]:
        settings = paper.config.groups()[group]
        loss = ADVERSARIAL_LOSSES[settings.loss].discriminator
        values = [loss(r.logits, f.logits) for r, f in zip(real[group], fake[group], strict=True)]
        total += sum(values).item() / (len(values) if settings.reduction == "mean" else 1)
    assert total == pytest.approx(parity[f"disc_{part}"].item(), rel=1e-6)


@pytest.mark.parametrize("part", GROUPS)
def test_published_generator_losses_and_their_gradients(part, parity, paper):
    y, y_hat = torch.from_numpy(parity["y"]), torch.from_numpy(parity["y_hat"]).requires_grad_()
    adversary = adversary_of(paper, GROUPS[part])
    for weights, name in (((1.0, 0.0), "adv"), ((0.0, 1.0), "fm")):
        loss = adversary.joint_losses(y, y_hat, *weights).generator
        (gradient,) = torch.autograd.grad(loss, y_hat)
        assert loss.item() == pytest.approx(parity[f"gen_{part}_{name}"].item(), rel=1e-6)
        # The resolution part divides by magnitudes near zero where they are differentiated.
        assert gradient.norm().item() == pytest.approx(parity[f"gradnorm_{part}_{name}"].item(), rel=1e-5)
    paper.zero_grad()


def test_published_total_and_all_gradients_from_one_run(parity, paper):
    y, y_hat = torch.from_numpy(parity["y"]), torch.from_numpy(parity["y_hat"]).requires_grad_()
    result = adversary_of(paper, list(paper.groups)).joint_losses(y, y_hat)
    mel = SpectralLoss(compose(["recipe=paper"]).mel, 24000)(y, y_hat).mel
    total = result.generator + 45 * mel
    total.backward()
    assert total.item() + 1000 * parity["commit"].item() == pytest.approx(parity["gen_total"].item(), rel=1e-6)
    assert result.discriminator.item() == pytest.approx(parity["disc_total"].item(), rel=1e-6)
    expected = torch.from_numpy(parity["grad_total"])
    assert ((y_hat.grad - expected).norm() / expected.norm()).item() < 1e-4
    assert y_hat.grad.norm().item() == pytest.approx(parity["gradnorm_total"].item(), rel=1e-5)
    for part, name in NAMES.items():
        gradients = [p.grad for group in GROUPS[part] for p in paper.groups[group].parameters()]
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm().item()
        assert norm == pytest.approx(parity[f"paramgrad_{name}"].item(), rel=5e-5)
    paper.zero_grad()
