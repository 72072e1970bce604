"""Tensors of a foreign checkpoint, and nothing else of it.

Some published checkpoints carry the objects of their training program beside the weights. Here such a file is not
unpickled: its instructions are followed symbolically, by a machine that knows dictionaries, lists, numbers, text and
where tensors lie. Whatever else the file names stays an inert mark, so that nothing of it can run.
"""

import math
import pickletools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codec.errors import ModelError
from codec.model import weights

_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_CONTAINERS: dict[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": list,
}


def read_tensors(path: Path, is_wanted: Callable[[str], bool] = lambda name: True) -> dict[str, Tensor]:
    """The floating point tensors of a state dict.

    Args:
        path: a safetensors file, or a file of `torch.save` (the zip format, PyTorch 1.6 or newer) with a state dict at
            the top or under "state_dict".
        is_wanted: only tensors whose name passes are read.

    Raises:
        ModelError: missing, something else, damaged, or without such tensors.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such file")
    try:
        tensors = weights.read_tensors(path) if path.suffix == ".safetensors" else _read_zip(path, is_wanted)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or error})") from error
    tensors = {name: tensor for name, tensor in tensors.items() if is_wanted(name)}
    if not tensors:
        raise ModelError(f"{path}: holds none of the weights that are needed")
    return tensors


def _read_zip(path: Path, is_wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"]]
            if len(pickles) != 1 or any("/code/" in name for name in archive.namelist()):
                raise ModelError(f"{path}: is not a state dict (a TorchScript program, or another archive)")
            found = follow(archive.read(pickles[0]))
            if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
                found = found["state_dict"]
            if not isinstance(found, dict):
                raise ModelError(f"{path}: is not a state dict, but a {type(found).__name__}")
            folder = pickles[0].split("/")[0]
            return {
                name: _tensor(archive, f"{folder}/data/{place.storage.key}", place)
                for name, place in found.items()
                if isinstance(name, str) and isinstance(place, Place) and is_wanted(name)
            }
    except zipfile.BadZipFile as error:
        raise ModelError(f"{path}: is damaged, or not a checkpoint that PyTorch 1.6 or newer has written") from error
    except (ValueError, IndexError, KeyError, TypeError, RuntimeError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{path}: is damaged ({type(error).__name__}: {error})") from error


def _tensor(archive: zipfile.ZipFile, name: str, place: "Place") -> Tensor:
    data = bytearray(archive.read(name))
    flat = torch.frombuffer(data, dtype=place.storage.dtype)
    return torch.as_strided(flat, place.size, place.stride, place.offset).clone()


# ---------------------------------------------------------------------------------------------- a pickle, symbolically


@dataclass(frozen=True)
class Name:
    """Something the file would import."""

    module: str
    name: str


@dataclass(frozen=True)
class Inert:
    """Something the file would build."""


@dataclass(frozen=True)
class Storage:
    """Bytes of one or more tensors."""

    key: str
    dtype: torch.dtype


@dataclass(frozen=True)
class Place:
    """A tensor in its storage."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


_MARK = object()


def follow(data: bytes) -> Any:
    """What a pickle describes, made of plain values, `Place`s of tensors and inert marks.

    Raises:
        ValueError: it is damaged, or uses an instruction that checkpoints do not use.
    """
    stack: list[Any] = []
    memo: dict[Any, Any] = {}

    def pop_to_mark() -> list[Any]:
        items = []
        while (item := stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name in ("PROTO", "FRAME"):
            continue
        if name == "STOP":
            return stack.pop()
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _CONTAINERS:
            stack.append(_CONTAINERS[name]())
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "POP":
            stack.pop()
        elif name == "POP_MARK":
            pop_to_mark()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "GLOBAL":
            stack.append(Name(*str(argument).split(" ", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(Name(module, attribute))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "TUPLE":
            stack.append(tuple(pop_to_mark()))
        elif name in ("LIST", "FROZENSET"):
            stack.append(pop_to_mark())
        elif name == "DICT":
            items = pop_to_mark()
            stack.append({})
            _fill(stack[-1], items)
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            items = [stack.pop()] if name == "APPEND" else pop_to_mark()
            if isinstance(stack[-1], list):
                stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(), stack.pop()][::-1] if name == "SETITEM" else pop_to_mark()
            _fill(stack[-1], items)
        elif name == "BUILD":
            stack.pop()
        elif name in ("BINPERSID", "PERSID"):
            stack.append(_storage(stack.pop()))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = stack.pop(), stack.pop()
            stack.append(_call(function, arguments))
        elif name == "NEWOBJ_EX":
            del stack[-3:]
            stack.append(Inert())
        elif name in ("OBJ", "INST"):
            pop_to_mark()
            stack.append(Inert())
        elif argument is not None:  # a number or a text
            stack.append(argument)
        else:
            raise ValueError(f"unexpected instruction {name}")
    raise ValueError("the pickle has no end")


def _fill(target: Any, items: list[Any]) -> None:
    if isinstance(target, dict):
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(key, (str, int, float, Name)):
                target[key] = value


def _storage(description: Any) -> Any:
    if not (isinstance(description, tuple) and len(description) >= 3 and isinstance(description[1], Name)):
        return Inert()
    dtype = _DTYPES.get(description[1].name)
    return Storage(str(description[2]), dtype) if dtype else Inert()


def _call(function: Any, arguments: Any) -> Any:
    if function == Name("collections", "OrderedDict"):
        return {}
    if function == Name("torch._utils", "_rebuild_parameter"):
        return arguments[0]
    if function == Name("torch._utils", "_rebuild_tensor_v2") and isinstance(arguments[0], Storage):
        storage, offset, size, stride = arguments[:4]
        if math.prod(size) and min(offset, *size, *stride) < 0:
            raise ValueError("a tensor lies outside of its storage")
        return Place(storage, offset, tuple(size), tuple(stride))
    return Inert()
