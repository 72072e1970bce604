"""Files of codes of any kind behind one reader and one writer: `.codes`, and for other programs .npy, .json and .txt.

Only `.codes` is checked for damage; only `.codes` and .json know their model and the exact length of the recording.
bitstream/FORMAT.md specifies them all.
"""

import codecs
import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from codec.bitstream import Block, CodesReader, CodesWriter, Damage, Header
from codec.bitstream.header import MAGIC
from codec.bitstream.packing import check_codes
from codec.bitstream.window import Window
from codec.errors import FormatError
from codec.input import parse_json
from codec.output import STANDARD_STREAM, check_path, chosen_format, open_output, shown

CODE_FORMATS = {"codes": ".codes", "npy": ".npy", "json": ".json", "txt": ".txt"}
"""Name of each format -> its suffix."""

START_SIZE = 8
"""Bytes that tell the format of codes where no suffix does."""

_ARRAY_BLOCK_FRAMES = 256
_BYTES_PER_READ = 1 << 16


class CodeWriter(Protocol):
    """What `open_code_writer` gives."""

    def write(self, codes: np.ndarray) -> None:
        """Append (n,) integers."""

    def close(self, num_samples: int | None = None) -> None:
        """Complete the file; the length of the recording is known now."""


class CodeReader(Protocol):
    """Codes from anywhere. Iterate once; `num_samples` and `damage` are known then."""

    damage: Damage

    @property
    def header(self) -> Header | None:
        """Model and rates, where the format knows them."""

    @property
    def num_samples(self) -> int | None:
        """Exact length of the recording, where the format knows it."""

    def __iter__(self) -> Iterator[Block]: ...


def code_format(path: str | os.PathLike[str], format: str | None = None) -> str:
    """The key of `CODE_FORMATS` that `format`, or else the suffix of `path`, names; codes where there is neither.

    Raises:
        FormatError: nothing of that name can be written, or name and suffix disagree.
    """
    return chosen_format(path, format, CODE_FORMATS, "codes", FormatError)


def format_of(start: bytes) -> str | None:
    """The key of `CODE_FORMATS` that the first `START_SIZE` bytes of a file tell; None of what is no codes."""
    if start.startswith(MAGIC):
        return "codes"
    start = start[:START_SIZE].lstrip()
    if start.startswith(b"\x93NUMPY"):
        return "npy"
    if start.startswith((b"{", b"[")):
        return "json"
    return "txt" if start and not start.strip(b"0123456789, \t\r\n") else None


@contextlib.contextmanager
def open_code_writer(
    path: str | os.PathLike[str], header: Header, format: str | None = None, overwrite: bool = False
) -> Iterator[CodeWriter]:
    """Write codes as they come; the file appears when the block ends without an exception.

    Args:
        path: a file, a device, or "-" for standard output.
        header: model and rates.
        format: a key of `CODE_FORMATS`; None takes it from the suffix.
        overwrite: allow replacing a file.

    Raises:
        FormatError: see `code_format`; codes outside [0, K).
        OSError: see `codec.output.open_output`.
    """
    format = code_format(path, format)
    with open_output(path, overwrite=overwrite) as stream:
        name = shown(path, "standard output")
        yield CodesWriter(stream, header, name) if format == "codes" else _PlainWriter(stream, header, format)


@contextlib.contextmanager
def open_code_reader(path: str | os.PathLike[str], recover: bool = False) -> Iterator[CodeReader]:
    """Read codes block by block.

    Args:
        path: a file, a named pipe, or "-" for standard input. The suffix names the format; where there is none that is
            known, the first bytes do.
        recover: of a damaged `.codes` file, give what is intact, and holes.

    Raises:
        FormatError: damaged, cut off, of a newer version, or no codes at all.
        OSError: cannot be opened.
    """
    if not isinstance(path, str | os.PathLike):
        raise FormatError(f"the path of a file of codes is meant, got {type(path).__name__}; Codec.decode takes codes")
    check_path(path, FormatError)
    is_standard = os.fspath(path) == STANDARD_STREAM
    name = shown(path, "standard input")
    with contextlib.nullcontext(sys.stdin.buffer) if is_standard else open(path, "rb") as stream:
        yield _reader(Window(stream, name), name, Path(path).suffix.lower(), recover)


def _reader(window: Window, name: str, suffix: str, recover: bool) -> CodeReader:
    format = {its_suffix: format for format, its_suffix in CODE_FORMATS.items()}.get(suffix)
    format = format or format_of(window.peek(START_SIZE)) or "codes"
    if format == "codes":
        return CodesReader(window, recover, name)
    data = b"".join(iter(lambda: window.read(_BYTES_PER_READ), b""))
    try:
        return {"npy": _from_npy, "json": _from_json, "txt": _from_txt}[format](data)
    except FormatError as error:
        raise FormatError(f"{name}: {error}") from error


