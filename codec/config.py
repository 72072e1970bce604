"""Settings of a training run, composed by hydra from `configs/` and `key=value` overrides into plain dataclasses.

The only user of hydra. Below it there are dataclasses that have checked themselves, never a DictConfig.
"""

import re
from dataclasses import dataclass, field, fields
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from codec.errors import ConfigError
from codec.model.codec import DECODERS, ENCODERS, QUANTIZERS, CodecConfig
from codec.training.adversary import AdversaryConfig
from codec.training.data import DataConfig
from codec.training.losses import MelLossConfig
from codec.training.trainer import Config, TrainingConfig


@dataclass
class Schema:
    """The root that hydra checks names and types against; `model` is checked by `CodecConfig.from_dict`."""

    model: Any = MISSING
    data: DataConfig = field(default_factory=DataConfig)
    mel: MelLossConfig = field(default_factory=MelLossConfig)
    adversary: AdversaryConfig = field(default_factory=AdversaryConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)


def _register() -> None:
    store = ConfigStore.instance()
    store.store(name="schema", node=Schema)
    for group, kinds in (("encoder", ENCODERS), ("quantizer", QUANTIZERS), ("decoder", DECODERS)):
        for kind, (config_class, _) in kinds.items():
            store.store(group=f"model/{group}", name=kind, node=config_class)


_register()


def compose(overrides: list[str]) -> Config:
    """The settings of a run.

    Args:
        overrides: hydra overrides, for example `["model=stream", "training.steps=100"]`.

    Raises:
        ConfigError: unknown or ill-typed setting, value out of range, unknown variant.
    """
    try:
        with initialize_config_module("codec.configs", version_base="1.3"):
            composed = hydra_compose("config", overrides=overrides)
        unknown = sorted(set(composed) - {setting.name for setting in fields(Config)})
        if unknown:
            raise ConfigError(f"{unknown[0]}: is not a setting")
        parts = {name: OmegaConf.to_object(composed[name]) for name in ("data", "mel", "adversary", "training")}
        model = CodecConfig.from_dict(OmegaConf.to_container(composed.model, resolve=True))  # type: ignore[arg-type]
    except (HydraException, OmegaConfBaseException) as error:
        if isinstance(error.__cause__, ConfigError):
            raise error.__cause__ from None
        raise ConfigError(_one_sentence(error)) from error
    return Config(model=model, **parts)  # type: ignore[arg-type]


def _one_sentence(error: Exception) -> str:
    """Hydra explains itself over many lines and wraps what OmegaConf says; the first line of the cause is the point."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    key = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("full_key:")), "")
    sentence = re.sub(r"\s+", " ", lines[0]).rstrip(".") if lines else type(cause).__name__
    return f"{key}: {sentence}" if key and key not in sentence else sentence
