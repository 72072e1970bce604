"""Which sound files of a corpus are kept, and why the others are not."""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from codec.errors import CorpusError
from codec.limits import refuse
from codec.manifest import RENAME, Utterance, can_stand_in_manifest, composed, is_unknown, read_rows
from codec.preparation.survey import SILENCE_DB, Measurement

DAMAGE = frozenset({"unreadable", "no sound", "rate", "channels", "misplaced", "duplicate", "name", "missing"})
"""Reasons that mean something is wrong with the corpus. The others are choices, or litter that is no utterance."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A sound file that may become an utterance."""

    path: Path
    id: str
    speaker: str
    part: str


@dataclass(frozen=True, slots=True)
class Rejection:
    """A file that is not in any manifest, or one that should be there and is not."""

    part: str
    path: Path
    reason: str  # one or two words
    detail: str  # the rest of a sentence that begins with the path

    @property
    def is_damage(self) -> bool:
        """Whether something is wrong with the corpus."""
        return self.reason in DAMAGE


@dataclass
class Filters:
    """What training should not see. Where samples were not read, only durations are compared."""

    min_seconds: float = 0.5
    max_seconds: float = 40.0
    max_silent: float = 0.9  # share of the duration in stretches of 50 ms below -50 dB
    max_clipped: float = 0.01  # share of samples at full scale

    def __post_init__(self) -> None:
        mistakes = []
        if not 0 <= self.min_seconds < self.max_seconds:
            mistakes.append(
                f"min_seconds must be at least 0 and below max_seconds, got {self.min_seconds:g} and "
                f"{self.max_seconds:g}"
            )
        for name in ("max_silent", "max_clipped"):
            if not 0 <= getattr(self, name) <= 1:
                mistakes.append(f"{name} must be between 0 and 1, got {getattr(self, name):g}")
        refuse(mistakes)

    def verdict(self, measurement: Measurement) -> tuple[str, str] | None:
        """Reason and detail why a file is dropped; None where it is kept."""
        if measurement.seconds < self.min_seconds:
            return "short", f"lasts {measurement.seconds:.3f} s, at least {self.min_seconds:g} s are wanted"
        if measurement.seconds > self.max_seconds:
            return "long", f"lasts {measurement.seconds:.3f} s, at most {self.max_seconds:g} s are wanted"
        if measurement.silent_share > self.max_silent:
            silent = f"{100 * measurement.silent_share:.1f} % of it is below {SILENCE_DB:g} dB"
            return "silent", f"{silent}, at most {100 * self.max_silent:g} % is wanted"
        if measurement.clipped_share > self.max_clipped:
            clipped = f"{100 * measurement.clipped_share:.2f} % of its samples are at full scale"
            return "clipped", f"{clipped}, at most {100 * self.max_clipped:g} % is wanted"
        return None


def read_excluded(lists: Iterable[Path]) -> set[str]:
    """What lists of files to leave out name, `composed`: the ids of a manifest, or ids and paths, one a line.

    Raises:
        CorpusError: a list cannot be read.
    """
    names = set()
    for path in lists:
        try:
            with open(path, encoding="utf-8-sig") as stream:
                first = stream.readline()
                if "\t" in first:
                    names |= {row[0] for row in read_rows(path)}
                else:
                    names |= {line.strip() for line in (first, *stream) if line.strip()}
        except UnicodeDecodeError as error:
            raise CorpusError(f"{path}: is no list of files to leave out, it is not UTF-8 text") from error
        except OSError as error:
            raise CorpusError(f"{path}: is no list of files to leave out ({error.strerror})") from error
    return set(map(composed, names))


def exclusion(part: str, path: Path) -> Rejection:
    """The rejection of a file that such a list names."""
    return Rejection(part, path, "excluded", "is in a list of files to leave out")


def select(
    candidates: Sequence[Candidate],
    measurements: Sequence[Measurement],
    filters: Filters | None,
    *,
    sample_rate: int | None = None,
    channels: int | None = None,
) -> tuple[list[Utterance], list[Rejection]]:
    """Divide sound files into utterances and rejections.

    Args:
        candidates: of one corpus.
        measurements: one for each.
        filters: what is dropped although nothing is wrong with it; None drops nothing.
        sample_rate: that every file must have, Hz; None allows any.
        channels: that every file must have; None allows any.
    """
    utterances, rejections = [], []
    taken: dict[str, Path] = {}
    for candidate, measurement in sorted(zip(candidates, measurements, strict=True), key=lambda pair: pair[0].path):
        fault = _fault(candidate, measurement, sample_rate, channels, taken)
        if fault is None and filters is not None:
            fault = filters.verdict(measurement)
        if fault is None:
            taken[candidate.id] = candidate.path
            rates = measurement.num_samples, measurement.sample_rate
            utterances.append(Utterance(candidate.id, candidate.path, *rates, candidate.speaker, candidate.part))
        else:
            rejections.append(Rejection(candidate.part, candidate.path, *fault))
    return utterances, rejections


