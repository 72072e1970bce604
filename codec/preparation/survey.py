"""Every sound file of a corpus measured once, by several processes, with a journal that survives interruption.

Measuring and deciding are apart: the journal holds what was found, never what was thought of it, so that other filters
need no second look at the audio.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from codec import audio
from codec.cores import num_cores
from codec.errors import AudioError
from codec.input import is_of, parse_json
from codec.output import exists, naming
from codec.progress import Progress
from codec.workers import Died, work_in_batches

SILENCE_DB = -50.0
"""A stretch whose root mean square is below this, relative to full scale, is silent."""
STRETCH_SECONDS = 0.05
FULL_SCALE = 0.999
"""Samples from here on count as clipped."""
FILES_PER_BATCH = 32
_VERSION = 1  # of what is measured; a journal of another version is not used


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a sound file is like. Where it cannot be read, `problem` says why and the numbers are 0."""

    num_bytes: int
    modified: int  # ns since 1970
    problem: str = ""
    num_samples: int = 0  # of one channel
    sample_rate: int = 0  # Hz
    channels: int = 0
    peak: float = -1.0  # largest magnitude; -1 where only the header was read, and so are the next two
    silent_share: float = -1.0  # of the duration, in stretches of 50 ms below -50 dB
    clipped_share: float = -1.0  # of the samples

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.num_samples / self.sample_rate


def measure(path: Path, headers_only: bool = False) -> Measurement:
    """Look at one sound file. With `headers_only` its samples are not read, and their faults stay unseen."""
    try:
        status = path.stat()
    except OSError as error:
        return Measurement(0, 0, f"cannot be opened ({error.strerror})")
    try:
        audio.require_regular(path)
        with audio.SoundReader(path) as sound:
            read = _header if headers_only and sound.info.num_samples is not None else _samples
            values = read(sound, status.st_size)
    except AudioError as error:
        return Measurement(status.st_size, status.st_mtime_ns, str(error).removeprefix(f"{path}: "))
    return Measurement(status.st_size, status.st_mtime_ns, "", *values)


def _header(sound: audio.SoundReader, num_bytes: int) -> tuple[int, int, int]:
    info = sound.info
    num_samples = info.num_samples or 0
    kind, _, subtype = info.format.partition(" ")
    promised = num_samples * info.channels * audio.SAMPLE_BYTES.get(subtype, 0) if kind.startswith("WAV") else 0
    if promised > num_bytes:
        raise AudioError(f"the file is cut off, its header promises {num_samples} samples; copy it again")
    if not num_samples:
        raise AudioError("has no samples; record at least one")
    return num_samples, info.sample_rate, info.channels


def _samples(sound: audio.SoundReader, num_bytes: int) -> tuple[int, int, int, float, float, float]:
    info = sound.info
    stretch = max(1, round(STRETCH_SECONDS * info.sample_rate))
    threshold = 10 ** (SILENCE_DB / 10)
    total, silent, clipped, peak = 0, 0, 0, 0.0
    for block in sound.channel_blocks():  # (C, T)
        magnitude = np.abs(block)
        peak = max(peak, float(magnitude.max()))
        clipped += int(np.count_nonzero(magnitude >= FULL_SCALE))
        starts = np.arange(0, block.shape[1], stretch)
        lengths = np.diff(starts, append=block.shape[1])
        power = np.add.reduceat(np.square(block.mean(axis=0), dtype=np.float64), starts) / lengths
        silent += int(lengths[power < threshold].sum())
        total += block.shape[1]
    shares = (round(silent / total, 6), round(clipped / total / info.channels, 6))
    return total, info.sample_rate, info.channels, peak, *shares


def survey(
    paths: Sequence[Path],
    root: Path,
    journal: Path,
    *,
    headers_only: bool = False,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> list[Measurement]:
    """Measure sound files, except those that the journal knows and that have not changed since.

    Args:
        paths: of the files, below `root`.
        root: the journal names files relative to it.
        journal: file that is added to as files are measured, so that an interrupted survey goes on where it stopped.
        headers_only: see `measure`.
        jobs: processes, with one thread each; 0 does the work in this one. None takes one per core.
        progress: called with "measured", files done and files in all.

    Returns:
        A measurement for each path, in their order, whatever the number of processes.

    Raises:
        CodecError: processes end as soon as they begin.
        OSError: the journal cannot be read or written.
    """
    names = {path: path.relative_to(root).as_posix() for path in paths}
    known = _read_journal(journal)
    results = {path: known[name] for path, name in names.items() if name in known and _is_current(known[name], path)}
    missing = [path for path in paths if path not in results]
    batches = [missing[start : start + FILES_PER_BATCH] for start in range(0, len(missing), FILES_PER_BATCH)]
    if progress:
        progress("measured", len(results), len(paths))
    if batches:
        journal.parent.mkdir(parents=True, exist_ok=True)
        jobs = num_cores() if jobs is None else jobs
        with naming(journal), open(journal, "ab") as stream:
            # The line break ends a line that a kill has cut.
            stream.write(("\n" * bool(stream.tell()) + json.dumps({"version": _VERSION}) + "\n").encode())
            for number, measured in work_in_batches(_prepare, (headers_only,), batches, jobs):
                for path, found in zip(batches[number], measured, strict=True):
                    # What is not known to be as it was is measured again the next time.
                    results[path] = Measurement(0, 0, str(found)) if isinstance(found, Died) else found
                    stream.write((json.dumps({"path": names[path], **asdict(results[path])}) + "\n").encode())
                stream.flush()
                if progress:
                    progress("measured", len(results), len(paths))
    return [results[path] for path in paths]


def _prepare(headers_only: bool) -> Callable[[Sequence[Path]], list[Measurement]]:
    return lambda paths: [measure(path, headers_only) for path in paths]


def _read_journal(path: Path) -> dict[str, Measurement]:
    """What a journal holds; the last entry of a file counts, and cut or damaged lines are passed over."""
    known: dict[str, Measurement] = {}
    if not exists(path):
        return known
    with open(path, "rb") as stream:
        is_ours = False
        for line in stream:
            entry = _entry(line)
            if "version" in entry:
                is_ours = entry["version"] == _VERSION
            elif is_ours and "path" in entry:
                name = entry.pop("path")
                known[name] = Measurement(**entry)
    return known


_TYPES = get_type_hints(Measurement) | {"path": str}
"""Of what an entry holds."""


def _entry(line: bytes) -> dict[str, Any]:
    try:
        entry = parse_json(line)
    except ValueError:
        return {}
    if isinstance(entry, dict) and "version" in entry:
        return entry
    is_whole = isinstance(entry, dict) and entry.keys() == _TYPES.keys()
    if not (is_whole and all(is_of(value, _TYPES[name]) for name, value in entry.items())):
        return {}
    least = 0 if entry["problem"] else 1  # what could be read has a duration
    return entry if all(least <= entry[name] < 1 << 63 for name in ("num_samples", "sample_rate")) else {}


def _is_current(found: Measurement, path: Path) -> bool:
    try:
        status = path.stat()
    except OSError:
        return False
    return (found.num_bytes, found.modified) == (status.st_size, status.st_mtime_ns)
