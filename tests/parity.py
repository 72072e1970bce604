"""Weights by arithmetic: the fill rule of ../shared/parity, and where its expected tensors lie.

Every tensor of a published checkpoint is made from its key and shape alone, so tests can load "the published network"
without a download. The rule is the one of ../shared/parity/README.md; this is an independent reading of it.

    python tests/parity.py wavtokenizer-75 CHECKPOINT

writes such a checkpoint, which `codec import` reads.
"""

import gzip
import json
import sys
import zlib
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

PARITY = Path(__file__).resolve().parents[2] / "shared" / "parity"
LAYOUT = json.loads(gzip.decompress((Path(__file__).parent / "data" / "published_keys.json.gz").read_bytes()))
"""Kind of checkpoint -> every key -> role, shape with about a tenth of the published channels, and a note."""
MODELS = ("wavtokenizer-75", "wavtokenizer-40", "simvq-4k", "simvq-8k")
needs_parity = pytest.mark.skipif(not PARITY.is_dir(), reason="../shared/parity, the reference tensors, is not here")


def unit_variance(seed: str, num_values: int) -> np.ndarray:
    """`num_values` float64 of zero mean and unit variance, the same for the same seed everywhere."""
    z = np.arange(1, num_values + 1, dtype=np.uint64)
    z += np.uint64(zlib.crc32(seed.encode()) << 32)
    z *= np.uint64(0x9E3779B97F4A7C15)
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    x = (z >> np.uint64(11)).astype(np.float64)
    x *= 2.0**-53
    x *= 2
    x -= 1
    x *= np.sqrt(3.0)
    return x


def offset_and_scale(key: str, shape: list[int]) -> tuple[float, float]:
    """Of the values of the tensor `key`; the first rule that fits counts."""
    last = key.rsplit(".", 1)[-1]
    if last == "inited":
        return 1, 0
    if last == "cluster_size":
        return 1, 0.1
    if key.endswith("encoder.model.0.conv.conv.weight_g"):
        return 40, 4
    if last == "weight_g":
        return 1, 0.1
    if last == "weight_v":
        return 0, 1
    if last.startswith("bias"):
        return 0, 0.05
    if last == "gamma":
        return 0.5, 0.1
    if last in ("embed", "embed_avg") or key.endswith("quantize.embedding.weight"):
        return 0, 1
    if ".lstm." in key:
        return 0, 2 / np.sqrt(shape[1])
    if key.endswith("norm.scale.weight"):
        return 1, 0.1
    if key.endswith("norm.shift.weight"):
        return 0, 0.1
    if len(shape) == 1:
        return 1, 0.1
    return 0, 1 / np.sqrt(np.prod(shape[1:]))


def fill(key: str, shape: list[int], averaged: bool = False) -> np.ndarray:
    """The float32 tensor `key`; `averaged`: the weight-average copy that SimVQ keeps of it. Not to be written to."""
    return _fill(key, tuple(shape), averaged)


@lru_cache(maxsize=256)  # the models share most of their keys
def _fill(key: str, shape: tuple[int, ...], averaged: bool) -> np.ndarray:
    offset, scale = offset_and_scale(key, list(shape))
    x = unit_variance("model_ema." + key if averaged else key, int(np.prod(shape)))
    x *= scale
    x += offset
    return x.astype(np.float32).reshape(shape)


def kept(key: str, shape: list[int]) -> np.ndarray:
    """The tensors that are not filled: windows, the mel filter bank and the state of the weight average."""
    if key.endswith("window"):
        return hann(shape[0])
    if key.endswith("fb"):
        return mel_filters()
    return {"model_ema.decay": np.array(0.999, np.float32), "model_ema.num_updates": np.array(-1, np.int32)}[key]


def hann(length: int) -> np.ndarray:
    """Periodic Hann window."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)).astype(np.float32)


def mel_filters() -> np.ndarray:
    """HTK mel triangles, 513 bins of 0 .. 12000 Hz x 100 bands."""
    bins = np.linspace(0, 12000, 513)
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 12000 / 700), 102) / 2595) - 1)
    rise = (bins[:, None] - edges[:-2]) / np.diff(edges)[:-1]
    fall = (edges[2:] - bins[:, None]) / np.diff(edges)[1:]
    return np.maximum(0, np.minimum(rise, fall)).astype(np.float32)


def tensors(model: str, *roles: str) -> dict[str, np.ndarray]:
    """The filled tensors of a published checkpoint that have one of these roles, by key."""
    return {
        key: fill(entry.get("ema_of", key), entry["shape"], averaged="ema_of" in entry)
        for key, entry in keys(model).items()
        if entry["role"] in roles
    }


@cache
def keys(model: str) -> dict[str, dict[str, Any]]:
    """What is known of every key of a published checkpoint, in stored order."""
    return json.loads((PARITY / model / "keys.json").read_text())["keys"]


@cache
def expected(model: str) -> dict[str, np.ndarray]:
    """The reference outputs of a model."""
    with np.load(PARITY / model / "expected.npz") as arrays:
        return dict(arrays)


@cache
def speech(name: str) -> np.ndarray:
    """A clip of real speech, (T,) float32 at 24 kHz; `name` is long or short."""
    with np.load(PARITY / "inputs.npz") as arrays:
        return arrays[name]


def write_checkpoint(model: str, path: str) -> None:
    """Write a checkpoint with every key of the published one."""
    state = {}
    for key, entry in keys(model).items():
        source, shape = entry.get("ema_of") or entry.get("same_tensor_as") or key, entry["shape"]
        is_kept = entry["rule"] == "kept"
        state[key] = kept(key, shape) if is_kept else fill(source, shape, averaged="ema_of" in entry)
    torch.save({"state_dict": {key: torch.from_numpy(value.copy()) for key, value in state.items()}}, path)


if __name__ == "__main__":
    write_checkpoint(*sys.argv[1:])
