"""Settings of a training run, composed by hydra from `configs/` and `key=value` overrides into plain dataclasses.

The only user of hydra. Below it there are dataclasses that have checked themselves, never a DictConfig.
"""

import json
import re
from dataclasses import dataclass, field, fields
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from codec.errors import ConfigError
from codec.model import catalogue, weights
from codec.model.codec import DECODERS, ENCODERS, QUANTIZERS, CodecConfig
from codec.training.adversary import AdversaryConfig
from codec.training.data import DataConfig
from codec.training.discriminators import DiscriminatorsConfig
from codec.training.losses import MelLossConfig
from codec.training.settings import DISCRIMINATORS_CONFIG_NAME, Config, TrainingConfig


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
        overrides: hydra overrides, for example `["model=stream", "training.steps=100"]`. With `training.init`, model
            and discriminators are configured as the initial ones, where nothing else was chosen.

    Raises:
        ConfigError: unknown or ill-typed settings, values out of range, unknown variants; all of them in one message.
        ModelError: `training.init` cannot be used.
    """
    composed = _compose(overrides)
    known = {setting.name for setting in fields(Config)}
    mistakes = [f"{name}: is not a setting" for name in sorted(map(str, composed)) if name not in known]
    parts: dict[str, Any] = {}
    for name in ("data", "mel", "adversary", "training", "model"):
        try:
            parts[name] = _read_model(composed.model) if name == "model" else OmegaConf.to_object(composed[name])
        except (ConfigError, OmegaConfBaseException) as error:
            mistakes.append(_one_sentence(error))
    if mistakes:
        raise ConfigError("; ".join(mistakes))
    if parts["training"].init:
        _take_over(parts, chosen={_key(override).split(".")[0].split("/")[0] for override in overrides})
    return Config(**parts)


def _take_over(parts: dict[str, Any], chosen: set[str]) -> None:
    """Configure model and discriminators as those that training starts from, where nothing else was chosen."""
    initial = parts["training"].init
    if "model" not in chosen and parts["model"] == CodecConfig():
        parts["model"] = weights.load(initial).config
    path = catalogue.resolve(initial) / DISCRIMINATORS_CONFIG_NAME
    if "adversary" not in chosen and parts["adversary"].discriminators == DiscriminatorsConfig() and path.is_file():
        values = json.loads(path.read_text(encoding="utf-8"))
        parts["adversary"].discriminators = OmegaConf.to_object(
            OmegaConf.merge(OmegaConf.structured(DiscriminatorsConfig), values)
        )


def _compose(overrides: list[str]) -> DictConfig:
    """All files and overrides as hydra puts them together; it stops at the first mistake, so the others are sought."""
    try:
        return _hydra(overrides)
    except (HydraException, OmegaConfBaseException) as error:
        groups = [override for override in overrides if "." not in _key(override)]
        mistakes = []
        for override in overrides:
            try:
                _hydra([override] if override in groups else [*groups, override])
            except (HydraException, OmegaConfBaseException) as other:
                mistakes.append(_one_sentence(other))
        unique = dict.fromkeys(mistakes or [_one_sentence(error)])
        raise ConfigError("; ".join(unique)) from error


def _hydra(overrides: list[str]) -> DictConfig:
    with initialize_config_module("codec.configs", version_base="1.3"):
        return hydra_compose("config", overrides=overrides)


def _key(override: str) -> str:
    """`model.encoder.width` of `+model.encoder.width=3`."""
    return override.split("=", 1)[0].lstrip("+~")


def _read_model(values: Any) -> CodecConfig:
    return CodecConfig.from_dict(OmegaConf.to_container(values, resolve=True))  # type: ignore[arg-type]


def _one_sentence(error: Exception) -> str:
    """Hydra explains itself over many lines and wraps what OmegaConf says; the first line of the cause is the point."""
    if isinstance(error, ConfigError):
        return str(error)
    if isinstance(error.__cause__, ConfigError):
        return str(error.__cause__)
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    key = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("full_key:")), "")
    sentence = re.sub(r"\s+", " ", lines[0]).rstrip(".") if lines else type(cause).__name__
    return f"{key}: {sentence}" if key and key not in sentence else sentence
