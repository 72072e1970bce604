"""Collect the speech that speech.tsv names from public repositories, a minute or so of each speaker.

    python recipes/stream/collect.py OUT [--repositories https://github.com/{repository}.git] [--only SOURCE]

It writes `OUT/<source>/<speaker>/<number>.opus`, mono, clips of 1 to 15 s; `OUT/<source>/left_out.tsv`, the files that
could not be used and why; and `OUT/sources.tsv`, what there is of each source. A source whose folder is there is kept.
Of a repository only what is taken is downloaded; a mirror has to serve that (`git config uploadpack.allowFilter true`).
"""

import argparse
import csv
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile

from codec import audio
from codec.cli import exit_code
from codec.cli.running import complain
from codec.errors import AudioError, CorpusError
from codec.tables import write_table

TABLE = Path(__file__).with_name("speech.tsv")
SECONDS = 60.0  # of a speaker, where the table does not say
SHORTEST, JOINED, LONGEST = 1.0, 3.0, 15.0  # s, of a clip; recordings are joined until they make so much; of a clip
FILES_AT_A_TIME = 16  # of each speaker, downloaded together
RATE = 24000  # Hz
WIDE, NARROW = (RATE, 48_000), (16000, 32_000)  # Hz and bit/s of what reaches beyond 8 kHz, and of what does not
AUDIBLE = 1e-6  # of the power: -60 dB
SILENT = 1e-3  # peak: -60 dBFS
CLIPPED = 0.003  # share of samples within 1 % of the peak, in speech rarely a thousandth
FAINT = 10**-4.5  # power relative to the loudest 20 ms, -45 dB: what is softer at either end is cut off, but for
PAUSE = 0.3  # s


@dataclass(frozen=True)
class Row:
    """A line of the table: some of the speech of a source."""

    source: str  # name of its folder
    repository: str  # "owner/name"
    commit: str
    licence: str
    stated: str  # where the licence is
    seconds: float  # of a speaker, at most; the same in all rows of a source
    paths: str  # regular expression for whole paths; its group `speaker` names who speaks, without it all is one's
    speech: str  # what it is, and whose


def main() -> None:
    """Collect every source that is not there yet, then say what there is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, metavar="OUT")
    parser.add_argument("--repositories", default="https://github.com/{repository}.git", help="where git finds one")
    parser.add_argument("--only", metavar="SOURCE")
    parser.add_argument("--table", type=Path, default=TABLE)
    arguments = parser.parse_args()
    sources: dict[str, list[Row]] = defaultdict(list)
    for row in read_table(arguments.table):
        sources[row.source].append(row)
    if arguments.only not in (None, *sources):
        raise CorpusError(f"--only {arguments.only}: {arguments.table} has no such source")
    failed = []
    for name in [arguments.only] if arguments.only else sources:
        if not (arguments.output / name).exists():
            try:
                collect(sources[name], arguments.output / name, arguments.repositories)
            except CorpusError as error:
                complain(f"{name}: {error}")
                failed.append(name)
    write_summary(arguments.output, sources)
    if failed:
        raise CorpusError(f"{', '.join(failed)}: not collected; the same command tries again")


def read_table(path: Path) -> Iterator[Row]:
    """The rows of the table of sources."""
    try:
        with open(path, encoding="utf-8", newline="") as table:
            rows = list(csv.DictReader(table, delimiter="\t", quoting=csv.QUOTE_NONE))
    except (UnicodeDecodeError, csv.Error) as error:
        raise CorpusError(f"{path}: is not a table in UTF-8 ({error})") from error
    for cells in rows:
        try:
            re.compile(cells["paths"])
            yield Row(**(cells | {"seconds": float(cells["seconds"] or SECONDS)}))
        except (TypeError, ValueError, KeyError, re.error) as error:
            raise CorpusError(f"{path}: a row of {cells.get('source')} cannot be understood ({error})") from error


def collect(rows: list[Row], folder: Path, template: str) -> None:
    """Make the folder of a source, which appears when it is complete.

    Raises:
        CorpusError: a repository cannot be had, or nothing in it can be used.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".collect-") as temporary:
        clips = Path(temporary, "clips")
        repositories = {row: Repository(row, template, Path(temporary)) for row in rows}
        files: dict[str, dict[str, tuple[Row, str]]] = defaultdict(dict)  # of each speaker, by git id
        for row, repository in repositories.items():
            for id, path, speaker in repository.files():
                files[speaker][id] = row, path
        speakers = {name: Speaker(clips / name, rows[0].seconds) for name in files}
        # The order of git ids is as good as random, and the same everywhere.
        waiting = {name: sorted(files[name]) for name in files}
        left_out = []
        while waiting:
            batch = [(name, id, *files[name][id]) for name in waiting for id in waiting[name][:FILES_AT_A_TIME]]
            for row, repository in repositories.items():
                repository.fetch([id for _, id, of, _ in batch if of is row])
            for name, id, row, path in batch:
                try:
                    if not speakers[name].is_complete:
                        speakers[name].take(repositories[row].read(id, path))
                except AudioError as error:
                    left_out.append((row.repository, path, str(error)))
            later = {name: ids[FILES_AT_A_TIME:] for name, ids in waiting.items() if not speakers[name].is_complete}
            waiting = {name: ids for name, ids in later.items() if ids}
        for speaker in speakers.values():
            for is_wide in (True, False):
                speaker.write(is_wide)
        if not clips.exists():
            raise CorpusError("none of the files can be used, or all are too short")
        write_table(clips / "left_out.tsv", ("repository", "path", "reason"), left_out)
        clips.rename(folder)


