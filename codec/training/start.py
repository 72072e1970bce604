"""What training starts from: new networks, or those of a model that is given, with its discriminators."""

import functools
from dataclasses import replace
from pathlib import Path

import torch

from codec.errors import ConfigError
from codec.model import weights
from codec.model.catalogue import DISCRIMINATORS_CONFIG_NAME, DISCRIMINATORS_NAME, resolve
from codec.model.codec import Codec
from codec.training.adversary import Adversary
from codec.training.settings import Config, differences

ADVERSARIAL_START = 20_000
"""When discriminators join that have learned nothing yet: the codec must speak first."""


@functools.cache
def initial_directory(init: str) -> Path:
    """The directory of `training.init`. The Hub is asked once, so that all that is taken from it is of one commit.

    Raises:
        ModelError: there is no such model.
    """
    return resolve(init, with_discriminators=True)


def initial_codec(config: Config) -> Codec:
    """The codec of `training.init`, or a new one.

    Raises:
        ConfigError: `training.init` has another configuration than `model`.
        ModelError: `training.init` cannot be loaded.
    """
    if not config.training.init:
        return Codec(config.model)
    codec = weights.load(initial_directory(config.training.init))
    if changes := differences(codec.config.to_dict(), config.model.to_dict(), "model"):
        raise ConfigError(
            f"training.init: {config.training.init} has another configuration, {'; '.join(changes)}; "
            "leave `model` out to take it over"
        )
    return codec


def initial_adversary(config: Config, device: torch.device) -> Adversary:
    """The discriminators, those of `training.init` where it has some.

    Raises:
        ModelError: those of `training.init` have other settings than `adversary`.
    """
    adversary = Adversary(config.adversary, device, config.training.record)
    if path := _discriminators(config):
        adversary.load_weights(path)
    return adversary


def _discriminators(config: Config) -> Path | None:
    """The weights of those of `training.init`, where it has some."""
    if not config.training.init:
        return None
    path = initial_directory(config.training.init) / DISCRIMINATORS_NAME
    return path if path.is_file() else None


def adversarial_start(config: Config) -> int:
    """The step at which discriminators join; where none is set, at once if they are those of `training.init`."""
    if config.training.adversarial_start is not None:
        return config.training.adversarial_start
    return 0 if _discriminators(config) else ADVERSARIAL_START


def commitment_weight(config: Config) -> float:
    """The weight of the quantizer's loss; where none is set, the published one if it is absolute, else ours."""
    if config.training.commitment_weight is not None:
        return config.training.commitment_weight
    return 20.0 if getattr(config.model.quantizer, "relative_loss", True) else 1000.0


def derived(config: Config) -> Config:
    """The settings, with values for those that are null because others decide them."""
    training = replace(
        config.training, adversarial_start=adversarial_start(config), commitment_weight=commitment_weight(config)
    )
    return replace(config, training=training)


def _has_lost_some(directory: Path) -> bool:
    """Whether a model's discriminators are described but not there, as in an installed package."""
    return (directory / DISCRIMINATORS_CONFIG_NAME).is_file() and not (directory / DISCRIMINATORS_NAME).is_file()


def surprises(config: Config) -> list[str]:
    """What a user may not expect of the discriminators."""
    init, start, found = config.training.init, adversarial_start(config), []
    if init and _has_lost_some(initial_directory(init)):
        advice = "a package installed with pip install -e (not strict) has those of the boxed model"
        found.append(f"those of {init} are not here, new ones learn from step {start} on; {advice}")
    are_awaited = config.training.adversarial_start is None or _discriminators(config) is not None
    if are_awaited and start >= config.training.steps:
        ends = f"they would at step {start}, and training ends at {config.training.steps}"
        found.append(f"none join: {ends}; set training.adversarial_start")
    return found
