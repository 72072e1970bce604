"""LibriTTS and LibriTTS-R: what is published about them, and the way from nothing to checked manifests.

The corpora: OpenSLR 60 (arXiv:1904.02882) and 141 (arXiv:2305.18802), 24 kHz mono, CC BY 4.0.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from codec.download import download, sum_like
from codec.errors import ConfigError, CorpusError
from codec.manifest import Utterance
from codec.preparation.archives import require_space, unpack
from codec.preparation.folder import classify_files, journal_of, stub
from codec.preparation.outcome import Outcome, Part, PreparationConfig, conclude, refuse_file
from codec.preparation.selection import Candidate, Rejection, exclusion, read_excluded, select, shared_speakers
from codec.preparation.survey import Measurement, survey
from codec.progress import Progress

SAMPLE_RATE = 24000  # Hz
MIRRORS = ("https://www.openslr.org", "https://us.openslr.org", "https://openslr.elda.org",
           "https://openslr.magicdatatech.com")  # fmt: skip
UNPACKED_SIZE = 1.3
"""Of a part on disk, as a multiple of its archive."""
SPLITS = {
    "train": ("train-clean-100", "train-clean-360", "train-other-500"),
    "dev": ("dev-clean", "dev-other"),
    "test": ("test-clean", "test-other"),
}
PARTS = tuple(part for parts in SPLITS.values() for part in parts)
FILE_COUNTS = {
    # Of the official archives; for training parts other copies of the corpus count a few files less.
    "dev-clean": (5736,),
    "dev-other": (4613,),
    "test-clean": (4837,),
    "test-other": (5120,),
    "train-clean-100": (33236, 33232),
    "train-clean-360": (116500, 116426),
    "train-other-500": (205044, 205035),
}


@dataclass(frozen=True)
class Archive:
    """A published archive of one part."""

    name: str
    md5: str
    num_bytes: int | None = None


@dataclass(frozen=True)
class Variant:
    """One of the two corpora."""

    folder: str  # that its archives unpack to
    resource: int  # number at OpenSLR
    archives: dict[str, Archive]  # by part


VARIANTS = {
    "libritts": Variant(
        "LibriTTS",
        60,
        {
            "dev-clean": Archive("dev-clean.tar.gz", "0c3076c1e5245bb3f0af7d82087ee207", 1_291_469_655),
            "dev-other": Archive("dev-other.tar.gz", "815555d8d75995782ac3ccd7f047213d", 924_804_676),
            "test-clean": Archive("test-clean.tar.gz", "7bed3bdb047c4c197f1ad3bc412db59f", 1_230_670_113),
            "test-other": Archive("test-other.tar.gz", "ae3258249472a13b5abef2a816f733e4", 964_502_297),
            "train-clean-100": Archive("train-clean-100.tar.gz", "4a8c202b78fe1bc0c47916a98f3a2ea8", 7_723_686_890),
            "train-clean-360": Archive("train-clean-360.tar.gz", "a84ef10ddade5fd25df69596a2767b2d", 27_504_073_644),
            "train-other-500": Archive("train-other-500.tar.gz", "7b181dd5ace343a5f38427999684aa6f", 44_565_031_479),
        },
    ),
    "libritts-r": Variant(
        "LibriTTS_R",
        141,
        {
            "dev-clean": Archive("dev_clean.tar.gz", "2c1f5312914890634cc2d15783032ff3"),
            "dev-other": Archive("dev_other.tar.gz", "62d3a80ad8a282b6f31b3904f0507e4f"),
            "test-clean": Archive("test_clean.tar.gz", "4d373d453eb96c0691e598061bbafab7"),
            "test-other": Archive("test_other.tar.gz", "dbc0959d8bdb6d52200595cabc9995ae"),
            "train-clean-100": Archive("train_clean_100.tar.gz", "6df668d8f5f33e70876bfa33862ad02b"),
            "train-clean-360": Archive("train_clean_360.tar.gz", "382eb3e64394b3da6a559f864339b22c"),
            "train-other-500": Archive("train_other_500.tar.gz", "a37a8e9f4fe79d20601639bf23d1add8"),
        },
    ),
}


@dataclass
class Sources:
    """Where parts come from that are not unpacked yet."""

    archives: Path | None = None  # folder of archives, which must exist; None means the corpus folder
    download: bool = False  # fetch what is missing; without it nothing touches the network
    mirrors: Sequence[str] = MIRRORS  # tried in order
    check_sums: bool = True  # refuse archives whose MD5 sum is not the published one
    keep_archives: bool = False  # also those that were fetched here and are unpacked


def prepare_libritts(
    root: Path,
    folder: Path | None = None,
    *,
    variant: str = "libritts",
    parts: Sequence[str] = (),
    sources: Sources | None = None,
    filter_all: bool = False,
    exclude: Sequence[Path] = (),
    config: PreparationConfig | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Bring LibriTTS or LibriTTS-R to `root` as far as it is not there, check it and list it in manifests.

    There is a manifest for each part under its official name, and "train" and "dev" for the parts of each together.
    Those of parts that are not asked for stay as they are.

    Args:
        root: folder that holds LibriTTS/ (or LibriTTS_R/) or shall hold it, or that folder itself.
        folder: where the manifests are written; None makes "manifests" in `root`.
        variant: a key of `VARIANTS`.
        parts: names of parts or of `SPLITS`, or "all"; none means all that are there, or all if none is and they may
            be fetched.
        sources: where parts come from that are not unpacked yet.
        filter_all: apply the filters to dev and test parts too. By default these are never thinned, because results on
            thinned lists compare with nothing; what the filters would have dropped is reported.
        exclude: lists of files to leave out, see `read_excluded`, such as LibriTTS-R's of failed restorations.
        config: filters and the like.
        progress: see `survey`, `codec.download.download` and `archives.unpack`.

    Raises:
        CorpusError: a part or the folder of archives is missing, archives are wrong or damaged, or speakers are in two
            splits.
        ConfigError: no such variant or part.
        CodecError: an archive cannot be fetched from any mirror.
        OSError: the system refuses.
    """
    config, sources = config or PreparationConfig(), sources or Sources()
    if variant not in VARIANTS:
        raise ConfigError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
    if root.exists() and not root.is_dir():
        raise CorpusError(f"{root}: is a file, the folder of the corpus is meant")
    if sources.archives and not sources.archives.is_dir():
        what = "is a file, a folder is meant" if sources.archives.exists() else "no such folder"
        raise CorpusError(
            f"{sources.archives}: {what}; name the folder of the archives with --archives, or make it first"
        )
    facts = VARIANTS[variant]
    corpus = root if any((root / part).is_dir() for part in PARTS) else root / facts.folder
    folder = folder or root / "manifests"
    refuse_file(folder)
    wanted = _wanted(parts, corpus, facts, root, sources)
    _obtain(wanted, corpus, facts, root, sources, progress)
    lists_of_excluded = [*exclude, *sorted(corpus.glob("*_bad_sample_list.txt"))]
    excluded = {Path(name).name.removesuffix(".wav") for name in read_excluded(lists_of_excluded)}  # ids are file names
    results, warnings = [], _absent(parts, wanted)
    for part in wanted:
        is_filtered = filter_all or part in SPLITS["train"]
        result, odd = _list(part, corpus, folder, is_filtered, excluded, config, progress)
        results.append(result)
        warnings += odd
    utterances = {result.name: result.utterances for result in results}
    splits = {name: [u for part in members for u in utterances.get(part, [])] for name, members in SPLITS.items()}
    if shared := shared_speakers(splits):
        raise CorpusError(
            f"{'; '.join(shared)}; a result on them would mean nothing; see how their folders came to be in both, "
            f"nothing was written"
        )
    asked = {name: splits[name] for name in ("train", "dev") if any(part in SPLITS[name] for part in wanted)}
    lists = {**utterances, **asked}
    return conclude(variant, root, folder, results, lists, warnings, config, progress)