class Repository:
    """Some files of a commit, downloaded as they are wanted. CorpusError where git fails, or has no such files."""

    def __init__(self, row: Row, template: str, folder: Path):
        self._row = row
        self._folder = Path(tempfile.mkdtemp(dir=folder))
        self._git("init", "--quiet", "--bare")
        self._git("remote", "add", "origin", template.replace("{repository}", row.repository))
        self._git("fetch", "--quiet", "--no-tags", "--depth=1", "--filter=blob:none", "origin", row.commit)

    def files(self) -> Iterator[tuple[str, str, str]]:
        """Git id, path and speaker of every file that is meant."""
        listing = self._git("ls-tree", "-r", "-z", self._row.commit).decode(errors="replace")
        entries = [line.split("\t", 1) for line in listing.split("\0")[:-1]]  # "mode type id", path
        found = [(entry.split()[2], match) for entry, path in entries if (match := re.fullmatch(self._row.paths, path))]
        if not found:
            raise CorpusError(f"{self._row.repository}: has no files {self._row.paths}")
        for id, match in found:
            yield id, match[0], match.groupdict().get("speaker") or self._row.source

    def fetch(self, ids: list[str]) -> None:
        """Download files together, in the way in which git downloads a missing one."""
        if ids:
            options = ("--quiet", "--no-tags", "--no-write-fetch-head", "--filter=blob:none", "--stdin", "origin")
            self._git("-c", "fetch.negotiationAlgorithm=noop", "fetch", *options, input="\n".join(ids))

    def read(self, id: str, path: str) -> np.ndarray:
        """A file as (T,) float32 at RATE. Raises AudioError where it is no sound that can be read."""
        copy = self._folder / f"file{Path(path).suffix.lower()}"
        copy.write_bytes(self._git("cat-file", "blob", id))
        try:
            return audio.read(copy, RATE)[0][0]
        except AudioError as error:
            raise AudioError(str(error).removeprefix(f"{copy}: ")) from error

    def _git(self, *arguments: str, input: str = "") -> bytes:
        command = ["git", f"--git-dir={self._folder}", *arguments]
        never_ask = os.environ | {"GIT_TERMINAL_PROMPT": "0"}
        result = subprocess.run(command, input=input.encode(), capture_output=True, check=False, env=never_ask)
        if result.returncode:
            reason = " ".join(result.stderr.decode(errors="replace").split())
            raise CorpusError(f"{self._row.repository}: git cannot get it ({reason})")
        return result.stdout


