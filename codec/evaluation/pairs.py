"""Which file belongs to which, and what makes a pair of files fit to be scored.

Nothing is skipped in silence: whatever cannot be scored becomes a `Problem` with the name and one sentence.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np

from codec import audio
from codec.errors import AudioError
from codec.evaluation.metric import Pair
from codec.evaluation.resampling import resample
from codec.manifest import UNKNOWN_SPEAKER, composed, read_manifest, require_file_names, sounds_by_id, speaker_of
from codec.output import naming

FOLDER_TOLERANCE = 0.025
"""Seconds by which an estimate of unknown origin may be longer or shorter: a frame at 40 frames per second."""

Element = TypeVar("Element")

SILENCE = 1e-4
"""A signal that never exceeds this (-80 dB of full scale, three steps of a 16-bit file) is silence."""


@dataclass(frozen=True)
class Reference:
    """An utterance as it was recorded."""

    path: Path
    speaker: str  # see `codec.manifest.is_unknown`


@dataclass(frozen=True)
class Item:
    """An utterance to be scored, as files."""

    id: str
    reference: Path
    estimate: Path
    speaker: str = UNKNOWN_SPEAKER

    @property
    def text(self) -> str | None:
        """What is said, where a file `.normalized.txt` or `.txt` beside the reference tells.

        Raises:
            OSError: it cannot be read.
        """
        for suffix in (".normalized.txt", ".txt"):
            path = self.reference.with_suffix(suffix)
            if os.path.isfile(path):
                with naming(path):
                    return path.read_text(encoding="utf-8", errors="replace").strip() or None
        return None


@dataclass(frozen=True)
class Problem:
    """Something that has no score: an utterance, or one metric of it."""

    id: str
    metric: str  # "" for the whole utterance
    reason: str


def find_references(data: Path) -> tuple[dict[str, Reference], list[Problem]]:
    """The sound files of a folder, whose first-level sub-folders name the speakers, or of a manifest, by id.

    Raises:
        CodecError: there are none, or the manifest is not one.
    """
    if data.is_dir() or not data.exists():
        sounds, problems = _in_folder(data)
        return {id: Reference(path, speaker_of(Path(id))) for id, path in sounds.items()}, problems
    references, problems = {}, []
    utterances = read_manifest(data)
    require_file_names((utterance.id for utterance in utterances), data)
    for utterance in utterances:
        id = composed(utterance.id)
        try:
            audio.require_regular(utterance.path)
            references[id] = Reference(utterance.path, utterance.speaker)
        except AudioError as error:
            problems.append(Problem(id, "", str(error)))
    return dict(sorted(references.items())), problems


def _in_folder(folder: Path) -> tuple[dict[str, Path], list[Problem]]:
    sounds, mistakes = sounds_by_id(folder)
    return sounds, [Problem(id.encode(errors="backslashreplace").decode(), "", reason) for id, reason in mistakes]


def pair_folders(reference: Path, estimate: Path) -> tuple[list[Item], list[Problem]]:
    """Files of the same relative path, suffixes aside; where no two agree, files of the same name in any subfolder.

    Raises:
        CodecError: a folder is missing or has no sound files, or no two files belong together.
    """
    (references, problems), (estimates, more) = find_references(reference), _in_folder(estimate)
    problems += more
    if not set(references) & set(estimates):
        estimates = _by_name(references, estimates)
        if not estimates:
            raise AudioError(
                f"{estimate}: no file is named like one of {reference}; an estimate has the relative path of its "
                f"reference, or at least its name"
            )
    problems += [Problem(id, "", f"has no estimate below {estimate}") for id in references if id not in estimates]
    problems += [
        Problem(id, "", f"{path} has no reference in {reference}")
        for id, path in estimates.items()
        if id not in references
    ]
    items = [Item(id, found.path, estimates[id], found.speaker) for id, found in references.items() if id in estimates]
    return items, problems


def _by_name(references: Iterable[str], estimates: dict[str, Path]) -> dict[str, Path]:
    """Estimates by the id of the one reference with the same file name; the others keep theirs."""
    ids = _unique(references)
    names = _unique(estimates)
    if not set(ids) & set(names):
        return {}
    return {ids.get(PurePosixPath(id).name, id) if PurePosixPath(id).name in names else id: path
            for id, path in estimates.items()}  # fmt: skip


def _unique(ids: Iterable[str]) -> dict[str, str]:
    """File name -> id, of names that only one id has."""
    found: dict[str, list[str]] = {}
    for id in ids:
        found.setdefault(PurePosixPath(id).name, []).append(id)
    return {name: ids[0] for name, ids in found.items() if len(ids) == 1}


def load_pair(item: Item, tolerance: float | None = None, delay: int = 0) -> tuple[Pair, int]:
    """Read both files and bring them to the estimate's sample rate and to the shorter length.

    Args:
        item: the files. Several channels are averaged.
        tolerance: samples of the estimate by which the lengths may differ; None means `FOLDER_TOLERANCE`.
        delay: samples by which the codec is late, which are removed from the beginning of the estimate. The length may
            be right with or without them.

    Returns:
        The pair, and by how many samples the estimate was longer (negative: shorter).

    Raises:
        AudioError: a file cannot be read, has NaN, is silent, or the lengths differ by more.
        OSError: the text beside the reference cannot be read.
    """
    reference, its_rate = audio.read(item.reference)
    estimate, sample_rate = audio.read(item.estimate)  # (1, T)
    for path, wav in ((item.reference, reference), (item.estimate, estimate)):
        if (peak := float(np.abs(wav).max())) <= SILENCE:
            what = "digital silence" if peak == 0 else f"silence, its largest sample is {peak:.1e}"
            raise AudioError(f"{path}: is {what}")
    reference = resample(reference[0], its_rate, sample_rate)
    allowed = FOLDER_TOLERANCE * sample_rate if tolerance is None else tolerance
    estimate = estimate[0, delay:]
    surplus = len(estimate) - len(reference)
    if min(abs(surplus), abs(surplus + delay)) > allowed:
        raise AudioError(
            f"{item.estimate}: is {abs(surplus)} samples ({abs(surplus) / sample_rate:.3f} s) "
            f"{'longer' if surplus > 0 else 'shorter'} than its reference, {allowed:.0f} are allowed; if the codec "
            f"does that, allow it with --hop-length"
        )
    length = min(len(reference), len(estimate))
    if length == 0:
        raise AudioError(f"{item.estimate}: has no samples left behind the delay of {delay}")
    return Pair(reference[:length], estimate[:length], sample_rate, item.id, item.text), surplus


def choose_some(utterances: Sequence[Element], limit: int | None) -> list[Element]:
    """At most `limit` utterances, spread evenly over their order, so that a subset is not one speaker's."""
    if limit is None or limit >= len(utterances):
        return list(utterances)
    return [utterances[number * len(utterances) // limit] for number in range(limit)]
