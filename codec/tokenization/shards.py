"""Codes of a corpus in few large files that numpy and any reader of tables understand; knows of no model.

A folder holds `tokens.json`, which says what made them, and for every shard, numbered from 0:

    00012.npy          the codes of its utterances end to end: (M,) uint16, or uint32 of codebooks beyond 65,536
    00012.tsv          a line for each utterance: id  start  codes  samples  speaker  part  crc32
    00012.failed.tsv   a line for each that could not be used: id  path  reason  file; only where there are any

Those of an utterance are `codes` integers from `start` on, and `crc32` is the CRC-32 of their bytes; `samples` is the
length of its sound at the model's sample rate. `file` tells what a file was when it was tried: once one is another, all
those of the shard are tried again. The table is written last: a shard that has one is whole. A `.part` file is what a
killed process was writing; nothing removes it, as another may be writing it now.
"""

import itertools
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from codec.bitstream import Header, fit_name
from codec.code_files import ArrayReader
from codec.errors import FormatError
from codec.input import read_json
from codec.output import check_path, is_stream, open_output, write_json
from codec.tables import write_table

INFO_NAME = "tokens.json"
FAILED_COLUMNS = ("id", "path", "reason", "file")

_RESTORE = "restore it from a copy, or choose another folder"


@dataclass(frozen=True)
class TokensInfo:
    """What a folder of tokens was made with, and how it is divided."""

    model: str
    fingerprint: str
    sample_rate: int  # Hz
    hop_length: int  # samples of a code
    codebook_size: int
    precision: str
    utterances: int
    utterances_per_shard: int
    list: str  # sum of the list of utterances
    source: str = ""  # where the list was; unknown of tokens made before this was noted
    refine: int = 0  # steps in which the codes were refined

    @property
    def num_shards(self) -> int:
        """The last one may be smaller than the others."""
        return -(-self.utterances // self.utterances_per_shard)

    @property
    def header(self) -> Header:
        """What a file of such codes says of them."""
        return Header(self.sample_rate, self.hop_length, self.codebook_size, self.fingerprint, fit_name(self.model))

    @property
    def dtype(self) -> "np.dtype[Any]":
        """Of the stored codes, little endian."""
        return np.dtype("<u2" if self.codebook_size <= 1 << 16 else "<u4")


class Place(NamedTuple):
    """Where the codes of an utterance are, and whose they are; a line of a shard's table."""

    id: str
    start: int
    codes: int
    samples: int
    speaker: str
    part: str
    crc32: int | None = None  # of the bytes of the codes; unknown of tokens made before this was noted


_ROW = np.dtype(
    [
        ("shard", np.uint32),
        ("id_bytes", np.uint32),
        ("start", np.int64),
        ("codes", np.int64),
        ("samples", np.int64),
        ("speaker", np.int32),
        ("part", np.int32),
        ("crc32", np.int64),  # -1 where unknown
    ]
)


class Places(Mapping[str, Place]):
    """The places of U utterances by id, each made when it is asked for: of millions, objects would fill the memory.

    Args:
        shards: the table of each.

    Attributes:
        speakers: all there are, each once.
        parts: the same.
    """

    def __init__(self, shards: Iterable[Iterable[Place]]):
        rows, ids, sums = [np.zeros(0, _ROW)], [], [np.zeros(0, np.uint32)]
        speakers: dict[str, int] = {}
        parts: dict[str, int] = {}
        for number, places in enumerate(shards):
            table, names = [], []
            for id, start, codes, samples, speaker, part, crc32 in places:
                names.append(id.encode())
                words = speakers.setdefault(speaker, len(speakers)), parts.setdefault(part, len(parts))
                crc32 = -1 if crc32 is None else crc32
                table.append((number, len(names[-1]), start, codes, samples, *words, crc32))
            rows.append(np.array(table, _ROW))
            ids.append(b"".join(names))
            sums.append(np.fromiter(map(zlib.crc32, names), np.uint32))
        self._rows, self._ids, unsorted = np.concatenate(rows), b"".join(ids), np.concatenate(sums)
        self._rows.flags.writeable = False  # columns are given out
        self._ends = self._rows["id_bytes"].cumsum(dtype=np.int64)
        self._order = unsorted.argsort()
        self._sums = unsorted[self._order]
        self.speakers, self.parts = list(speakers), list(parts)

    @property
    def codes(self) -> np.ndarray:
        """How many each utterance has, in order: (U,) int64."""
        return self._rows["codes"]

    @property
    def samples(self) -> np.ndarray:
        """The same of its samples: (U,) int64."""
        return self._rows["samples"]

    @property
    def speaker_numbers(self) -> np.ndarray:
        """Where each utterance's speaker stands in `speakers`, of these folders alone: (U,) int32."""
        return self._rows["speaker"]

    @property
    def part_numbers(self) -> np.ndarray:
        """Where each utterance's part stands in `parts`, of these folders alone: (U,) int32."""
        return self._rows["part"]

    def id(self, number: int) -> str:
        """The id of utterance 0 to U - 1, in the order of all columns. Raises IndexError."""
        if number < 0:
            raise IndexError(f"utterances are counted from 0, got {number}")
        end = self._ends[number]
        return self._ids[end - self._rows["id_bytes"][number] : end].decode()

    def locate(self, id: str) -> tuple[int, Place]:
        """Which of the shards it is in, and the place there. Raises KeyError."""
        key = np.uint32(zlib.crc32(f"{id}".encode(errors="backslashreplace")))
        first, last = self._sums.searchsorted(key, "left"), self._sums.searchsorted(key, "right")
        for number in self._order[first:last]:
            if self.id(number) == id:
                shard, _, start, codes, samples, speaker, part, crc32 = self._rows[number].item()
                words = self.speakers[speaker], self.parts[part]
                return shard, Place(id, start, codes, samples, *words, None if crc32 < 0 else crc32)
        raise KeyError(id)

    def repeated(self) -> tuple[str, int, int] | None:
        """An id that is there twice, and which of the shards it is in; None where there is none."""
        has_equal = np.flatnonzero(self._sums[1:] == self._sums[:-1])
        shards: dict[str, int] = {}
        for number in np.union1d(self._order[has_equal], self._order[has_equal + 1]):
            id, shard = self.id(number), int(self._rows["shard"][number])
            if id in shards:
                return id, shards[id], shard
            shards[id] = shard
        return None

    def __getitem__(self, id: str) -> Place:
        return self.locate(id)[1]

    def __iter__(self) -> Iterator[str]:
        return map(self.id, range(len(self)))

    def __len__(self) -> int:
        return len(self._rows)


class Tokens(Mapping[str, np.ndarray]):
    """The codes of a corpus by utterance, in the order of its list: `tokens[id]` is (N,) uint16 or uint32.

    They are read when they are needed, into an array of the caller's own. Ids are those of the list, character by
    character; of a folder, `codec.manifest.id_of` makes them. `places` holds what is known of each utterance, and
    `places.id` gives the ids by number. A copy for another process carries the tables, and reads the same files.

    Args:
        folder: of the tokens.
        more: folders of further tokens that the same model made in the same way; their utterances follow, and
            so do the speakers that are new in them.
        partial: accept the shards that exist now, while `tokenize` makes the others.

    Attributes:
        info: what made them; of several folders what it says of the list and the shards is about the first.
        shards: (folder, number) of each that is there.

    Raises:
        FormatError: not a folder of tokens, not complete, damaged, made otherwise than the first, or with an utterance
            of another.
    """

    def __init__(self, folder: str | os.PathLike[str], *more: str | os.PathLike[str], partial: bool = False):
        self.info = read_info(Path(folder))
        listed: list[tuple[Path, int]] = []
        for path in map(Path, (folder, *more)):
            info = read_info(path)
            for name in ("fingerprint", "sample_rate", "hop_length", "codebook_size", "precision", "refine"):
                value, first = getattr(info, name), getattr(self.info, name)
                if value != first:
                    raise FormatError(f"{path}: {name} is {value}, that of {folder} is {first}; read them separately")
            listed += _list_shards(path, info, partial)
        self.shards: list[tuple[Path, int]] = []
        self._offsets: dict[int, int] = {}  # of the codes in the file of each of the shards, bytes
        self.places = Places(self._read_tables(listed, partial))
        if repeated := self.places.repeated():
            id, *which = repeated
            first, second = (_path(*self.shards[number], ".tsv") for number in which)
            raise FormatError(f"{second}: has the utterance {id!r}, as {first} has; an id must be unique")

    def __getitem__(self, id: str) -> np.ndarray:
        number, place = self.places.locate(id)
        path, dtype = _path(*self.shards[number], ".npy"), self.info.dtype
        try:
            # Mapping the file would take four times as long, and there may be more than a process can keep open.
            codes = np.fromfile(path, dtype, place.codes, offset=self._offsets[number] + place.start * dtype.itemsize)
        except OSError as error:
            raise _unreadable(path, error) from error
        try:
            return _checked(codes, place, self.info, path)
        except FormatError:
            self._require_current(number, place)
            raise

    # A mapping's would read all codes, of which numpy cannot say in one word whether they are equal.
    __eq__, __hash__ = object.__eq__, object.__hash__

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def reader(self, id: str) -> ArrayReader:
        """The codes of an utterance for `codec.files.decode_codes`."""
        return ArrayReader(self[id].astype(np.int64), self.info.header, self.places[id].samples)

    def _read_tables(self, listed: list[tuple[Path, int]], partial: bool) -> Iterator[list[Place]]:
        for folder, number in listed:
            try:
                places = read_places(folder, number, self.info.hop_length)
                if places:
                    self._offsets[len(self.shards)] = _map(folder, number, places, self.info.dtype).offset
            except FormatError:
                if partial and not _path(folder, number, ".tsv").exists():  # by now: it is being made anew
                    continue
                raise
            self.shards.append((folder, number))
            yield places

    def _require_current(self, number: int, place: Place) -> None:
        """Raises FormatError where a shard has another place for an utterance than when it was opened."""
        folder, shard = self.shards[number]
        try:
            is_current = place in read_places(folder, shard, self.info.hop_length)
        except FormatError:
            is_current = False
        if not is_current:
            raise FormatError(
                f"{_path(folder, shard, '.npy')}: was made anew since these tokens were opened; open them again"
            )


def _list_shards(folder: Path, info: TokensInfo, partial: bool) -> list[tuple[Path, int]]:
    """Those of a folder that are there. Raises FormatError where some are missing, unless that is allowed."""
    tables = {int(name[:-4]) for name in os.listdir(folder) if re.fullmatch(r"\d{5,}\.tsv", name, re.ASCII)}
    shards = sorted(number for number in tables if number < info.num_shards)
    num_missing = info.num_shards - len(shards)
    if num_missing and not partial:
        first = next(number for number in itertools.count() if number not in tables)
        raise FormatError(
            f"{folder}: {num_missing} of {info.num_shards} shards are missing, the first is {_name(first)}; "
            "run codec tokenize again"
        )
    return [(folder.absolute(), number) for number in shards]  # to hold when the process changes its directory


def _map(folder: Path, number: int, places: list[Place], dtype: "np.dtype[Any]") -> np.memmap:
    """The codes of a shard that has any, end to end (N,), mapped into memory."""
    path = _path(folder, number, ".npy")
    try:
        codes = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # numpy takes the header for Python, and raises anything
        raise _unreadable(path, error) from error
    if codes.dtype != dtype or codes.shape != (places[-1].start + places[-1].codes,):
        raise FormatError(f"{path}: does not fit its table; run codec tokenize again")
    return codes


def _checked(codes: np.ndarray, place: Place, info: TokensInfo, path: Path) -> np.ndarray:
    """Those of an utterance (N,) as they are, held against the model and the table."""
    if len(codes) < place.codes:
        fault = f"it ends before the codes of {place.id} do"
    elif codes.max(initial=0) >= info.codebook_size:
        fault = f"{place.id} has code {codes.max()} and the model {info.codebook_size} codes"
    elif place.crc32 not in (None, zlib.crc32(codes.data)):
        fault = f"the codes of {place.id} are not those that were written"
    else:
        return codes
    raise FormatError(f"{path}: damaged, {fault}; run codec tokenize again")


def _unreadable(path: Path, error: Exception) -> FormatError:
    if isinstance(error, OSError):  # a disk that is not mounted, say: tokens that may well be whole
        return FormatError(f"{path}: cannot be read ({error.strerror or error})")
    return FormatError(f"{path}: cannot be read ({error}); run codec tokenize again")


def is_tokens(folder: str | os.PathLike[str]) -> bool:
    """Whether a path is a folder of tokens."""
    return os.path.isfile(os.path.join(folder, INFO_NAME))


def read_info(folder: Path) -> TokensInfo:
    """What a folder of tokens was made with.

    Raises:
        FormatError: there is no such description.
    """
    check_path(folder, FormatError)
    path = folder / INFO_NAME
    try:
        values = read_json(path)
        values = {"source": TokensInfo.source, "refine": TokensInfo.refine} | values
        info = TokensInfo(**{field.name: values[field.name] for field in fields(TokensInfo)})
        for field in fields(TokensInfo):
            value = getattr(info, field.name)
            least = 0 if field.name == "refine" else 1
            if type(value) is not field.type or (field.type is int and value < least):
                raise ValueError(f"{field.name} is {value!r}")
        _ = info.header  # raises where a value is out of its range
        return info
    except OSError as error:
        raise FormatError(f"{folder}: is not a folder of tokens, {INFO_NAME} cannot be read") from error
    except KeyError as error:
        raise FormatError(f"{path}: does not describe tokens, it lacks {error}; {_RESTORE}") from error
    except (ValueError, TypeError) as error:
        raise FormatError(f"{path}: does not describe tokens ({error}); {_RESTORE}") from error


def write_info(folder: Path, info: TokensInfo) -> None:
    """Begin a folder of tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / INFO_NAME, asdict(info))


def write_shard(
    folder: Path,
    number: int,
    utterances: Iterable[tuple[str, np.ndarray, int, str, str]],
    failed: list[tuple[str, str, str, str]],
    dtype: "np.dtype[Any]",
) -> None:
    """Write a shard; it counts as soon as all of it is on the disk.

    Args:
        folder: of the tokens.
        number: of the shard.
        utterances: id, codes (N,), samples, speaker, part.
        failed: id, path, reason, `file_state`.
        dtype: of the stored codes.

    Raises:
        OSError: the system refuses.
    """
    places, parts, start = [], [np.zeros(0, dtype)], 0
    for id, codes, num_samples, speaker, part in utterances:
        parts.append(codes.astype(dtype))
        places.append(Place(id, start, len(codes), num_samples, speaker, part, zlib.crc32(parts[-1].data)))
        start += len(codes)
    _path(folder, number, ".tsv").unlink(missing_ok=True)  # who looks in between finds no shard, and not half of one
    with open_output(_path(folder, number, ".npy"), overwrite=True) as stream:
        np.save(stream, np.concatenate(parts))
    _path(folder, number, ".failed.tsv").unlink(missing_ok=True)
    if failed:
        write_table(_path(folder, number, ".failed.tsv"), FAILED_COLUMNS, failed)
    write_table(_path(folder, number, ".tsv"), Place._fields, places)


def unfinished(folder: Path, number: int, info: TokensInfo, paths: Mapping[str, str]) -> set[str]:
    """Ids of the utterances of a shard that are to be encoded.

    None where it is undamaged and no recording that it could not use was changed since; once one was, or the list of
    failures is gone, those without codes; all where the shard is missing or damaged.

    Args:
        folder: of the tokens.
        number: of the shard.
        info: of the tokens.
        paths: id -> sound file of all its utterances.

    Raises:
        FormatError: what stands in the place of a file of the shard is none.
    """
    _require_regular_files(folder, number)  # which cannot be mended by making the shard again
    try:
        encoded = read_shard(folder, number, info).keys()
        failed = read_failed(folder, number)
    except FormatError:
        return set(paths)
    known = encoded | failed.keys()
    if not known <= paths.keys():
        return set(paths)
    if known == paths.keys() and all(file_state(paths[id]) == state for id, state in failed.items()):
        return set()
    return paths.keys() - encoded


def read_shard(folder: Path, number: int, info: TokensInfo) -> dict[str, tuple[np.ndarray, int]]:
    """Codes (N,) and the number of samples of each utterance of a shard, all of it read and checked.

    Raises:
        FormatError: it is missing or damaged.
    """
    places = read_places(folder, number, info.hop_length)
    if not places:
        return {}
    codes = np.array(_map(folder, number, places, info.dtype))  # no mapping: the file may be replaced meanwhile
    path = _path(folder, number, ".npy")
    return {
        place.id: (_checked(codes[place.start : place.start + place.codes], place, info, path), place.samples)
        for place in places
    }


def file_state(path: str | os.PathLike[str]) -> str:
    """Something that changes with a file: its size, and when anything of it was changed, "missing" or "unknown"."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    except OSError:
        return "unknown"
    # Not when it was modified, which is kept where a file is copied.
    return f"{status.st_size} {status.st_ctime_ns}"


def read_places(folder: Path, number: int, hop_length: int) -> list[Place]:
    """The table of a shard.

    Args:
        folder: of the tokens.
        number: of the shard.
        hop_length: samples of a code.

    Raises:
        FormatError: it is not one.
    """
    _require_regular_files(folder, number)
    path = _path(folder, number, ".tsv")
    try:
        header, *lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        columns = tuple(header.split("\t"))
        if columns not in (Place._fields, Place._fields[:-1]):  # the last was not always there
            raise ValueError(f"its first line is {header!r}")
        rows = [line.split("\t") for line in lines]
        if any(len(row) != len(columns) for row in rows):
            raise ValueError(f"a line has not {len(columns)} columns")
        places = [
            Place(id, int(start), int(codes), int(samples), speaker, part, *map(int, crc32))
            for id, start, codes, samples, speaker, part, *crc32 in rows
        ]
        end = 0
        for place in places:
            if place.start != end or place.codes < 0:
                raise ValueError(f"{place.id} does not begin where the utterance before it ends")
            if place.samples < 0 or place.codes != -(-place.samples // hop_length):
                raise ValueError(f"{place.id} has {place.codes} codes, which do not fit {place.samples} samples")
            if not (place.crc32 is None or 0 <= place.crc32 < 1 << 32):
                raise ValueError(f"{place.id} has {place.crc32} for a CRC-32")
            end += place.codes
        if len({place.id for place in places}) < len(places):
            raise ValueError("an id stands there twice")
        return places
    except OSError as error:
        raise _unreadable(path, error) from error
    except ValueError as error:
        raise FormatError(f"{path}: is not the table of a shard ({error}); run codec tokenize again") from error


def _require_regular_files(folder: Path, number: int) -> None:
    """Raises FormatError where what stands for a file of a shard is none: a pipe would be waited for without end."""
    for suffix in (".npy", ".tsv", ".failed.tsv"):
        path = _path(folder, number, suffix)
        if is_stream(path) or path.is_dir():
            raise FormatError(f"{path}: is no regular file; remove it and run codec tokenize again")


def read_failed(folder: Path, number: int) -> dict[str, str]:
    """What the files were that a shard could not use, by id, see `file_state`.

    Raises:
        FormatError: its list of failures is not one.
    """
    path = _path(folder, number, ".failed.tsv")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[1:-1] if path.is_file() else []
        return {id: state for id, _, _, state in (line.split("\t") for line in lines)}
    except OSError as error:
        raise _unreadable(path, error) from error
    except ValueError as error:
        raise FormatError(f"{path}: is not a table of failures; run codec tokenize again") from error


def _path(folder: Path, number: int, suffix: str) -> Path:
    return folder / f"{_name(number)}{suffix}"


def _name(number: int) -> str:
    return f"{number:05d}"
