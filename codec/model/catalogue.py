"""Where models lie and what they are called; no weights are read into tensors here, so torch is not needed."""

import hashlib
import json
import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from codec.digests import sha256
from codec.errors import ModelError, sentence
from codec.input import read_json
from codec.rates import Rates

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
CARD_NAME = "README.md"
DISCRIMINATORS_NAME = "discriminators.safetensors"
DISCRIMINATORS_CONFIG_NAME = "discriminators.json"
"""With the weights of the discriminators, so that training can go on with them."""

RETIRED = {
    "b891c27d3c6c50f2": "0.1",
    "42b473f83318d651": "0.2",
    "6cdf1bff519db5f5": "0.3",
    "8ca1def6241c16c9": "0.4",
    "f3a1312cf878f377": "0.5",
    "47c20a6b41c90f55": "0.6",
    "f0712f6728d6cc7f": "0.7",
    "2fdb5c4521d7758d": "0.8",
    "5b72ac96d6c6f871": "0.9",
}
"""Fingerprint of each boxed model that a better one has replaced -> the last version of this package that had it."""


@dataclass(frozen=True)
class ModelInfo(Rates):
    """What a model directory says of itself, without its weights being understood."""

    name: str
    directory: Path
    fingerprint: str
    num_bytes: int  # of the weights
    sample_rate: int  # Hz
    hop_length: int  # samples per frame
    codebook_size: int  # K
    config: dict[str, Any]


def describe(model: str | os.PathLike[str]) -> ModelInfo:
    """Name, rates and size of a model given as for `resolve`.

    Raises:
        ModelError: there is no such model, or its configuration is not one.
    """
    directory = resolve(model)
    hexadecimal, path = fingerprint(directory), directory / CONFIG_NAME
    config = read_json(path)
    try:
        json.dumps(config, allow_nan=False)
    except ValueError as error:
        raise ModelError(f"{path}: has a number that is not finite") from error
    try:
        rates = config["sample_rate"], config["decoder"]["hop_length"], config["quantizer"]["codebook_size"]
    except (KeyError, TypeError) as error:
        needed = "sample_rate, decoder.hop_length and quantizer.codebook_size"
        raise ModelError(f"{path}: is not a model's configuration, which has {needed}") from error
    if any(type(rate) is not int or not 1 <= rate < 1 << 32 for rate in rates):
        raise ModelError(f"{path}: sample rate, hop length and codebook size must be integers from 1 to 2^32 - 1")
    return ModelInfo(name_of(model), directory, hexadecimal, (directory / WEIGHTS_NAME).stat().st_size, *rates, config)


def name_of(model: str | os.PathLike[str]) -> str:
    """What people call a model given as for `resolve`: a run's `last` and `best` by the run too, "mine/best"."""
    if not Path(model).is_dir():
        return Path(model).name
    directory = Path(model).resolve()
    return "/".join(directory.parts[-2:]) if directory.name in ("last", "best") else directory.name


def boxed_models() -> dict[str, Path]:
    """Name -> directory of the models that come with the package."""
    root = Path(str(resources.files("codec"))) / "pretrained"
    return {path.parent.name: path.parent for path in sorted(root.glob(f"*/{CONFIG_NAME}"))}


def resolve(model: str | os.PathLike[str], *, with_discriminators: bool = False) -> Path:
    """The directory of a model given as boxed name, directory, or Hugging Face Hub id (`owner/name`).

    Args:
        model: its name.
        with_discriminators: fetch those from the Hub too, where it has some, as only training needs them.

    Raises:
        ModelError: there is no such model, or the directory lacks a file.
    """
    if not isinstance(model, str | os.PathLike):
        raise ModelError(f"the name or directory of a model is meant, got {type(model).__name__}")
    model = os.fspath(model)
    boxed = boxed_models()
    if model in boxed:
        return boxed[model]
    directory = Path(model)
    if directory.is_dir():
        for name in (CONFIG_NAME, WEIGHTS_NAME):
            if not (directory / name).is_file():
                last = directory / "last"
                advice = f"; {last} is one" if (last / CONFIG_NAME).is_file() else ""
                raise ModelError(f"{directory}: is not a model directory, it has no {name}{advice}")
        return directory
    if directory.exists():
        raise ModelError(f"{directory}: is a file; name the directory that holds {CONFIG_NAME} and {WEIGHTS_NAME}")
    if model.count("/") == 1 and not model.startswith((".", "/", "~")) and not directory.parent.is_dir():
        return _download(model, with_discriminators)
    known = ", ".join(boxed) or "none"
    raise ModelError(f"unknown model {model!r}; boxed models: {known}; or give a directory or a Hub id owner/name")


def fingerprint_of(config: dict[str, Any], sum_of_weights: str) -> str:
    """16 hex digits that change with any setting and any bit of the weights file, of which the SHA-256 is given."""
    canonical = json.dumps(config, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.sha256(hashlib.sha256(canonical).digest() + bytes.fromhex(sum_of_weights)).hexdigest()[:16]


def fingerprint(directory: Path) -> str:
    """Fingerprint of a model directory.

    Raises:
        ModelError: its configuration is not JSON.
    """
    try:
        config = read_json(directory / CONFIG_NAME)
    except ValueError as error:
        raise ModelError(f"{directory / CONFIG_NAME}: is not JSON ({error})") from error
    return fingerprint_of(config, sha256(directory / WEIGHTS_NAME))


def _download(hub_id: str, with_discriminators: bool) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ModelError(
            f"{hub_id}: no such directory; to load it from the Hub, pip install huggingface_hub"
        ) from error
    names = [CONFIG_NAME, WEIGHTS_NAME, CARD_NAME]
    if with_discriminators:
        names += [DISCRIMINATORS_CONFIG_NAME, DISCRIMINATORS_NAME]
    try:
        return Path(snapshot_download(hub_id, allow_patterns=names))
    except Exception as error:  # the Hub client raises a dozen unrelated types
        raise ModelError(
            f"{hub_id}: no such directory, and it cannot be had from the Hub ({sentence(error)})"
        ) from error
