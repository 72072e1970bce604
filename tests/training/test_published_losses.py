"""The published recipe's adversarial losses and gradients, with weights from an arithmetic fill rule.

Expected numbers: `../shared/parity/losses.npz`, computed by the published code in float32; its README gives the rule,
the definitions and how far float32 and float64 lie apart, which is what the tolerances follow.
"""

import json
import zlib

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


@pytest.fixture(scope="module")
def runs(paper, parity):
    """Losses of each part for either of the generator's alone, with its gradient; the discriminators keep theirs."""
    y, y_hat = torch.from_numpy(parity["y"]), torch.from_numpy(parity["y_hat"]).requires_grad_()
    found = {}
    for name, weights in (("adv", (1.0, 0.0)), ("fm", (0.0, 1.0))):
        paper.zero_grad()
        for part, groups in GROUPS.items():
            losses = adversary_of(paper, groups).joint_losses(y, y_hat, *weights)
            found[part, name] = losses, torch.autograd.grad(losses.generator, y_hat)[0]
    return found


@pytest.mark.parametrize("part", GROUPS)
@pytest.mark.parametrize("name", ["adv", "fm"])
def test_published_generator_losses_and_their_gradients(part, name, parity, runs):
    losses, gradient = runs[part, name]
    assert losses.generator.item() == pytest.approx(parity[f"gen_{part}_{name}"].item(), rel=1e-6)
    # The resolution part divides by magnitudes near zero where they are differentiated.
    assert gradient.norm().item() == pytest.approx(parity[f"gradnorm_{part}_{name}"].item(), rel=1e-5)


def test_published_total_and_all_gradients(parity, paper, runs):
    y, y_hat = torch.from_numpy(parity["y"]), torch.from_numpy(parity["y_hat"]).requires_grad_()
    mel = 45 * SpectralLoss(compose(["recipe=paper"]).mel, 24000)(y, y_hat).mel
    total = mel + sum(losses.generator for losses, _ in runs.values()) + 1000 * parity["commit"].item()
    assert total.item() == pytest.approx(parity["gen_total"].item(), rel=1e-6)
    discriminator = sum(runs[part, "fm"][0].discriminator for part in GROUPS)
    assert discriminator.item() == pytest.approx(parity["disc_total"].item(), rel=1e-6)
    gradient = torch.autograd.grad(mel, y_hat)[0] + sum(gradient for _, gradient in runs.values())
    expected = torch.from_numpy(parity["grad_total"])
    assert ((gradient - expected).norm() / expected.norm()).item() < 1e-4
    assert gradient.norm().item() == pytest.approx(parity["gradnorm_total"].item(), rel=1e-5)
    for part, name in NAMES.items():
        gradients = [p.grad for group in GROUPS[part] for p in paper.groups[group].parameters()]
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm().item()
        assert norm == pytest.approx(parity[f"paramgrad_{name}"].item(), rel=5e-5)