# ---------------------------------------------------------------------------------------------------------- bringing


def _wanted(parts: Sequence[str], corpus: Path, facts: Variant, root: Path, sources: Sources) -> list[str]:
    groups = {**SPLITS, "all": PARTS}
    named = [name for part in parts for name in groups.get(part, (part,))]
    if unknown := [name for name in named if name not in PARTS]:
        raise ConfigError(f"no such part: {', '.join(map(repr, unknown))}; there are {', '.join([*PARTS, *groups])}")
    if named:
        return [part for part in PARTS if part in named]
    there = [part for part in PARTS if _is_unpacked(corpus / part) or _archive(facts.archives[part], root, sources)]
    # Who names a folder of archives has them: one that holds none is a slip, and no reason to fetch 84 GB.
    if not there and (sources.archives or not sources.download):
        where = f"{root} holds no {facts.folder}/test-clean and the like, and {sources.archives or root} no"
        raise CorpusError(
            f"{where} {facts.archives['test-clean'].name} and the like; put them there, name the folder of the "
            f"archives with --archives, or let them be fetched, without --archives and --no-download"
        )
    return there or list(PARTS)


def _absent(parts: Sequence[str], wanted: Sequence[str]) -> list[str]:
    absent = [part for part in PARTS if part not in wanted]
    if not absent or parts:
        return []
    return [f"not there and so left out: {', '.join(absent)}; those named with --parts are fetched"]


