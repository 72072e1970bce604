"""Model directories: `config.json`, `model.safetensors` and a card, read and written without pickle.

A model is named by the `fingerprint` of what defines its codes, so that codes made with other weights are recognised.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from codec.digests import sha256
from codec.errors import ConfigError, ModelError, first_line
from codec.input import read_json
from codec.model.catalogue import CARD_NAME, CONFIG_NAME, WEIGHTS_NAME, fingerprint_of, resolve
from codec.model.codec import Codec, CodecConfig
from codec.output import check_path, open_output, write_json, write_text


@torch.inference_mode(False)  # or it could neither be trained nor refine codes
def load(model: str | os.PathLike[str] = "stream", device: str | torch.device = "cpu") -> Codec:
    """A trained model in eval mode.

    Several threads may share it, but a `StreamEncoder` or `StreamDecoder` serves one caller at a time. A process that
    is forked after the model was used may hang in it: fork before, or start processes with "spawn".

    Args:
        model: name of a boxed model, a model directory, or a Hugging Face Hub id (`owner/name`).
        device: where to put it: "cpu", "cuda", "mps", or "auto", see `choose_device`.

    Raises:
        ModelError: unknown name, missing or damaged files, weights that do not fit the configuration, are not finite,
            or were replaced while they were read.
        ConfigError: there is no such device.
        OSError: a file cannot be read.
    """
    directory = resolve(model)
    config_path, weights_path = directory / CONFIG_NAME, directory / WEIGHTS_NAME
    try:
        values = read_json(config_path)
        codec = blank(CodecConfig.from_dict(values))
    except (ConfigError, ValueError) as error:
        raise ModelError(f"{config_path}: {error}") from error
    except RuntimeError as error:
        raise ModelError(f"{config_path}: no model of these sizes can be made here ({error})") from error
    sum_of_weights = sha256(weights_path)
    tensors = read_tensors(weights_path)
    if sha256(weights_path) != sum_of_weights:  # or they would be named as those that came later
        raise ModelError(f"{weights_path}: was replaced while it was read, as by training that goes on; load it again")
    check_fit(codec.state_dict(), tensors, f"{weights_path}: does not fit its {CONFIG_NAME}")
    codec.load_state_dict(tensors)
    for name, tensor in codec.state_dict().items():
        if not tensor.sum().isfinite():  # a tenth of the time that a look at every value takes
            raise ModelError(f"{weights_path}: {name} has values that are not finite; take another copy or checkpoint")
    # Of the file as it is: a setting added later, with its default, must not rename the models of today.
    codec.fingerprint = fingerprint_of(values, sum_of_weights)
    return codec.to(choose_device(device)).eval()


def blank(config: CodecConfig) -> Codec:
    """A codec on the CPU whose weights are whatever lay in memory; for those who load its state right afterwards.

    Drawing random numbers for tens of millions of weights would take longer than everything else.
    """
    with torch.device("cpu"), _Undrawn():  # whatever torch's default device is
        return Codec(config).float()


def save(codec: Codec, directory: str | os.PathLike[str], card: str = "", dtype: torch.dtype | None = None) -> None:
    """Write a model directory; what is there of the same names is replaced.

    Args:
        codec: the model.
        directory: made where it is missing.
        card: text of the model card, Markdown.
        dtype: of the stored weights; None takes float16 where that changes none of them, as in a model from the box,
            else float32. The loaded model is float32 in any case. Another type than None takes changes the
            fingerprint: codes made before are then decoded only with `force`.

    Raises:
        ConfigError: `dtype` is not floating-point.
        ModelError: parts of the model have been replaced, so its weights are not those that its configuration tells.
        CodecError: no directory can have this name.
        OSError: the directory cannot be made or written.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise ConfigError(f"weights must be stored as floating-point numbers, such as torch.float16, got {dtype}")
    check_path(directory)
    foreign = sorted(set(codec.state_dict()) ^ set(blank(codec.config).state_dict()))
    if foreign:
        raise ModelError(
            f"a model whose parts were replaced cannot be saved ({foreign[0]}); compile a part in place, as in "
            "model.decoder.compile()"
        )
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with open_output(directory / WEIGHTS_NAME, overwrite=True) as stream:
        stream.write(_stored(codec, dtype))
    write_json(directory / CONFIG_NAME, codec.config.to_dict())
    if card:
        write_text(directory / CARD_NAME, card)


def _stored(codec: Codec, dtype: torch.dtype | None = None) -> bytes:
    """The weights as `save` writes them."""
    state = codec.state_dict()
    if dtype is None:
        numbers = [tensor for tensor in state.values() if tensor.is_floating_point()]
        fits = all(torch.equal(tensor.half().to(tensor.dtype), tensor) for tensor in numbers)
        dtype = torch.float16 if fits else torch.float32
    return safetensors.torch.save(
        {
            name: tensor.to("cpu", dtype if tensor.is_floating_point() else None).contiguous()
            for name, tensor in state.items()
        }
    )


def fingerprint(codec: Codec) -> str:
    """The fingerprint a model would have if it were saved as it is: 16 hex digits."""
    return fingerprint_of(codec.config.to_dict(), hashlib.sha256(_stored(codec)).hexdigest())


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Raises:
        ModelError: the file is missing, cut off, or something else.
    """
    try:
        return safetensors.torch.load_file(path)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (safetensors.SafetensorError, TypeError, ValueError, OverflowError) as error:  # of shapes that none has
        reason = first_line(error)
        raise ModelError(f"{path}: is not a whole safetensors file ({reason}); copy or download it again") from error


def check_fit(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], complaint: str) -> None:
    """Refuse weights that are not those of a network, before anything is copied.

    Args:
        expected: the state of the network.
        found: what is to be loaded.
        complaint: begins the sentence, with the file; the first weight that is missing, surplus, of another shape
            or no real number where the network has one (or the other way round) ends it.

    Raises:
        ModelError: they do not fit.
    """
    missing, surplus = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    common = sorted(set(expected) & set(found))
    misshapen = [name for name in common if expected[name].shape != found[name].shape]
    mistyped = [name for name in common if expected[name].is_floating_point() != found[name].is_floating_point()]
    for names, what in (
        (missing, "lacks"),
        (surplus, "has unknown"),
        (misshapen, "has another shape for"),
        (mistyped, "has another kind of numbers for"),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ModelError(f"{complaint}: {what} {names[0]}{more}")


def choose_device(device: str | torch.device) -> torch.device:
    """The named device, or for "auto" a CUDA GPU where there is one, else the CPU. "mps" is an Apple GPU.

    Raises:
        ConfigError: unknown, or not available on this machine.
    """
    device = str(device)
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return torch.device("cuda" if available["cuda"] else "cpu")
    if not available.get(device.split(":")[0], False):
        usable = ", ".join(name for name, is_available in available.items() if is_available)
        raise ConfigError(f"device {device!r} is not available here, choose auto or one of: {usable}")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device {device!r} is none; one of several is named as cuda:1") from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {device!r} is not available here, the last is cuda:{torch.cuda.device_count() - 1}")
    return chosen


_DRAWING = {Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_}


class _Undrawn(TorchFunctionMode):
    """Within, nothing is drawn. What is computed, like windows and filter banks, is as always."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.rand, torch.randn):
            return torch.empty(*args, **kwargs)
        if func in _DRAWING:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)
