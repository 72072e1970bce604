"""Whole `.codes` files in memory, as FORMAT.md specifies them; knows neither models nor audio."""

import os
import sys
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

from codec.bitstream.header import Header
from codec.bitstream.reader import CodesReader
from codec.bitstream.recovery import Damage
from codec.bitstream.writer import CodesWriter
from codec.errors import FormatError
from codec.output import STANDARD_STREAM, check_path, open_output, shown

HOLE = -1  # stands for a lost code where an array must have a value


@dataclass(frozen=True)
class CodesFile:
    """A whole `.codes` file in memory.

    Attributes:
        header: sample rate, hop length, codebook size, model.
        codes: (N,) int64 in [0, K); HOLE (-1) where a recovering reader found damage.
        num_samples: exact length of the recording at `header.sample_rate`.
        damage: what is lost; false if nothing is.
        num_bytes: from the header to the last block; what follows it is not counted.
    """

    header: Header
    codes: np.ndarray
    num_samples: int
    damage: Damage = field(default_factory=Damage)
    num_bytes: int = 0


def write_codes(
    target: str | os.PathLike[str] | BinaryIO, codes: np.ndarray, *, header: Header, num_samples: int | None = None
) -> None:
    """Write a whole `.codes` file.

    Args:
        target: a path, "-" for standard output, or a stream open for writing bytes. An existing file is replaced
            without asking, when the new one is complete and not before.
        codes: (N,) of any integer dtype in [0, K), N >= 0.
        header: see `Header`.
        num_samples: exact length of the recording, ceil(num_samples / hop_length) = N; by default N * hop_length.

    Raises:
        FormatError: the path ends in another suffix than .codes; codes or number of samples do not fit the header.
        OSError: the file cannot be written; nothing is left of it.
    """
    if isinstance(target, (str, os.PathLike)):
        if os.path.splitext(target)[1].lower() not in ("", ".codes"):
            raise FormatError(f"{os.fspath(target)}: is not the name of a .codes file; end it in .codes")
        with open_output(target, overwrite=True) as stream:
            _write_all(CodesWriter(stream, header, shown(target, "standard output")), codes, num_samples)
    else:
        _write_all(CodesWriter(target, header), codes, num_samples)


def read_codes(source: str | os.PathLike[str] | BinaryIO, recover: bool = False) -> CodesFile:
    """Read a whole `.codes` file.

    Args:
        source: a path, "-" for standard input, or a stream open for reading bytes.
        recover: keep what is intact of a damaged file instead of raising.

    Raises:
        FormatError: not a `.codes` file, a newer version, damaged (with `recover`: damaged in the header).
        OSError: the file cannot be read.
    """
    if not isinstance(source, (str, os.PathLike)):
        return _read_all(CodesReader(source, recover))
    if os.fspath(source) == STANDARD_STREAM:
        return _read_all(CodesReader(sys.stdin.buffer, recover, "standard input"))
    if reader := _READERS.get(os.path.splitext(source)[1].lower()):
        raise FormatError(f"{os.fspath(source)}: is not a .codes file; {reader} reads it")
    check_path(source, FormatError)
    with open(source, "rb") as stream:
        return _read_all(CodesReader(stream, recover, os.fspath(source)))


_READERS = {".npy": "numpy.load", ".json": "json.load", ".txt": "numpy.loadtxt"}
"""Of the other files of codes that `encode_file` writes."""


def _write_all(writer: CodesWriter, codes: np.ndarray, num_samples: int | None) -> None:
    writer.write(codes)
    writer.close(num_samples)


def _read_all(reader: CodesReader) -> CodesFile:
    parts = [np.full(block.num_frames, HOLE) if block.codes is None else block.codes for block in reader]
    codes = np.concatenate([np.zeros(0, np.int64), *parts])
    return CodesFile(reader.header, codes, reader.num_samples, reader.damage, reader.num_bytes)
