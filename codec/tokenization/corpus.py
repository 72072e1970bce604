"""A list of recordings -> shards of codes: by several processes, resumable, on one machine or shared by many.

Nothing is kept of where the work stood but the shards themselves: those that are whole are not made again.
"""

import hashlib
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from codec.cores import num_cores
from codec.errors import CodecError, CodecWarning, ConfigError, CorpusError, ModelError, sentence
from codec.files import DEFAULT_MODEL, MAX_AT_ONCE, PRECISIONS, encode_sounds, group_alike
from codec.limits import refining_steps
from codec.manifest import read_rows, sounds_by_id, speaker_of
from codec.model import weights
from codec.model.catalogue import describe
from codec.model.codec import Codec, CodecConfig, require_refinable
from codec.output import TEMPORARY_SUFFIX
from codec.progress import Progress
from codec.tokenization.shards import (
    INFO_NAME,
    TokensInfo,
    file_state,
    is_tokens,
    read_failed,
    read_info,
    read_places,
    read_shard,
    unfinished,
    write_info,
    write_shard,
)
from codec.workers import Died, work_in_batches

NUM_SHARDS = 100
"""Into which a list is divided, so that many machines can share it and little is lost of those that are under way."""
FEWEST_IN_SHARD, MOST_IN_SHARD = 50, 1000
"""Utterances; of few, those encoded together differ more in length, and take longer. A thousand are some 1.6 hours of
read speech, 0.8 MB of codes."""
MAX_NAMED = 5
"""Of many files with the same fault."""
_TOLERANCE = 0.1
"""Seconds by which a file may differ from its list: decoders of mp3 do not agree about its edges."""


@dataclass(frozen=True, slots=True)
class Recording:
    """One sound file of a list."""

    id: str
    path: str  # of millions, Path would fill the memory
    seconds: float | None  # None where the list does not know
    speaker: str
    part: str


@dataclass(frozen=True)
class TokenizeReport:
    """What is in the shards that this call was asked for, whoever made them."""

    source: str
    target: str
    model: str
    fingerprint: str
    num_shards: int
    num_found: int  # of the shards: were there already
    num_utterances: int  # with codes
    num_failed: int  # named in the shards' lists of failures
    num_codes: int
    seconds: float  # of audio
    new_seconds: float  # of the audio that was encoded by this call
    elapsed_seconds: float


