"""A manifest is the list of utterances of a corpus: where each lies, how long it is, who speaks.

It is a table with tab-separated columns, because every value is one word: so a spreadsheet, `cut` and `awk` read it as
well as a program does, at half the size of JSON lines. UTF-8, one header line, lines end in "\\n", sorted by id:

    id  path  seconds  samples  sample_rate  speaker  part

`path` is relative to the folder of the manifest, or absolute; `samples` counts one channel; `seconds` is there for
people and equals samples / sample_rate. Further columns are allowed and passed over. Nothing here knows of models.
"""

import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePath

from codec import audio
from codec.errors import AudioError, CorpusError
from codec.output import write_text

COLUMNS = ("id", "path", "seconds", "samples", "sample_rate", "speaker", "part")
SUFFIX = ".tsv"
UNKNOWN_SPEAKER = "unknown"
RENAME = "rename it" if sys.getfilesystemencoding() == "utf-8" else "rename it, or set PYTHONUTF8=1 if it is UTF-8"
"""What to do about a name that cannot stand in a manifest: of UTF-8, some locales let Python read ASCII only."""
MAX_DIGITS = 15
"""Of a number; a longer one is damage."""


def is_unknown(speaker: str) -> bool:
    """Whether a speaker is "unknown" or something that ends so, and hence may be any number of people."""
    return speaker.endswith(UNKNOWN_SPEAKER)


def composed(name: str) -> str:
    """A name with each accent and its letter as one character (NFC): macOS takes them apart in names of files."""
    return unicodedata.normalize("NFC", name)


def id_of(name: Path) -> str:
    """The id of a file of a folder where no manifest is: its path below the folder without the suffix, `composed`."""
    return composed(name.with_suffix("").as_posix())


def speaker_of(name: Path) -> str:
    """Who speaks in a file of a folder that is no corpus with rules of its own: the first folder of its name says."""
    return composed(name.parts[0]) if len(name.parts) > 1 else UNKNOWN_SPEAKER