class _PlainWriter:
    """Gathers codes and writes them at the end: an hour is a megabyte."""

    def __init__(self, stream: BinaryIO, header: Header, format: str):
        self._stream, self._header, self._format = stream, header, format
        self._parts = [np.zeros(0, np.int64)]

    def write(self, codes: np.ndarray) -> None:
        check_codes(codes, self._header.codebook_size, sum(map(len, self._parts)))
        self._parts.append(codes.astype(np.int64))

    def close(self, num_samples: int | None = None) -> None:
        codes = np.concatenate(self._parts)
        if self._format == "npy":
            array = io.BytesIO()
            np.save(array, codes.astype(np.int64 if self._header.codebook_size > 1 << 31 else np.int32))
            self._stream.write(array.getvalue())
        elif self._format == "txt":
            self._stream.write((" ".join(map(str, codes)) + "\n").encode())
        else:
            values: dict[str, Any] = {name: getattr(self._header, name) for name in _HEADER_TYPES}
            values |= {"num_samples": num_samples, "codes": codes.tolist()}
            self._stream.write((json.dumps(values) + "\n").encode())


class ArrayReader:
    """Codes in memory as blocks without damage.

    Args:
        codes: (N,) int64 >= 0.
        header: model and rates, where they are known.
        num_samples: exact length of the recording, where it is known.
    """

    def __init__(self, codes: np.ndarray, header: Header | None = None, num_samples: int | None = None):
        self.damage = Damage()
        self.header, self.num_samples = header, num_samples
        self._codes = codes

    def __iter__(self) -> Iterator[Block]:
        for start in range(0, len(self._codes), _ARRAY_BLOCK_FRAMES):
            codes = self._codes[start : start + _ARRAY_BLOCK_FRAMES]
            yield Block(start // _ARRAY_BLOCK_FRAMES, start, len(codes), codes)


def _from_npy(data: bytes) -> ArrayReader:
    try:
        array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # numpy takes the header for Python, and raises anything
        raise FormatError("is no whole .npy file of integers; make it again") from error
    return ArrayReader(_checked(array))


def _from_txt(data: bytes) -> ArrayReader:
    words = data.removeprefix(codecs.BOM_UTF8).replace(b",", b" ").split()
    for word in words:
        if not word.isdigit() or len(word) > 10:
            text = word[:20].decode("utf-8", "backslashreplace")
            raise FormatError(f"{text!r} is no code; codes are integers separated by spaces")
    return ArrayReader(_checked(np.array([int(word) for word in words], np.int64)))


def _from_json(data: bytes) -> ArrayReader:
    try:
        values = parse_json(data)
    except ValueError as error:
        raise FormatError(f"is not JSON ({error})") from error
    if not isinstance(values, dict):
        return ArrayReader(_codes_of(values))
    if "codes" not in values:
        raise FormatError("has no entry 'codes'")
    codes = _codes_of(values["codes"])
    if not _HEADER_TYPES.keys() <= values.keys():
        return ArrayReader(codes)
    for key, kind in _HEADER_TYPES.items():
        if type(values[key]) is not kind:
            raise FormatError(f"{key} must be of type {kind.__name__}, got {values[key]!r}")
    header, num_samples = Header(**{key: values[key] for key in _HEADER_TYPES}), values.get("num_samples")
    hop_length = header.hop_length
    if num_samples is not None and (type(num_samples) is not int or -(-num_samples // hop_length) != len(codes)):
        raise FormatError(f"num_samples {num_samples!r} does not fit {len(codes)} codes of {hop_length} samples")
    return ArrayReader(codes, header, num_samples)


def _codes_of(values: Any) -> np.ndarray:
    """A list, as JSON has it, as an array (N,) int64."""
    if isinstance(values, list) and len(values) == 1 and isinstance(values[0], list):
        values = values[0]  # a batch of one
    if not isinstance(values, list):
        raise FormatError(f"codes must be one list of integers, got {_brief(values)}")
    for place, value in enumerate(values):
        if type(value) is not int:
            raise FormatError(f"codes must be one list of integers, entry {place} is {_brief(value)}")
    try:
        return _checked(np.array(values, np.int64))
    except OverflowError as error:
        raise FormatError(_OUT_OF_RANGE) from error


def _checked(array: np.ndarray) -> np.ndarray:
    """Codes (N,) or (1, N) of any type of integer as (N,) int64, N >= 1."""
    if array.ndim == 2 and len(array) == 1:
        array = array[0]  # a batch of one
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise FormatError(f"codes must be one sequence of integers, got shape {array.shape} of type {array.dtype}")
    if not len(array):
        raise FormatError("has no codes")
    if array.min() < 0 or array.max() > 0xFFFF_FFFF:
        raise FormatError(_OUT_OF_RANGE)
    return array.astype(np.int64)


_HEADER_TYPES = {"model": str, "fingerprint": str, "sample_rate": int, "hop_length": int, "codebook_size": int}

_OUT_OF_RANGE = "codes must not be negative or beyond 32 bits"


def _brief(value: Any) -> str:
    """A value as JSON, cut where it is long."""
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