def tokenize(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] = DEFAULT_MODEL,
    device: str | torch.device = "cpu",
    precision: str = "float32",
    refine: int = 0,
    jobs: int | None = None,
    utterances_per_shard: int | None = None,
    share: tuple[int, int] = (1, 1),
    progress: Progress | None = None,
) -> TokenizeReport:
    """Turn every recording of a list into the codes that `codec.encode_file` gives, up to rounding (`StreamEncoder`).

    `shards` says what is written.

    Args:
        source: a manifest, or a folder of sound files.
        target: folder of the shards; those that are there are kept, if the list and the model are the same.
        model: name of a boxed model, directory or Hub id; no loaded model, as every process loads its own.
        device: "cpu", "cuda", "mps" or "auto".
        precision: "float32" or "bf16", see `encode_file`.
        refine: steps in which the codes are made to sound better, see `encode_file`; recording by recording, which uses
            a GPU badly.
        jobs: processes, with one thread each; 0 does the work in this one. None takes one per core on the CPU, and this
            one elsewhere, as several would each load the model.
        utterances_per_shard: how the list is divided, in its order. None goes on as the target was begun, or with a
            hundredth of the list, 50 to 1000.
        share: (i, n), to make only every n-th shard, from the i-th on; 1 <= i <= n.
        progress: called with "checked", shards done and shards in all; then, if utterances are left, with "encoded",
            utterances done and utterances in all.

    Raises:
        CodecError: list, model or target cannot be used, or the target holds other tokens. A recording that cannot be
            used is no error, it is named in its shard's list.
        OSError: the system refuses.
    """
    started = time.monotonic()
    _check_settings(model, precision, jobs, utterances_per_shard, share)
    refine = refining_steps(refine)
    device = str(weights.choose_device(device))  # by name, for other processes
    if jobs is None:
        jobs = num_cores() if device == "cpu" else 0
    recordings = list_recordings(Path(source))
    folder = Path(target)
    info = _begin(Path(source), folder, recordings, model, precision, refine, utterances_per_shard)
    size = info.utterances_per_shard
    numbers = range(share[0] - 1, info.num_shards, share[1])
    shards = {number: recordings[number * size : (number + 1) * size] for number in numbers}
    if not shards:
        warnings.warn(
            f"{target}: there is nothing in share {share[0]} of {share[1]}, as the list is divided into "
            f"{info.num_shards} shard{'s' * (info.num_shards != 1)}; for more, begin another folder with a smaller "
            "--shard",
            CodecWarning,
            stacklevel=2,
        )
    wanted: dict[int, Sequence[Recording]] = {}  # by shard
    for count, (number, shard) in enumerate(shards.items()):
        if progress:
            progress("checked", count, len(shards))
        ids = unfinished(folder, number, info, {recording.id: recording.path for recording in shard})
        if ids:
            wanted[number] = [recording for recording in shard if recording.id in ids]
    total = sum(map(len, shards.values()))
    done = total - sum(map(len, wanted.values()))
    if progress and wanted:
        progress("encoded", done, total)
    results = _encode_all(_batches(wanted, jobs), jobs, (model, device, info))
    new_samples = 0
    for number, encoded in _whole_shards(wanted, _counted(results, done, total, progress)):
        _require_same(folder, read_info(folder), info)  # another call may have begun it otherwise at the same moment
        new_samples += _write(folder, number, shards[number], encoded, info)
    num_utterances = num_codes = num_samples = 0
    for number in shards:
        places = read_places(folder, number, info.hop_length)
        num_utterances += len(places)
        num_codes += sum(place.codes for place in places)
        num_samples += sum(place.samples for place in places)
    return TokenizeReport(
        source=os.fspath(source),
        target=os.fspath(target),
        model=info.model,
        fingerprint=info.fingerprint,
        num_shards=len(shards),
        num_found=len(shards) - len(wanted),
        num_utterances=num_utterances,
        num_failed=sum(len(read_failed(folder, number)) for number in shards),
        num_codes=num_codes,
        seconds=num_samples / info.sample_rate,
        new_seconds=new_samples / info.sample_rate,
        elapsed_seconds=time.monotonic() - started,
    )


def _check_settings(model: Any, precision: Any, jobs: Any, utterances_per_shard: Any, share: Any) -> None:
    if isinstance(model, Codec):
        raise ConfigError("every process loads the model, so codec.save a loaded one and name its directory")
    if precision not in PRECISIONS:
        raise ConfigError(f"precision must be {' or '.join(PRECISIONS)}, got {precision!r}")
    if jobs is not None and not (isinstance(jobs, int) and jobs >= 0):
        raise ConfigError(f"jobs must be a number of processes, 0 for none but this one, or None, got {jobs!r}")
    if not isinstance(utterances_per_shard, int | None):
        raise ConfigError(f"utterances_per_shard must be an integer or None, got {utterances_per_shard!r}")
    if utterances_per_shard is not None and utterances_per_shard < 1:
        raise ConfigError(f"a shard must have at least 1 utterance, got {utterances_per_shard}")
    if not (isinstance(share, tuple | list) and len(share) == 2 and all(isinstance(number, int) for number in share)):
        raise ConfigError(f"share must be two integers, (2, 8) for the second of eight, got {share!r}")
    if not 1 <= share[0] <= share[1]:
        raise ConfigError(f"the share must be i of n with 1 <= i <= n, got {share[0]} of {share[1]}")


def list_recordings(source: Path) -> list[Recording]:
    """The sound files of a manifest, or of a folder, with ids as of `codec.manifest.id_of`; in order.

    Raises:
        AudioError: the folder has none.
        CorpusError: there is no such folder or manifest, the manifest is not one, or a file has no id of its own.
    """
    if source.is_file():
        return [
            Recording(id, path, num_samples / sample_rate, speaker, part)
            for id, path, num_samples, sample_rate, speaker, part in read_rows(source)
        ]
    if not source.exists():
        raise CorpusError(f"{source}: no such folder or manifest")
    sounds, mistakes = sounds_by_id(source)
    if mistakes:
        more = f"; and {len(mistakes) - MAX_NAMED} more" if len(mistakes) > MAX_NAMED else ""
        advice = "; codec prepare folder makes a list without such files"
        raise CorpusError("; ".join(reason for _, reason in mistakes[:MAX_NAMED]) + more + advice)
    return [Recording(id, str(path), None, speaker_of(path.relative_to(source)), "") for id, path in sounds.items()]


