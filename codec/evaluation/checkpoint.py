"""Tensors of a foreign checkpoint, and nothing else of it.

Some published checkpoints carry the objects of their training program beside the weights. Here such a file is not
unpickled: its instructions are followed symbolically, by a machine that knows dictionaries, lists, numbers, text and
where tensors lie. Whatever else the file names stays an inert mark, so that nothing of it can run.
"""

import math
import pickletools
import zipfile
import zlib
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
    except (ValueError, IndexError, KeyError, TypeError, RuntimeError, EOFError, zlib.error) as error:
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
    machine = _Machine()
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name == "STOP":
            return machine.stack.pop()
        if not any(step(opcode.name, argument) for step in (machine.arrange, machine.gather, machine.make)):
            raise ValueError(f"unexpected instruction {opcode.name}")
    raise ValueError("the pickle has no end")


class _Machine:
    """What the instructions of a pickle work on. Each method does those it knows, and tells whether it did."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[Any, Any] = {}

    def arrange(self, name: str, argument: Any) -> bool:
        """What only moves values."""
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self.stack.append(_MARK)
            case "POP":
                self.stack.pop()
            case "POP_MARK":
                self._pop_to_mark()
            case "DUP":
                self.stack.append(self.stack[-1])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                self.stack.append(self.memo[argument])
            case _:
                return False
        return True

    def gather(self, name: str, argument: Any) -> bool:
        """What makes and fills containers."""
        match name:
            case "EMPTY_DICT":
                self.stack.append({})
            case "EMPTY_LIST" | "EMPTY_SET":
                self.stack.append([])
            case "EMPTY_TUPLE":
                self.stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                self.stack[-count:] = [tuple(self.stack[-count:])]
            case "TUPLE":
                self.stack.append(tuple(self._pop_to_mark()))
            case "LIST" | "FROZENSET":
                self.stack.append(self._pop_to_mark())
            case "DICT":
                items = self._pop_to_mark()
                self.stack.append({})
                self._fill(items)
            case "APPEND":
                self._fill([self.stack.pop()])
            case "SETITEM":
                value, key = self.stack.pop(), self.stack.pop()
                self._fill([key, value])
            case "APPENDS" | "ADDITEMS" | "SETITEMS":
                self._fill(self._pop_to_mark())
            case _:
                return False
        return True

    def make(self, name: str, argument: Any) -> bool:
        """What makes values, of which only tensors are more than plain."""
        match name:
            case "NONE":
                self.stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                self.stack.append(name == "NEWTRUE")
            case "GLOBAL":
                self.stack.append(Name(*str(argument).split(" ", 1)))
            case "STACK_GLOBAL":
                attribute, module = self.stack.pop(), self.stack.pop()
                self.stack.append(Name(module, attribute))
            case "BINPERSID":
                self.stack.append(_storage(self.stack.pop()))
            case "REDUCE" | "NEWOBJ":
                arguments, function = self.stack.pop(), self.stack.pop()
                self.stack.append(_call(function, arguments))
            case "NEWOBJ_EX":
                self.stack[-3:] = [Inert()]
            case "OBJ" | "INST":
                self._pop_to_mark()
                self.stack.append(Inert())
            case "BUILD":
                self.stack.pop()  # what an object is to be filled with
            case _ if argument is not None:
                self.stack.append(argument)  # a number or a text
            case _:
                return False
        return True

    def _pop_to_mark(self) -> list[Any]:
        return list(iter(self.stack.pop, _MARK))[::-1]

    def _fill(self, items: list[Any]) -> None:
        """Into the list or dictionary on top."""
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, dict):
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
