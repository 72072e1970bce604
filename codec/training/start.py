"""What training starts from: new networks, or those of a model that is given, with its discriminators."""

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


def initial_codec(config: Config) -> Codec:
    """The codec of `training.init`, or a new one.

    Raises:
        ConfigError: `training.init` has another configuration than `model`.
        ModelError: `training.init` cannot be loaded.
    """
    if not config.training.init:
        return Codec(config.model)
    codec = weights.load(config.training.init)
    if changes := differences(codec.config.to_dict(), config.model.to_dict(), "model"):
        raise ConfigError(
            f"training.init: {config.training.init} has another configuration, {'; '.join(changes)}; "
            "leave `model` out to take it over"
        )
    return codec


def initial_adversary(config: Config, device: torch.device) -> tuple[Adversary, int]:
    """The discriminators, those of `training.init` where it has some, and the step at which they join.

    Raises:
        ModelError: those of `training.init` have other settings than `adversary`.
    """
    adversary = Adversary(config.adversary, device, config.training.record)
    if config.training.init:
        path = resolve(config.training.init, with_discriminators=True) / DISCRIMINATORS_NAME
        if path.is_file():
            adversary.load_weights(path)
    start = config.training.adversarial_start
    if start is None:
        start = 0 if adversary.has_learned else ADVERSARIAL_START
    return adversary, start


def commitment_weight(config: Config) -> float:
    """The weight of the quantizer's loss; where none is set, the published one if it is absolute, else ours."""
    if config.training.commitment_weight is not None:
        return config.training.commitment_weight
    return 20.0 if getattr(config.model.quantizer, "relative_loss", True) else 1000.0


def _has_lost_some(directory: Path) -> bool:
    """Whether a model's discriminators are described but not there, as in an installed package."""
    return (directory / DISCRIMINATORS_CONFIG_NAME).is_file() and not (directory / DISCRIMINATORS_NAME).is_file()


def surprises(config: Config, adversarial_start: int) -> list[str]:
    """What a user may not expect of the discriminators that `initial_adversary` gives."""
    init, found = config.training.init, []
    if init and _has_lost_some(resolve(init, with_discriminators=True)):
        advice = "a package installed with pip install -e has those of the boxed model"
        found.append(f"those of {init} are not here, new ones learn from step {adversarial_start} on; {advice}")
    if config.training.adversarial_start is None and adversarial_start >= config.training.steps:
        ends = f"they would at step {adversarial_start}, and training ends at {config.training.steps}"
        found.append(f"none join: {ends}; set training.adversarial_start")
    return found
