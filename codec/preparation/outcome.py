"""What a preparation leaves: manifests, the list of rejected files, a summary, and sentences for people."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codec import __version__
from codec.digests import sha256
from codec.errors import CorpusError
from codec.limits import excess, refuse
from codec.manifest import SUFFIX, Utterance, place_of, require_unique_ids, write_manifest
from codec.output import write_json
from codec.preparation.selection import Filters, Rejection, subset
from codec.progress import Progress
from codec.tables import aligned, write_table

REJECTED_NAME = "rejected.tsv"
SUMMARY_NAME = "prepare.json"
SURVEY_FOLDER = ".survey"


@dataclass
class PreparationConfig:
    """What every preparation can be told."""

    filters: Filters = field(default_factory=Filters)
    headers_only: bool = False  # do not read samples: faster, but damage, silence and clipping stay unseen
    subset: int = 0  # utterances per manifest, as equally over speakers as can be; 0 keeps all
    seed: int = 0  # of everything drawn
    max_damaged: float = 0.001  # share of a part's files, excluded ones among them; more is a problem
    strict: bool = False  # every warning is a problem
    jobs: int | None = None  # processes, see `survey`

    def __post_init__(self) -> None:
        mistakes = []
        if self.subset < 0:
            mistakes.append(f"subset must be a number of utterances, got {self.subset}")
        if not 0 <= self.max_damaged <= 1:
            mistakes.append(f"max_damaged must be between 0 and 1, got {self.max_damaged:g}")
        if self.jobs is not None and self.jobs < 0:
            mistakes.append(f"jobs must be at least 0, got {self.jobs}")
        refuse(mistakes)


@dataclass
class Part:
    """What became of one part of a corpus."""

    name: str
    utterances: list[Utterance]
    rejections: list[Rejection]
    published: tuple[int, ...] = ()  # numbers of files that are published for it, the official one first

    @property
    def num_files(self) -> int:
        """Sound files found."""
        return len(self.utterances) + sum(r.reason not in ("stub", "missing") for r in self.rejections)


@dataclass
class Outcome:
    """What a preparation did."""

    folder: Path
    parts: list[Part]
    manifests: dict[str, list[Utterance]]  # by file name
    warnings: list[str]
    problems: list[str]  # what makes the command fail, although the manifests are there
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def rejections(self) -> list[Rejection]:
        """Of all parts."""
        return [rejection for part in self.parts for rejection in part.rejections]


def refuse_file(folder: Path) -> None:
    """Raises CorpusError where manifests cannot be put into a folder because it is a file."""
    if folder.exists() and not folder.is_dir():
        raise CorpusError(f"{folder}: is a file; name a folder for the manifests")


def conclude(
    corpus: str,
    root: Path,
    folder: Path,
    parts: Sequence[Part],
    lists: Mapping[str, Sequence[Utterance]],
    warnings: Sequence[str],
    config: PreparationConfig,
    progress: Progress | None = None,
) -> Outcome:
    """Write manifests, rejected files and summary; the summary last.

    Args:
        corpus: name of the corpus.
        root: paths below it are written relative to the manifests.
        folder: where all of it is written.
        parts: of the corpus.
        lists: name of each manifest without suffix -> its utterances. One without utterances is not written, and one of
            an earlier preparation removed.
        warnings: what was seen that may be meant.
        config: what was asked for.
        progress: called with "written", manifests and manifests in all.

    Raises:
        CorpusError: two files of a list have the same id; nothing is written then.
        OSError: the system refuses.
    """
    chosen = {
        f"{name}{SUFFIX}": subset(utterances, config.subset, config.seed) if config.subset else list(utterances)
        for name, utterances in lists.items()
    }
    if REJECTED_NAME in chosen:
        raise CorpusError(
            f"{root}: no part can have the name {Path(REJECTED_NAME).stem} of what is left out; rename it"
        )
    for name, utterances in chosen.items():
        require_unique_ids(utterances, folder / name)
    empty = [name for name, utterances in chosen.items() if not utterances]
    chosen = {name: utterances for name, utterances in chosen.items() if utterances}
    outcome = Outcome(folder, list(parts), chosen, list(warnings), [])
    for part in parts:
        _judge(part, config.max_damaged, outcome)
    if not chosen and not outcome.problems:
        outcome.warnings.append("nothing is new, so there is no list")
    if config.strict:
        outcome.problems, outcome.warnings = outcome.problems + outcome.warnings, []
    folder.mkdir(parents=True, exist_ok=True)
    rejected = sorted((r.part, place_of(r.path, folder, root), r.reason, r.detail) for r in outcome.rejections)
    write_table(folder / REJECTED_NAME, ("part", "path", "reason", "detail"), rejected)
    for name in empty:
        (folder / name).unlink(missing_ok=True)  # of an earlier preparation
    for number, (name, utterances) in enumerate(chosen.items(), 1):
        write_manifest(folder / name, utterances, root)
        if progress:
            progress("written", number, len(chosen))
    outcome.summary = _summary(corpus, root, outcome, config)
    write_json(folder / SUMMARY_NAME, outcome.summary)
    return outcome


def describe(outcome: Outcome, max_files: int = 20) -> list[str]:
    """Lines for people: a table of parts, one of manifests, and what was rejected as damaged."""
    rows = [("part", "files", "published", "kept", "hours", "speakers", "left out")]
    for name, facts in outcome.summary["parts"].items():
        left_out = ", ".join(f"{count} {reason}" for reason, count in facts["rejected"].items())
        counts = (str(facts["files"]), str(facts["published"] or "-"), str(facts["utterances"]))
        rows.append((name, *counts, f"{facts['hours']:.2f}", str(facts["speakers"]), left_out or "-"))
    lines = aligned(rows, words=("part", "left out"))
    files = [("manifest", "utterances", "hours", "speakers")]
    for name, facts in outcome.summary["manifests"].items():
        numbers = (str(facts["utterances"]), f"{facts['hours']:.2f}")
        files.append((str(outcome.folder / name), *numbers, str(facts["speakers"])))
    lines += ["", *aligned(files, words=("manifest",))]
    damaged = sorted((r for r in outcome.rejections if r.is_damage), key=lambda r: (r.part, r.path))
    if damaged:
        lines += ["", *(f"{rejection.path}: {rejection.detail}" for rejection in damaged[:max_files])]
    if len(outcome.rejections) > min(len(damaged), max_files):
        lines += ["", f"all {len(outcome.rejections)} files left out: {outcome.folder / REJECTED_NAME}"]
    return lines


def _judge(part: Part, max_damaged: float, outcome: Outcome) -> None:
    damaged = [rejection for rejection in part.rejections if rejection.is_damage]
    # With excluded files: what could not be used beside them would else be too much in every list of later files.
    expected = part.num_files + sum(rejection.reason == "missing" for rejection in damaged)
    if damaged:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(Counter(r.reason for r in damaged).items()))
        sentence = f"{part.name}: {len(damaged)} of {expected} files cannot be used ({reasons})"
        too_many = excess(len(damaged), expected, max_damaged, "the lists are written without them")
        (outcome.problems if too_many else outcome.warnings).append(sentence + too_many)
    if part.published and part.num_files not in part.published:
        difference = part.num_files - part.published[0]
        outcome.warnings.append(
            f"{part.name}: has {part.num_files} sound files, {abs(difference)} "
            f"{'more' if difference > 0 else 'fewer'} than the published {part.published[0]}"
        )
    has_known = any(rejection.reason == "excluded" for rejection in part.rejections)
    if not part.utterances and not has_known:  # else nothing is new in it
        outcome.problems.append(f"{part.name}: no utterance is left, so it has no manifest")


def _summary(corpus: str, root: Path, outcome: Outcome, config: PreparationConfig) -> dict[str, Any]:
    """Nothing in it depends on when, how fast or by how many processes it was made."""
    # JSON has no infinity.
    filters = {name: value if value < math.inf else None for name, value in vars(config.filters).items()}
    settings = {"headers_only": config.headers_only, "subset": config.subset, "seed": config.seed, **filters}
    parts = {
        part.name: {
            "files": part.num_files,
            "published": part.published[0] if part.published else None,
            **_facts(part.utterances),
            "rejected": dict(sorted(Counter(r.reason for r in part.rejections).items())),
        }
        for part in outcome.parts
    }
    manifests = {
        name: {**_facts(utterances), "sha256": sha256(outcome.folder / name)}
        for name, utterances in outcome.manifests.items()
    }
    return {
        "corpus": corpus,
        "made_by": f"codec {__version__}",
        "root": place_of(root, outcome.folder, root),
        "settings": settings,
        "parts": parts,
        "manifests": manifests,
        "warnings": outcome.warnings,
        "problems": outcome.problems,
    }


def _facts(utterances: Sequence[Utterance]) -> dict[str, Any]:
    return {
        "utterances": len(utterances),
        "hours": round(sum(utterance.seconds for utterance in utterances) / 3600, 4),
        "speakers": len({utterance.speaker for utterance in utterances}),
    }
