"""What has been done already, a JSON object per line, so that an interrupted evaluation goes on where it stopped.

Every entry carries the sums of the files that it is about: what has changed since is done again.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar, get_type_hints

from codec.digests import sha256
from codec.errors import ConfigError
from codec.input import is_of, parse_json
from codec.output import exists, write_text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

JOURNAL_NAME = "journal.jsonl"
_START = b'{"kind": "'  # of every line

Record = TypeVar("Record", bound="DataclassInstance")


class Journal:
    """Entries by kind and id. Append as they come; the last of an id counts.

    Args:
        path: of the file, made where it is missing; None keeps nothing.

    Raises:
        ConfigError: the file is something else.
        OSError: it cannot be read or written.
    """

    def __init__(self, path: Path | None):
        self._entries: dict[tuple[str, str], dict[str, Any]] = {}
        self._stream: TextIO | None = None
        if path is None:
            return
        if exists(path):
            for entry in _entries(path):
                self._entries[entry["kind"], entry["id"]] = entry
        # Written anew, without what is superseded or was cut off.
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "".join(map(_line, self._entries.values())))
        self._stream = open(path, "a", encoding="utf-8")

    @staticmethod
    def references(folder: Path) -> dict[str, str]:
        """Sum of each reference that was scored into a folder of results; empty where there is no journal."""
        path = folder / JOURNAL_NAME
        entries = _entries(path) if exists(path) else iter(())
        keys = {entry["id"]: entry.get("key") for entry in entries if entry["kind"] == "scores"}
        return {id: key.split()[0] for id, key in keys.items() if isinstance(key, str) and key.split()}

    def get(self, kind: str, id: str, record: type[Record]) -> Record | None:
        """The last entry of this kind and id, as the dataclass that was kept.

        None where there is none, or where it has other fields, or of other types: what another version kept is made
        again.
        """
        entry = {name: value for name, value in self._entries.get((kind, id), {}).items() if name != "kind"}
        types = get_type_hints(record)
        is_whole = entry.keys() == types.keys() and all(is_of(value, types[name]) for name, value in entry.items())
        return record(**entry) if is_whole else None

    def append(self, kind: str, record: "DataclassInstance") -> None:
        """Keep a dataclass with an `id`, on disk at once."""
        entry = {"kind": kind} | dataclasses.asdict(record)
        self._entries[kind, entry["id"]] = entry
        if self._stream is not None:
            self._stream.write(_line(entry))
            self._stream.flush()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            self._stream.close()


def file_sum(path: Path) -> str:
    """16 hex digits of the content."""
    return sha256(path)[:16]


def text_sum(text: str) -> str:
    """16 hex digits of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, "rb") as stream:
        lines = stream.readlines()
    for number, line in enumerate(lines, 1):
        try:
            entry = parse_json(line)
            if not isinstance(entry.get("kind"), str) or not isinstance(entry.get("id"), str):
                raise ValueError("no kind or id")
        except (ValueError, AttributeError) as error:
            if number == len(lines) and (number > 1 or line.startswith(_START[: len(line)])):
                return  # cut off when the run was, maybe within a letter
            raise ConfigError(f"{path}:{number}: is not a journal of an evaluation; choose another folder") from error
        yield entry


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=False) + "\n"