Row = tuple[str, str, int, int, str, str]
"""The values of an `Utterance`, its path a string."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """One sound file of a corpus."""

    id: str  # unique within a manifest
    path: Path
    num_samples: int  # of one channel, at its own sample rate
    sample_rate: int  # Hz
    speaker: str  # `is_unknown` tells whether it names anybody
    part: str  # of the corpus, "test-clean"

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.num_samples / self.sample_rate


def read_manifest(path: str | os.PathLike[str]) -> list[Utterance]:
    """The utterances of a manifest, in its order. The sound files are not looked at; see `check_manifest`.

    Raises:
        CorpusError: missing, not a manifest, without utterances, or with a line that cannot be right; names the line.
    """
    return [Utterance(row[0], Path(row[1]), *row[2:]) for row in read_rows(path)]


def read_rows(path: str | os.PathLike[str]) -> Iterator[Row]:
    """The values of the utterances of a manifest, one after the other: of millions, paths would fill the memory.

    Raises:
        CorpusError: see `read_manifest`.
    """
    if Path(path).suffix.lower() in audio.INPUT_SUFFIXES:
        raise CorpusError(f"{path}: is named as a sound file, a manifest or a folder is meant")
    folder, number = os.path.dirname(path), 1
    lines_of: dict[str, int] = {}
    try:
        with open(path, encoding="utf-8-sig", newline="\n") as stream:
            header = stream.readline().rstrip("\r\n").split("\t")
            missing = [name for name in COLUMNS if name not in header]
            if missing:
                raise CorpusError(f"{path}:1: is not a manifest, its first line lacks the columns {', '.join(missing)}")
            places = [header.index(name) for name in COLUMNS]
            for number, line in enumerate(stream, 2):
                values = line.rstrip("\r\n").split("\t")
                if len(values) != len(header):
                    raise CorpusError(f"{path}:{number}: has {len(values)} columns, the header has {len(header)}")
                row = _row([values[place] for place in places], folder, f"{path}:{number}")
                first = lines_of.setdefault(row[0], number)
                if first != number:
                    raise CorpusError(
                        f"{path}:{number}: id {row[0]!r} is also that of line {first}; ids must be unique"
                    )
                yield row
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path}:{number}: is not a manifest, it is not UTF-8 text") from error
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror})") from error
    if number == 1:
        raise CorpusError(f"{path}: has no utterances, only a header")


def write_manifest(
    path: str | os.PathLike[str], utterances: Iterable[Utterance], root: str | os.PathLike[str] | None = None
) -> None:
    """Write a manifest, sorted by id, so that it is there as a whole or not at all.

    Args:
        path: of the manifest; replaced where it exists. Its folder is made.
        utterances: in any order.
        root: where both the manifest and a sound file are below this folder, the path is relative, so that all of it
            can be moved together; else it is absolute. The default is the manifest's own folder.

    Raises:
        CorpusError: an id occurs twice, or a value has a tab or a line break in it.
        OSError: the system refuses.
    """
    path = Path(path)
    root = path.parent if root is None else Path(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    ordered = require_unique_ids(utterances, path)
    write_text(path, "\t".join(COLUMNS) + "\n" + "".join(_line(utterance, path, root) for utterance in ordered))


def require_unique_ids(utterances: Iterable[Utterance], path: Path) -> list[Utterance]:
    """Utterances sorted by id. Raises CorpusError where two that a manifest is to hold have the same."""
    ordered = sorted(utterances, key=lambda utterance: utterance.id)
    for before, after in pairwise(ordered):
        if before.id == after.id:
            raise CorpusError(f"{path}: {before.path} and {after.path} would both have the id {after.id!r}; rename one")
    return ordered


def check_manifest(path: str | os.PathLike[str]) -> tuple[list[Utterance], list[str]]:
    """The utterances of a manifest, and what is wrong between it and its sound files.

    Headers are read, samples are not.

    Returns:
        See `read_manifest`; and a sentence for each that is wrong.

    Raises:
        CorpusError: see `read_manifest`.
    """
    utterances, complaints = read_manifest(path), []
    for number, utterance in enumerate(utterances, 2):
        try:
            audio.require_regular(utterance.path)
            info = audio.info(utterance.path)
        except AudioError as error:
            complaints.append(f"{path}:{number}: {error}")
            continue
        promised = utterance.num_samples if info.num_samples is None or "MP3" in info.format else info.num_samples
        if (info.sample_rate, promised) != (utterance.sample_rate, utterance.num_samples):
            complaints.append(
                f"{path}:{number}: {utterance.path} has {promised} samples at {info.sample_rate} Hz, "
                f"the manifest says {utterance.num_samples} at {utterance.sample_rate} Hz"
            )
    return utterances, complaints


def can_stand_in_manifest(value: str) -> bool:
    """Whether a name is not empty and has neither tabs, line breaks or NUL characters nor bytes that are no text."""
    if value.isprintable():  # nearly every name, and none with what is looked for below; told much sooner
        return value != ""
    is_text = not any("\ud800" <= letter <= "\udfff" for letter in value)  # how Python shows bytes that are not UTF-8
    return is_text and "\t" not in value and "\0" not in value and value.splitlines() == [value]


def require_file_names(ids: Iterable[str], source: str | os.PathLike[str]) -> None:
    """Raises CorpusError where ids, joined to a folder, would leave it, or two would be the same file."""
    first_of: dict[PurePath, str] = {}
    for id in ids:
        path = PurePath(composed(id))
        if not path.parts or path.anchor or ".." in path.parts or "\0" in id:  # on Windows an anchor may be relative
            raise CorpusError(f"{source}: id {id!r} cannot name a file below a folder; ids are relative paths")
        first = first_of.setdefault(path, id)
        if first != id:
            raise CorpusError(f"{source}: ids {first!r} and {id!r} name the same file; rename one")


def sounds_by_id(folder: Path) -> tuple[dict[str, Path], list[tuple[str, str]]]:
    """The sound files below a folder, each under its id, see `id_of`.

    Returns:
        id -> file, in the order of the ids; and of every file that has no id of its own what its id would be, and a
        sentence.

    Raises:
        AudioError: see `codec.audio.find_sounds`.
    """
    found: dict[str, Path] = {}
    mistakes = []
    for path in audio.find_sounds(folder):
        id = id_of(path.relative_to(folder))
        if not can_stand_in_manifest(id):
            mistakes.append((id, f"{path}: its name has tabs, line breaks or bytes that are no text; {RENAME}"))
        elif id in found:
            mistakes.append((id, f"{path} and {found[id]} would both have the id {id!r}; rename one"))
        else:
            found[id] = path
    return dict(sorted(found.items())), mistakes


def place_of(path: Path, folder: Path, root: Path) -> str:
    """How a list in `folder` names a path: relative where both are below `root`, else absolute."""
    absolute, start, root = (Path(os.path.abspath(place)) for place in (path, folder, root))
    moves_along = absolute.is_relative_to(root) and start.is_relative_to(root)
    return (Path(os.path.relpath(absolute, start)) if moves_along else absolute).as_posix()


def _line(utterance: Utterance, manifest: Path, root: Path) -> str:
    values = (
        utterance.id,
        place_of(utterance.path, manifest.parent, root),
        f"{utterance.seconds:.3f}",
        str(utterance.num_samples),
        str(utterance.sample_rate),
        utterance.speaker,
        utterance.part,
    )
    for name, value in zip(COLUMNS, values, strict=True):
        if not can_stand_in_manifest(value):
            raise CorpusError(
                f"{utterance.path}: {name} {value!r} cannot stand in a manifest; rename the file or folder"
            )
    return "\t".join(values) + "\n"


def _row(values: list[str], folder: str, where: str) -> Row:
    id, place, seconds, samples, sample_rate, speaker, part = values
    is_plain = all(values) and "".join(values).isprintable()  # as nearly every line is
    for column, value in () if is_plain else zip(COLUMNS, values, strict=True):
        if not value:
            raise CorpusError(f"{where}: {column} is empty")
        if not can_stand_in_manifest(value):
            raise CorpusError(f"{where}: {column} {value!r} has a line break or a NUL character in it")
    for column, value in (("samples", samples), ("sample_rate", sample_rate)):
        if not (value.isascii() and value.isdigit() and len(value) <= MAX_DIGITS and int(value) > 0):
            raise CorpusError(f"{where}: {column} must be a positive integer, got {value!r}")
    # Of speakers and parts there are few, of lines there may be millions.
    speaker, part = sys.intern(speaker), sys.intern(part)
    duration = int(samples) / int(sample_rate)
    try:
        disagrees = not abs(float(seconds) - duration) <= 0.002
    except ValueError:
        disagrees = True
    if disagrees:
        raise CorpusError(f"{where}: seconds must be samples / sample_rate = {duration:.3f}, got {seconds!r}")
    return id, os.path.join(folder, place), int(samples), int(sample_rate), speaker, part