def _fault(
    candidate: Candidate,
    measurement: Measurement,
    sample_rate: int | None,
    channels: int | None,
    taken: dict[str, Path],
) -> tuple[str, str] | None:
    if not all(map(can_stand_in_manifest, (str(candidate.path), candidate.id, candidate.speaker, candidate.part))):
        return "name", f"has a name with a tab, a line break or bytes that are no text; {RENAME}"
    if measurement.problem:
        return "unreadable", measurement.problem
    if measurement.peak == 0:
        return "no sound", "every sample is zero"
    if sample_rate not in (None, measurement.sample_rate):
        return "rate", f"has a sample rate of {measurement.sample_rate} Hz, the corpus has {sample_rate} Hz"
    if channels not in (None, measurement.channels):
        return "channels", f"has {measurement.channels} channels, the corpus has {channels}"
    if candidate.id in taken:
        return "duplicate", f"has the id of {taken[candidate.id]}"
    return None


# ------------------------------------------------------------------------------------------------ speakers and samples


def shared_speakers(groups: Mapping[str, Iterable[Utterance]]) -> list[str]:
    """A sentence about each two groups of utterances, by their names, that have known speakers in common."""
    speakers = {name: {u.speaker for u in group if not is_unknown(u.speaker)} for name, group in groups.items()}
    shared = {(a, b): sorted(speakers[a] & speakers[b]) for a, b in combinations(speakers, 2)}
    return [
        f"{a} and {b} have {len(found)} speaker{'s' * (len(found) > 1)} in common, "
        f"{', '.join(found[:5])}{' ...' * (len(found) > 5)}"
        for (a, b), found in shared.items()
        if found
    ]


def subset(utterances: Iterable[Utterance], count: int, seed: int = 0) -> list[Utterance]:
    """A sample with as equal a number of utterances per speaker as there are; the same for any order of the input."""
    by_speaker = defaultdict(list)
    for utterance in utterances:
        by_speaker[utterance.speaker].append((_hash(utterance.id, seed), utterance))
    ranked = []
    for own in by_speaker.values():
        own.sort(key=lambda pair: pair[0])
        ranked += [(rank, digest, utterance) for rank, (digest, utterance) in enumerate(own)]
    ranked.sort(key=lambda entry: entry[:2])
    return [utterance for _, _, utterance in ranked[:count]]


def hold_out(utterances: Sequence[Utterance], shares: dict[str, float], seed: int = 0) -> dict[str, list[Utterance]]:
    """Divide utterances into "train" and held-out lists that have no known speaker in common.

    Whole speakers are drawn until a list is as near to its share of the utterances as they allow; larger ones than are
    still due are passed over. Utterances without a known speaker stay in "train". Where there are not enough speakers
    for that (one for each list), single utterances are drawn from all.

    Args:
        utterances: in any order.
        shares: name of each held-out list -> share of the utterances, in (0, 1).
        seed: of the draw.
    """
    sizes = Counter(u.speaker for u in utterances if not is_unknown(u.speaker))
    by_speaker = len(sizes) > len(shares)
    if not by_speaker:
        sizes = Counter(u.id for u in utterances)
    waiting = sorted(sizes, key=lambda name: _hash(name, seed))
    list_of: dict[str, str] = {}
    for index, (name, share) in enumerate(shares.items()):
        wanted = math.ceil(share * len(utterances))
        still_due = len(shares) - index - 1
        is_empty = True
        while wanted > 0 and len(waiting) > still_due + 1:
            places = range(len(waiting))
            place = next((place for place in reversed(places) if sizes[waiting[place]] <= wanted), None)
            if place is None:
                place = min(places, key=lambda place: sizes[waiting[place]])
                if not is_empty and sizes[waiting[place]] >= 2 * wanted:
                    break
            drawn = waiting.pop(place)
            list_of[drawn], is_empty = name, False
            wanted -= sizes[drawn]
    result: dict[str, list[Utterance]] = {name: [] for name in ("train", *shares)}
    for utterance in utterances:
        key = utterance.speaker if by_speaker else utterance.id
        result[list_of.get(key, "train")].append(utterance)
    return result


def _hash(text: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed} {text}".encode()).digest()