def _obtain(
    parts: Sequence[str], corpus: Path, facts: Variant, root: Path, sources: Sources, progress: Progress | None
) -> None:
    """Unpack, and before that fetch, each part that is not there."""
    due = [part for part in parts if not _is_unpacked(corpus / part)]
    archives = {part: _archive(facts.archives[part], root, sources) for part in due}
    missing = [part for part, archive in archives.items() if archive is None]
    if missing and not sources.download:
        urls = [f"{MIRRORS[0]}/resources/{facts.resource}/{facts.archives[part].name}" for part in missing]
        raise CorpusError(
            f"{corpus}: has no {', '.join(missing)}, and {sources.archives or root} no archive of it; put "
            f"{' and '.join(urls)} there, or let it be fetched, without --no-download"
        )
    if due:
        _require_space(archives, facts, root, sources)
        if sources.check_sums:
            _check_sums([(path, facts.archives[part].md5) for part, path in archives.items() if path], progress)
        root.mkdir(parents=True, exist_ok=True)
    for part, found in archives.items():
        archive = found or _fetch(facts.archives[part], facts, root, sources, progress)
        _unpack_part(part, archive, corpus, facts, root, progress)
        if not found and not sources.keep_archives:
            archive.unlink()


def _is_unpacked(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _archive(archive: Archive, root: Path, sources: Sources) -> Path | None:
    path = (sources.archives or root) / archive.name
    return path if path.is_file() else None


def _require_space(archives: dict[str, Path | None], facts: Variant, root: Path, sources: Sources) -> None:
    there = [path.stat().st_size for path in archives.values() if path]
    # The sizes of LibriTTS-R are not published; it is the same speech.
    like = VARIANTS["libritts"].archives
    fetched = [
        facts.archives[part].num_bytes or like[part].num_bytes or 0 for part, path in archives.items() if not path
    ]
    unpacked = UNPACKED_SIZE * sum([*there, *fetched])
    kept = sum(fetched) if sources.keep_archives else max(fetched, default=0)
    require_space(root, unpacked + kept, f"bringing {', '.join(archives)}")


def _fetch(archive: Archive, facts: Variant, root: Path, sources: Sources, progress: Progress | None) -> Path:
    target = (sources.archives or root) / archive.name
    urls = [f"{mirror.rstrip('/')}/resources/{facts.resource}/{archive.name}" for mirror in sources.mirrors]
    download(urls, target, archive.md5, num_bytes=archive.num_bytes, progress=progress)
    return target


def _check_sums(archives: Sequence[tuple[Path, str]], progress: Progress | None) -> None:
    """Refuse archives that do not have the sum beside them, all at once, before the first is unpacked."""
    wrong = [
        f"{archive}: has the MD5 sum {found}, the published one is {md5}"
        for archive, md5 in archives
        if (found := sum_like(md5, archive, progress)) != md5
    ]
    if wrong:
        again = "fetch it again" if len(wrong) == 1 else "fetch them again"
        raise CorpusError(f"{'; '.join(wrong)}; {again}, or allow another edition with --no-sums")


def _unpack_part(part: str, archive: Path, corpus: Path, facts: Variant, root: Path, progress: Progress | None) -> None:
    """Unpack where nobody looks, and move the part to its place when it is whole."""
    temporary = root / f".unpacking-{part}"
    shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed
    unpack(archive, temporary, progress)
    try:
        found = next((path for path in (temporary / facts.folder / part, temporary / part) if path.is_dir()), None)
        if found is None:
            names = ", ".join(sorted(path.name for path in temporary.iterdir())[:5])
            raise CorpusError(f"{archive}: holds no {facts.folder}/{part}, but {names or 'nothing'}")
        corpus.mkdir(exist_ok=True)
        for extra in found.parent.iterdir():  # SPEAKERS.txt and the like
            if extra.is_file() and not (corpus / extra.name).exists():
                os.replace(extra, corpus / extra.name)
        if (corpus / part).is_dir():
            (corpus / part).rmdir()  # it is empty, or it would not be unpacked
        os.replace(found, corpus / part)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


# ----------------------------------------------------------------------------------------------------------- listing


def _list(
    part: str,
    corpus: Path,
    folder: Path,
    is_filtered: bool,
    excluded: set[str],
    config: PreparationConfig,
    progress: Progress | None,
) -> tuple[Part, list[str]]:
    """One part, and what is odd about files that were kept."""
    sounds, stubs, _ = classify_files(corpus / part)
    rejections, chosen = [stub(part, path) for path in stubs], []
    for path in sounds:
        if path.stem in excluded:
            rejections.append(exclusion(part, path))
        elif not _is_in_place(path.relative_to(corpus / part)):
            rejections.append(Rejection(part, path, "misplaced", "is not where its name says, SPEAKER/CHAPTER"))
        else:
            chosen.append(path)
    rejections += _missing(part, corpus, {path.stem for path in sounds})
    measurements = survey(
        chosen,
        corpus,
        journal_of(folder, part, config),
        headers_only=config.headers_only,
        jobs=config.jobs,
        progress=progress and (lambda step, done, total: progress(f"{step} {part}", done, total)),
    )
    candidates = [Candidate(path, path.stem, path.relative_to(corpus / part).parts[0], part) for path in chosen]
    filters = config.filters if is_filtered else None
    utterances, others = select(candidates, measurements, filters, sample_rate=SAMPLE_RATE, channels=1)
    odd = [] if is_filtered else _odd(utterances, dict(zip(chosen, measurements, strict=True)), config)
    return Part(part, utterances, rejections + others, FILE_COUNTS[part]), odd


def _is_in_place(name: Path) -> bool:
    """Whether a file lies in SPEAKER/CHAPTER, and in those its name gives, if it is named as in the corpus."""
    if len(name.parts) != 3:
        return False
    words = name.stem.split("_")
    is_official = len(words) == 4 and words[0].isdigit() and words[1].isdigit()
    return not is_official or tuple(words[:2]) == name.parts[:2]


def _missing(part: str, corpus: Path, stems: set[str]) -> list[Rejection]:
    """Utterances that have a transcript, in the chapter's table or in a file of their own, and no sound."""
    texts: dict[Path, str] = {}
    for path in sorted((corpus / part).glob("*/*/*.trans.tsv")):
        if path.name.startswith("."):
            continue
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            if name := line.split("\t")[0].strip():
                texts[path.parent / name] = path.name
    for path in (corpus / part).glob("*/*/*.normalized.txt"):
        if not path.name.startswith("."):
            texts.setdefault(path.with_name(path.name.removesuffix(".normalized.txt")), path.name)
    return [
        Rejection(part, path.with_name(f"{path.name}.wav"), "missing", f"is not there, {source} has its text")
        for path, source in sorted(texts.items())
        if path.name not in stems
    ]


def _odd(utterances: Sequence[Utterance], measured: dict[Path, Measurement], config: PreparationConfig) -> list[str]:
    return [
        f"{utterance.part}: {utterance.id} is kept, dev and test are not thinned, but {verdict[1]}"
        for utterance in utterances
        if (verdict := config.filters.verdict(measured[utterance.path]))
    ]
