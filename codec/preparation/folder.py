"""Any folder of sound files: who speaks, and in which part, is told by the folders above a file."""

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from codec import audio
from codec.errors import ConfigError, CorpusError
from codec.manifest import UNKNOWN_SPEAKER, Utterance, composed, id_of
from codec.preparation.outcome import SURVEY_FOLDER, Outcome, Part, PreparationConfig, conclude, refuse_file
from codec.preparation.selection import (
    Candidate,
    Rejection,
    exclusion,
    hold_out,
    read_excluded,
    select,
    shared_speakers,
)
from codec.preparation.survey import survey
from codec.progress import Progress

LEVELS = ("part", "speaker", "*")
WHOLE = "all"
"""Part of a file whose folders name none."""
STUB_PREFIX = "._"
"""Of files in which macOS keeps what other file systems have no place for."""


def prepare_folder(
    source: Path,
    folder: Path | None = None,
    *,
    layout: str = "speaker",
    held_out: dict[str, float] | None = None,
    exclude: Sequence[Path] = (),
    config: PreparationConfig | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """List the sound files of a folder in manifests.

    With parts in the layout there is a manifest for each; else one named "train" beside those held out, or "all".

    Args:
        source: folder that is searched; links to folders are followed, hidden folders are left out.
        folder: where the manifests are written; None makes "manifests" in `source`.
        layout: what the folders above a file mean, from `source` down: "speaker", "part/speaker", "*/speaker", or ""
            where they mean nothing.
        held_out: name -> share of the utterances, for manifests that have no speaker in common with the others.
        exclude: lists of files to leave out, by id or by path, absolute or below `source`; see `read_excluded`.
        config: filters and the like.
        progress: see `survey`.

    Raises:
        CorpusError: there is no such folder, no sound file in it, or a list of files to leave out cannot be read.
        ConfigError: the layout or a share makes no sense.
    """
    config = config or PreparationConfig()
    levels, held_out = _levels(layout), held_out or {}
    _check_shares(held_out, levels)
    if not source.is_dir():
        raise CorpusError(f"{source}: {'is a file, a folder is meant' if source.exists() else 'no such folder'}")
    folder = folder or source / "manifests"
    refuse_file(folder)
    sounds, stubs, foreign = classify_files(source)
    unread = audio.passed_over(source, foreign)
    if not sounds:
        raise CorpusError(unread or f"{source}: no sound files in it ({', '.join(sorted(audio.INPUT_SUFFIXES))})")
    listed, candidates, rejections = read_excluded(exclude), [], []
    for path in sounds:
        candidate = _candidate(path, source, levels)
        names = path.relative_to(source).as_posix(), os.path.abspath(path)
        if listed.isdisjoint((candidate.id, *map(composed, names))):
            candidates.append(candidate)
        else:
            rejections.append(exclusion(candidate.part, path))
    warnings = [unread] if unread else []
    if exclude and not rejections:
        warnings.append(f"{', '.join(map(str, exclude))}: names no file of {source}")
    measurements = survey(
        [candidate.path for candidate in candidates],
        source,
        journal_of(folder, WHOLE, config),
        headers_only=config.headers_only,
        jobs=config.jobs,
        progress=progress,
    )
    utterances, others = select(candidates, measurements, config.filters)
    rejections += others + [stub(_candidate(path, source, levels).part, path) for path in stubs]
    parts = _parts(utterances, rejections)
    lists = {part.name: part.utterances for part in parts}
    if held_out:
        lists, remarks = _drawn(utterances, held_out, config.seed)
        warnings += remarks
    warnings += shared_speakers(lists)
    return conclude("folder", source, folder, parts, lists, warnings, config, progress)


def classify_files(folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """The sound files below a folder, the stubs that only look like some, both sorted, and sound that cannot be read.

    A folder that is named like a sound file counts as one, which cannot be read, unless there are sound files in it.
    """
    sounds, stubs, foreign = [], [], []
    for path in audio.walk(folder, with_folders=True):
        if path.suffix.lower() in audio.INPUT_SUFFIXES:
            if path.name.startswith(STUB_PREFIX):
                stubs.append(path)
            elif not path.name.startswith("."):
                sounds.append(path)
        elif path.suffix.lower() in audio.FOREIGN_SUFFIXES and not os.path.isdir(path):
            foreign.append(path)
    places = {place for parent in {path.parent for path in sounds} for place in (parent, *parent.parents)}
    return sorted(path for path in sounds if path not in places), sorted(stubs), foreign


def stub(part: str, path: Path) -> Rejection:
    """The rejection of a file that macOS has left."""
    return Rejection(part, path, "stub", "is what macOS leaves beside a copied file, no sound")


def journal_of(folder: Path, name: str, config: PreparationConfig) -> Path:
    """Where the measurements of a part are kept. Those of headers are kept apart, because they see less."""
    return folder / SURVEY_FOLDER / f"{name}{'.headers' * config.headers_only}.jsonl"


def _levels(layout: str) -> list[str]:
    levels = [level for level in layout.strip("/").split("/") if level]
    named = [level for level in levels if level != "*"]
    if set(levels) - set(LEVELS) or len(named) != len(set(named)):
        raise ConfigError(f"layout must name part and speaker at most once, with * for other levels, got {layout!r}")
    return levels


def _check_shares(held_out: dict[str, float], levels: list[str]) -> None:
    if held_out and "part" in levels:
        raise ConfigError("a folder whose layout has parts is divided already; nothing can be held out as well")
    if any(not 0 < share < 1 for share in held_out.values()) or sum(held_out.values()) >= 1:
        shares = ", ".join(f"{name} {share:g}" for name, share in held_out.items())
        raise ConfigError(f"shares that are held out must lie between 0 and 1 and leave something, got {shares}")


def _candidate(path: Path, source: Path, levels: list[str]) -> Candidate:
    id = id_of(path.relative_to(source))
    folders = dict(zip(levels, id.split("/")[:-1], strict=False))
    part, speaker = folders.get("part", WHOLE), folders.get("speaker", UNKNOWN_SPEAKER)
    return Candidate(path, id, speaker, part)


def _parts(utterances: Sequence[Utterance], rejections: Sequence[Rejection]) -> list[Part]:
    names = sorted({utterance.part for utterance in utterances} | {rejection.part for rejection in rejections})
    parts = {name: Part(name, [], []) for name in names}
    for utterance in utterances:
        parts[utterance.part].utterances.append(utterance)
    for rejection in rejections:
        parts[rejection.part].rejections.append(rejection)
    return list(parts.values())


def _drawn(
    utterances: Sequence[Utterance], held_out: dict[str, float], seed: int
) -> tuple[dict[str, list[Utterance]], list[str]]:
    """All lists, of which each is a part of its own, and a sentence about each that is far from its share."""
    drawn = hold_out(utterances, held_out, seed)
    lists = {name: [replace(utterance, part=name) for utterance in chosen] for name, chosen in drawn.items()}
    remarks = []
    for name, share in held_out.items():
        found, meant = len(lists[name]), math.ceil(share * len(utterances))
        if abs(found - meant) > max(meant / 2, 2):
            remarks.append(
                f"{name}: has {found} of {len(utterances)} utterances instead of {meant}, as known speakers are "
                "held out whole, and no others"
            )
    return lists, remarks
