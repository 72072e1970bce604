"""What training starts from: new networks, or those of a model that is given, with its discriminators."""

import torch

from codec.errors import ConfigError
from codec.model import weights
from codec.model.catalogue import resolve
from codec.model.codec import Codec
from codec.training.adversary import Adversary
from codec.training.settings import Config, differences

DISCRIMINATORS_NAME = "discriminators.safetensors"
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
    path = resolve(config.training.init) / DISCRIMINATORS_NAME if config.training.init else None
    if path is not None and path.is_file():
        adversary.load_weights(path)
    start = config.training.adversarial_start
    if start is None:
        start = 0 if adversary.has_learned else ADVERSARIAL_START
    return adversary, start
