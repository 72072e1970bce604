"""Training from a model: its configuration and discriminators are taken over, frozen parts stay as they are."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

import codec
from codec.config import compose
from codec.errors import ConfigError, ModelError
from codec.model import weights
from codec.model.catalogue import DISCRIMINATORS_CONFIG_NAME, DISCRIMINATORS_NAME, resolve
from codec.training.adversary import Adversary
from codec.training.run_files import LOG_NAME, STATE_NAME
from codec.training.settings import differences
from codec.training.start import (
    ADVERSARIAL_START,
    adversarial_start,
    commitment_weight,
    initial_adversary,
    surprises,
)
from codec.training.state import load_state
from codec.training.trainer import Trainer

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def trained(tiny_settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    trainer = Trainer(compose([*tiny_settings, f"training.run={tmp_path_factory.mktemp('first')}"]))
    trainer.fit()
    return trainer


@pytest.fixture
def first(trained: Trainer, tmp_path: Path) -> Trainer:
    """A trained run, not to be changed; a copy of its model is at run/last."""
    shutil.copytree(trained.run / "last", tmp_path / "run" / "last")
    return trained


def tuned(tiny_run: list[str], tmp_path: Path, *more: str, model: bool = False) -> Trainer:
    """A trainer that starts from the first run's model; `model` repeats its configuration."""
    settings = [override for override in tiny_run if model or not override.startswith(("model.", "adversary"))]
    start = [f"training.run={tmp_path / 'tuned'}", f"training.init={tmp_path / 'run' / 'last'}"]
    return Trainer(compose([*settings, *start, *more]))


def test_model_and_discriminators_are_taken_over(first: Trainer, tiny_run: list[str], tmp_path: Path):
    second = tuned(tiny_run, tmp_path)
    assert second.config.model == first.config.model
    assert second.config.adversary.discriminators == first.config.adversary.discriminators
    for name, weight in first.averaged_codec().state_dict().items():
        torch.testing.assert_close(second.codec.state_dict()[name], weight, rtol=1e-3, atol=1e-4)
    for name, weight in first.adversary.discriminators.state_dict().items():
        torch.testing.assert_close(second.adversary.discriminators.state_dict()[name], weight, rtol=1e-3, atol=1e-4)
    second.train_step(second.sampler.batch(0))
    assert second.usage.counts.sum() > 0  # quantized from the first step on


@pytest.mark.parametrize("settings", [["recipe=stream-cpu"], ["adversary.learning_rate=3e-4"]], ids=str)
def test_discriminators_of_the_box_win_against_a_recipes(settings: list[str]):
    composed = compose(["training.init=stream", *settings])
    assert composed.adversary.discriminators == compose(["adversary=medium"]).adversary.discriminators
    Adversary(composed.adversary, torch.device("cpu")).load_weights(resolve("stream") / DISCRIMINATORS_NAME)


def test_discriminators_that_were_chosen_must_be_those_of_the_model(tmp_path: Path):
    composed = compose(["training.init=stream", "adversary=small", f"training.run={tmp_path}"])
    with pytest.raises(ModelError, match=r"\(leave `adversary` out to take them over\): (lacks|has)"):
        initial_adversary(composed, torch.device("cpu"))


def test_trained_discriminators_join_at_once(first: Trainer, tiny_run: list[str], tmp_path: Path):
    settings = [override for override in tiny_run if "adversarial_start" not in override]
    assert tuned(settings, tmp_path).adversarial_start == 0
    assert Trainer(compose([*settings, f"training.run={tmp_path / 'new'}"])).adversarial_start == ADVERSARIAL_START
    assert tuned(tiny_run, tmp_path).adversarial_start == 6


def test_discriminators_that_are_missing_or_never_join_are_told(first: Trainer, tiny_run: list[str], tmp_path: Path):
    settings = [override for override in tiny_run if "adversarial_start" not in override]
    (tmp_path / "run" / "last" / DISCRIMINATORS_NAME).unlink()  # as in an installed package
    second = tuned(settings, tmp_path, "training.steps=2")
    second.fit()
    log = (second.run / LOG_NAME).read_text()
    assert "are not here, new ones learn from step 20000 on" in log
    assert "none join: they would at step 20000, and training ends at 2; set training.adversarial_start" in log
    assert not surprises(compose(["training.init=stream"]))
    assert compose(["recipe=finetune", "training.init=stream"]).training.adversarial_start == 0


def test_discriminators_of_the_start_that_never_take_part_are_told():
    never = "none join: they would at step 8000, and training ends at 8000; set training.adversarial_start"
    assert surprises(compose(["recipe=stream-cpu", "training.init=stream"])) == [never]
    assert surprises(compose(["recipe=stream-cpu"])) == []  # it says why
    assert surprises(compose(["recipe=finetune-stream"])) == []


def test_the_recipe_for_the_boxed_model_goes_on_as_its_last_phase():
    phase = json.loads((RECIPES / "stream" / "run.json").read_text())[-1]
    config = compose(["recipe=finetune-stream"])
    changed = {line.split()[0] for line in differences(phase, asdict(config))}
    assert changed == {
        *("data.batch_size", "data.window_seconds", "data.workers"),
        *("adversary.learning_rate", "training.learning_rate", "training.steps", "training.decay_steps"),
        *("training.seed", "training.record", "training.validate_every", "training.save_every"),
        "training.adversarial_start",  # null, which is at once, too
        "training.disturbance_weight",  # 9 as the disturbance was counted then is 5 now
    }
    assert (config.training.init, adversarial_start(config)) == ("stream", 0)