@dataclass
class Speaker:
    """The clips of a speaker, at most so many seconds."""

    folder: Path
    most: float  # s
    seconds: float = 0.0  # taken so far
    pending: dict[bool, list[np.ndarray]] = field(default_factory=lambda: {True: [], False: []})  # to join, by is_wide
    num_clips: int = 0

    @property
    def is_complete(self) -> bool:
        """Whether no more is wanted."""
        return self.most - self.seconds < SHORTEST

    def take(self, wav: np.ndarray) -> None:
        """Add a recording, (T,) at RATE. Raises AudioError where it is not worth to be trained with."""
        peak = np.abs(wav).max()
        if peak < SILENT:
            raise AudioError("is silent")
        if np.mean(np.abs(wav) > 0.99 * peak) > CLIPPED:
            raise AudioError("is clipped")
        size = 1 << len(wav).bit_length()  # padded: a length that is a large prime would take long
        power = np.square(np.abs(np.fft.rfft(wav * np.hanning(len(wav)), size)))  # windowed: a cut reaches everywhere
        reaches = {hertz: power[hertz * size // RATE :].sum() > AUDIBLE * power.sum() for hertz in (4100, 8200)}
        if not reaches[4100]:
            raise AudioError("has nothing above 4 kHz")
        wav = trimmed(wav)[: int((self.most - self.seconds) * RATE)]
        self.seconds += len(wav) / RATE
        is_wide = bool(reaches[8200])
        self.pending[is_wide].append(wav)
        if sum(map(len, self.pending[is_wide])) >= JOINED * RATE:
            self.write(is_wide)

    def write(self, is_wide: bool) -> None:
        """Write what is pending, in equal parts if it is too long for a clip; if it is too short, it is dropped."""
        wav = np.concatenate([*self.pending[is_wide], np.zeros(0, np.float32)])
        self.pending[is_wide].clear()
        if len(wav) < SHORTEST * RATE:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        rate, bitrate = WIDE if is_wide else NARROW
        level = 1 - (bitrate - 6000) / 250_000  # as libsndfile counts: 1 are 6 kbit/s, 0 are 256
        for part in np.array_split(wav, int(np.ceil(len(wav) / (LONGEST * RATE)))):
            sound, path = np.clip(audio.resample(part, RATE, rate), -1, 1), self.folder / f"{self.num_clips:03}.opus"
            soundfile.write(path, sound, rate, "OPUS", format="OGG", compression_level=level)
            self.num_clips += 1


def trimmed(wav: np.ndarray) -> np.ndarray:
    """(T,) at RATE without the silence at its ends, but for a pause."""
    hop = RATE // 50
    if len(wav) < hop:
        return wav
    powers = np.square(wav[: len(wav) // hop * hop].reshape(-1, hop)).mean(axis=1)
    loud = np.flatnonzero(powers > FAINT * powers.max()) * hop
    pause = int(PAUSE * RATE)
    return wav[max(loud[0] - pause, 0) : loud[-1] + hop + pause]


def write_summary(output: Path, sources: dict[str, list[Row]]) -> None:
    """Write `sources.tsv`, and print the sums."""
    lines = []
    for name in (name for name in sources if (output / name).exists()):
        clips = audio.find_files(output / name, {".opus"})
        minutes = sum((info.num_samples or 0) / info.sample_rate for info in map(audio.info, clips)) / 60
        licences = ", ".join(dict.fromkeys(row.licence for row in sources[name]))
        lines.append((name, licences, round(minutes, 1), len({clip.parent for clip in clips}), len(clips)))
    write_table(output / "sources.tsv", ("source", "licence", "minutes", "speakers", "clips"), lines)
    minutes, num_speakers = sum(line[2] for line in lines), sum(line[3] for line in lines)
    print(f"{output}: {len(lines)} sources, {minutes:.0f} minutes, {num_speakers} speakers")


if __name__ == "__main__":
    sys.exit(exit_code(main))