def _begin(
    source: Path,
    target: Path,
    recordings: Sequence[Recording],
    model: str | os.PathLike[str],
    precision: str,
    refine: int,
    size: int | None,
) -> TokensInfo:
    """What is to be made; noted in the target, or held against what is noted there."""
    found = describe(model)
    if refine:
        require_refinable(CodecConfig.from_dict(found.config))
    digest = hashlib.sha256()
    for recording in recordings:
        digest.update(f"{recording.id}\t{recording.seconds}\t{recording.speaker}\t{recording.part}\n".encode())
    if not is_tokens(target):
        weights.load(model)  # or a damaged one would leave a folder without tokens; others may begin one meanwhile
    begun = read_info(target) if is_tokens(target) else None
    if size is None:
        hundredth = -(-len(recordings) // NUM_SHARDS)
        size = begun.utterances_per_shard if begun else min(max(hundredth, FEWEST_IN_SHARD), MOST_IN_SHARD)
    info = TokensInfo(
        model=found.name,
        fingerprint=found.fingerprint,
        sample_rate=found.sample_rate,
        hop_length=found.hop_length,
        codebook_size=found.codebook_size,
        precision=precision,
        utterances=len(recordings),
        utterances_per_shard=size,
        list=digest.hexdigest()[:16],
        source=os.fsencode(os.path.abspath(source)).decode(errors="backslashreplace"),
        refine=refine,
    )
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{target}: is a file; name a folder for the tokens")
    if begun is None:
        names = (path.name for path in target.iterdir()) if target.is_dir() else ()
        # Others that share the work may begin at the same moment.
        if any(name != INFO_NAME and not name.endswith(TEMPORARY_SUFFIX) for name in names):
            raise ConfigError(f"{target}: is neither empty nor a folder of tokens; choose another")
        write_info(target, info)
    else:
        _require_same(target, begun, info)
        if begun.source not in ("", info.source):
            warnings.warn(
                f"{target}: holds tokens of {begun.source}, whose utterances have the same names and lengths; if their "
                f"sound is not that of {source}, choose another folder",
                CodecWarning,
                stacklevel=3,
            )
    return info


def _require_same(target: Path, begun: TokensInfo, info: TokensInfo) -> None:
    """Raises ConfigError where tokens would be made otherwise, or of another list, than those that are there."""
    before, now = asdict(begun), asdict(info)
    # A model that was moved or renamed is still the one with this fingerprint, and the list the one with this sum.
    defining = [name for name in now if name not in ("model", "source", "utterances", "list")]
    changes = [f"{name} was {before[name]} and is {now[name]}" for name in defining if before[name] != now[name]]
    if changes:
        raise ConfigError(
            f"{target}: holds tokens that were made otherwise, {', '.join(changes)}; choose another folder"
        )
    if (begun.list, begun.utterances) != (info.list, info.utterances):
        differ = begun.utterances != info.utterances
        numbers = f" ({begun.utterances} utterances then, {info.utterances} now)" if differ else ""
        raise ConfigError(
            f"{target}: the list of recordings, their ids, lengths, speakers, parts or order, has changed since its "
            f"tokens were made{numbers}; list new recordings by themselves (codec prepare folder --exclude) and "
            f"tokenize them into a folder of their own, or all into another"
        )


# --------------------------------------------------------------------------------------------------------- processes


class Unusable(NamedTuple):
    """Why a recording has no codes."""

    reason: str
    file: str  # `file_state` when it was tried


Encoded = tuple[np.ndarray, int] | Unusable
"""Codes (N,) and the number of samples, or what is wrong with the recording."""

Batch = tuple[int, Sequence[Recording]]
"""Recordings that are encoded at once, and the shard that they are all of."""


def _batches(shards: dict[int, Sequence[Recording]], jobs: int) -> list[Batch]:
    """All recordings, in no larger batches than give every process some."""
    most = min(MAX_AT_ONCE, -(-sum(map(len, shards.values())) // max(jobs, 1)))
    return [
        (number, [shard[place] for place in group])
        for number, shard in shards.items()
        for group in group_alike([_likely_seconds(recording) for recording in shard], most)
    ]


def _likely_seconds(recording: Recording) -> float:
    """As listed, or as 16-bit samples at 24 kHz would take so many bytes: good enough to tell long from short."""
    if recording.seconds is not None:
        return recording.seconds
    try:
        return os.stat(recording.path).st_size / 48000
    except OSError:
        return 0.0


def _encode_all(
    batches: Sequence[Batch], jobs: int, arguments: tuple[str | os.PathLike[str], str, TokensInfo]
) -> Iterator[tuple[int, str, Encoded]]:
    """(shard, id, result) of each recording, in the order in which they are finished."""
    tasks = [recordings for _, recordings in batches]
    for number, results in work_in_batches(_prepare, arguments, tasks, jobs):
        shard, recordings = batches[number]
        for recording, result in zip(recordings, results, strict=True):
            if isinstance(result, Died):
                result = Unusable(str(result), file_state(recording.path))
            yield shard, recording.id, result


def _whole_shards(
    shards: dict[int, Sequence[Recording]], results: Iterator[tuple[int, str, Encoded]]
) -> Iterator[tuple[int, dict[str, Encoded]]]:
    """Shards whose recordings are all done, results by id."""
    pending: dict[int, dict[str, Encoded]] = {}
    for number, id, result in results:
        pending.setdefault(number, {})[id] = result
        if len(pending[number]) == len(shards[number]):
            yield number, pending.pop(number)


def _counted(
    results: Iterator[tuple[int, str, Encoded]], done: int, total: int, progress: Progress | None
) -> Iterator[tuple[int, str, Encoded]]:
    for count, result in enumerate(results, done + 1):
        if progress:
            progress("encoded", count, total)
        yield result


def _write(target: Path, number: int, shard: Sequence[Recording], encoded: dict[str, Encoded], info: TokensInfo) -> int:
    """Write a shard, with the codes it has of what was not encoded again; returns the samples that were encoded."""
    kept = read_shard(target, number, info) if len(encoded) < len(shard) else {}
    results: dict[str, Encoded] = {**kept, **encoded}
    utterances, failed = [], []
    for recording in shard:
        result = results[recording.id]
        if isinstance(result, Unusable):
            failed.append((recording.id, str(Path(recording.path)), *result))
        else:
            utterances.append((recording.id, *result, recording.speaker, recording.part))
    write_shard(target, number, utterances, failed, info.dtype)
    return sum(result[1] for result in encoded.values() if not isinstance(result, Unusable))


def _prepare(
    model: str | os.PathLike[str], device: str, info: TokensInfo
) -> Callable[[Sequence[Recording]], list[Encoded]]:
    codec = weights.load(model, device)
    if codec.fingerprint != info.fingerprint:  # as by training that goes on
        raise ModelError(f"{model}: was replaced while tokens were made with it; make them with a copy that stays")
    return partial(_encode, codec, info.precision, info.refine)


def _encode(codec: Codec, precision: str, refine: int, recordings: Sequence[Recording]) -> list[Encoded]:
    paths = [Path(recording.path) for recording in recordings]
    files = [file_state(path) for path in paths]  # before they are read: what changes meanwhile is tried again
    results = encode_sounds(paths, codec, precision, refine)
    return [_judged(codec.sample_rate, *each) for each in zip(recordings, files, results, strict=True)]


def _judged(
    sample_rate: int, recording: Recording, file: str, result: tuple[np.ndarray, int] | CodecError | OSError
) -> Encoded:
    if isinstance(result, CodecError | OSError):
        return Unusable(sentence(result).removeprefix(f"{Path(recording.path)}: "), file)
    seconds = result[1] / sample_rate
    if recording.seconds is not None and abs(seconds - recording.seconds) > _TOLERANCE:
        reason = f"has {seconds:.2f} s, the list says {recording.seconds:.2f} s; prepare the corpus again"
        return Unusable(reason, file)
    return result