def test_the_recipe_weighs_a_relative_commitment_so_that_it_does_not_drown_the_sound(
    first: Trainer, tiny_run: list[str], tmp_path: Path
):
    second = tuned(tiny_run, tmp_path, "recipe=finetune")
    assert second.config.model.quantizer.relative_loss
    scalars = second.train_step(second.sampler.batch(0))
    assert second.commitment_weight * scalars["loss/quantizer"] < scalars["loss/total"] / 2


def test_the_recipe_weighs_an_absolute_commitment_as_published():
    for model in ("simvq-4k", "wavtokenizer-75"):
        assert commitment_weight(compose(["recipe=finetune", f"model={model}", "training.init="])) == 1000
    assert commitment_weight(compose(["recipe=finetune", "training.commitment_weight=3", "training.init=stream"])) == 3


def test_discriminators_that_never_joined_are_not_kept(tiny_run: list[str], tmp_path: Path):
    settings = [override for override in tiny_run if "adversarial_start" not in override]
    spectral = Trainer(compose([*settings, "training.steps=1"]))
    spectral.train_step(spectral.sampler.batch(0))
    spectral.step = 1
    spectral.save_model("last")
    assert not (spectral.run / "last" / DISCRIMINATORS_NAME).exists()
    assert tuned(settings, tmp_path).adversarial_start == ADVERSARIAL_START


def test_discriminators_of_other_weights_do_not_stay_beside_them(tiny_run: list[str]):
    trainer = Trainer(compose([*tiny_run, "training.adversarial_start=1"]))
    for step, is_there in ((2, True), (1, False)):  # back behind where they joined
        trainer.step = step
        directory = trainer.save_model("last")
        there = [(directory / name).exists() for name in (DISCRIMINATORS_NAME, DISCRIMINATORS_CONFIG_NAME)]
        assert there == [is_there] * 2


def test_a_configuration_that_differs_from_the_model_is_refused_by_name(
    first: Trainer, tiny_run: list[str], tmp_path: Path
):
    assert tuned(tiny_run, tmp_path, model=True).codec.config == first.config.model
    with pytest.raises(ConfigError, match=r"model\.decoder\.width was 24 and is 48; leave `model` out"):
        tuned(tiny_run, tmp_path, "model.decoder.width=48", model=True)


@pytest.mark.parametrize(("stored", "quantizer"), [(torch.float16, "simvq"), (torch.float32, "ema")], ids=str)
def test_codes_stay_bit_equal_while_the_decoder_learns(
    tiny_run: list[str], tmp_path: Path, stored: torch.dtype, quantizer: str
):
    first = Trainer(compose([*tiny_run, f"model/quantizer={quantizer}"]))
    first.fit()
    if quantizer == "ema":
        first.codec.quantizer.num_updates.fill_(2**11 + 1)  # no number of 16 bits, which an integer need not be
    weights.save(first.codec, tmp_path / "run" / "last", dtype=stored)  # not the average, which has 16 bits
    trainer = tuned(tiny_run, tmp_path, "training.freeze=[encoder,quantizer]")
    trained = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    assert trained == {id(parameter) for parameter in trainer.codec.decoder.parameters()}
    assert all(name.startswith("decoder.") for name in trainer.ema.shadow)
    before, after = codec.load(tmp_path / "run" / "last"), codec.load(trainer.fit())
    for part in ("encoder", "quantizer"):
        ours, theirs = getattr(before, part).state_dict(), getattr(after, part).state_dict()
        assert all(torch.equal(theirs[name], tensor) for name, tensor in ours.items())
    wav = torch.cat([first.sampler.batch(step).wav[:1] for step in range(8)], dim=-1)
    codes = before.encode(wav)
    assert torch.equal(after.encode(wav), codes)
    assert not torch.equal(after.decode(codes), before.decode(codes))


def test_what_is_frozen_stays_exact_where_a_run_goes_on_from_its_portable_state(
    first: Trainer, tiny_run: list[str], tmp_path: Path
):
    weights.save(first.codec, tmp_path / "run" / "last", dtype=torch.float32)  # not the average, which has 16 bits
    more = "training.freeze=[encoder,quantizer]", "training.portable=true"
    before = tuned(tiny_run, tmp_path, *more)
    before.fit()
    shutil.copytree(tmp_path / "tuned" / "portable", tmp_path / "elsewhere" / "portable")
    after = tuned(tiny_run, tmp_path, *more, f"training.run={tmp_path / 'elsewhere'}")
    assert after.step == before.step
    for part in ("encoder", "quantizer"):
        theirs = getattr(after.codec, part).state_dict()
        assert all(torch.equal(theirs[name], value) for name, value in getattr(before.codec, part).state_dict().items())


def test_freezing_everything_that_learns_is_refused(tiny_run: list[str], tmp_path: Path):
    Trainer(compose([*tiny_run, "model/quantizer=ema"])).save_model("last")
    with pytest.raises(ConfigError, match=r"training\.freeze \[encoder, decoder\] leaves nothing to train"):
        tuned(tiny_run, tmp_path, "training.freeze=[encoder,decoder]")


def test_frozen_parts_cost_no_optimizer_state_and_resume(first: Trainer, tiny_run: list[str], tmp_path: Path):
    freeze = "training.freeze=[encoder,quantizer]"
    tuned(tiny_run, tmp_path, freeze).fit()
    parts, _ = load_state(tmp_path / "tuned" / STATE_NAME)
    num_states = len({key.split(".")[0] for key in parts["optimizer"]})
    assert num_states == len(list(first.codec.decoder.parameters()))
    assert tuned(tiny_run, tmp_path, freeze).step == 12
    with pytest.raises(ConfigError, match=r"training\.freeze was \['encoder', 'quantizer'\] and is \[\]"):
        tuned(tiny_run, tmp_path)
