"""Commands from files to files: encode, decode, roundtrip."""

import contextlib
import dataclasses
import errno
import json
import os
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from codec.cli.options import (
    argument_files,
    option_device,
    option_json,
    option_model,
    option_overwrite,
    option_precision,
    option_quiet,
    option_refine,
    option_skip,
    option_sound_format,
    together,
)
from codec.cli.reporting import count, saturated, show, softer, told
from codec.cli.running import Failed, complain
from codec.errors import CodecError, sentence
from codec.output import STANDARD_STREAM, is_folder_name, is_stream, require_outside
from codec.progress import SpeedLine

if TYPE_CHECKING:
    from codec.files import DecodeReport
    from codec.tokenization.shards import Tokens

FULL = {errno.ENOSPC, errno.EROFS, errno.EDQUOT}
"""Errors of a disk, which every other file would meet too."""


options_of_files = together(
    argument_files, option_device, option_precision, option_overwrite, option_skip, option_json, option_quiet
)
"""What every command from files to files can be told."""


@dataclass(frozen=True)
class _Job:
    """Which files to make of which, and what to tell of them."""

    files: tuple[tuple[str, ...], str]  # inputs and output
    suffix: str  # of what is made
    overwrite: bool
    skip_existing: bool
    as_json: bool
    quiet: bool

    def __post_init__(self) -> None:
        if self.skip_existing and self.overwrite:
            raise click.UsageError("--skip-existing and --overwrite exclude each other")


@click.command()
@option_model("stream", "Boxed model, model directory or Hub id.")
@click.option(
    "--format",
    type=click.Choice(["codes", "npy", "json", "txt"]),
    help="Where the suffix of OUTPUT does not tell it; npy and txt hold neither the model nor the exact length.  "
    "[default: codes]",
)
@option_refine
@options_of_files
def encode(model: str, format: str | None, refine: int, device: str, precision: str, **shared: Any) -> None:
    """Turn speech into codes.

    INPUT is one or more sound files (wav, flac, ogg, opus, mp3 ...), a folder, or - for standard input. OUTPUT is a
    file ending in .codes, .npy, .json or .txt, a folder, or - for standard output. To have a folder made, end its name
    in /; of a folder as INPUT, OUTPUT always is one.
    """
    from codec.audio import find_sounds
    from codec.code_files import CODE_FORMATS
    from codec.files import encode_file

    job = _Job(suffix=CODE_FORMATS[format or "codes"], **shared)

    def one(file: str, output: str, progress: Any) -> dict[str, Any]:
        report = encode_file(
            file,
            output,
            model=model,
            device=device,
            precision=precision,
            refine=refine,
            format=format,
            overwrite=job.overwrite,
            progress=progress,
        )
        rate = "" if report.bitrate is None else f", {report.bitrate:.3f} kbit/s"
        warning = softer(report)
        return told(report, f"{count(report.num_frames, 'code')}{rate}{warning}", bool(warning))

    _each(job, partial(_mirrored, job, find_sounds), partial(_load_encoder, model, device, refine), one)


@click.command()
@option_model(None, "Boxed model, model directory or Hub id.  [default: the boxed one that made the codes]")
@option_sound_format
@click.option("--recover", is_flag=True, help="Keep what is intact of a damaged file, with silence in the holes.")
@click.option("--force", is_flag=True, help="Decode with a model that did not make the codes.")
@click.option("--id", "chosen", multiple=True, help="Only this utterance of what codec tokenize made; may be repeated.")
@options_of_files
def decode(
    model: str | None,
    format: str | None,
    recover: bool,
    force: bool,
    chosen: tuple[str, ...],
    device: str,
    precision: str,
    **shared: Any,
) -> None:
    """Turn codes back into speech.

    INPUT is one or more files ending in .codes, .npy, .json or .txt, a folder of them, a folder made by codec
    tokenize, or - for standard input. OUTPUT is a sound file (wav, flac, ogg), a folder, or - for standard output. To
    have a folder made, end its name in /; of a folder as INPUT, OUTPUT always is one, unless --id chooses a single
    utterance. From a pipe, .codes are decoded as they arrive, the other formats once they have ended.
    """
    from codec.audio import OUTPUT_FORMATS
    from codec.files import decode_file, load_model
    from codec.model.weights import choose_device
    from codec.tokenization.shards import is_tokens

    job = _Job(suffix=OUTPUT_FORMATS[format or "wav"], **shared)
    how: dict[str, Any] = {
        "model": model,
        "device": device,
        "precision": precision,
        "format": format,
        "overwrite": job.overwrite,
        "force": force,
    }

    def one(file: str, output: str, progress: Any) -> dict[str, Any]:
        return _told_of_sound(decode_file(file, output, recover=recover, progress=progress, **how))

    (source, *more), _ = job.files
    if not more and is_tokens(source):
        _decode_tokens(job, source, chosen, how)
    elif chosen:
        raise click.UsageError(f"--id is for a folder that codec tokenize has made, which {source} is not")
    else:
        begin = partial(choose_device, device) if model is None else partial(load_model, model, device)
        _each(job, partial(_mirrored, job, _find_codes), begin, one)


def _decode_tokens(job: _Job, source: str, chosen: tuple[str, ...], how: dict[str, Any]) -> None:
    """Decode utterances of a folder of tokens, all or those of the chosen ids; a single one may go to a file."""
    from codec.audio import INPUT_SUFFIXES
    from codec.files import decode_codes, load_for
    from codec.manifest import require_file_names
    from codec.tokenization.shards import Tokens

    tokens = Tokens(source)
    wanted = dict.fromkeys([_stored_id(id, tokens, source) for id in chosen] or tokens)
    if not wanted:
        raise CodecError(f"{source}: has no utterances")
    require_file_names(wanted, source)
    ids = {str(Path(source) / id): id for id in wanted}

    def one(name: str, output: str, progress: Any) -> dict[str, Any]:
        reader, num_samples = tokens.reader(ids[name]), tokens.places[ids[name]].samples
        seconds = num_samples / tokens.info.sample_rate
        return _told_of_sound(decode_codes(reader, name, output, seconds=seconds, progress=progress, **how))

    target = job.files[1]
    is_file = is_stream(target) or Path(target).suffix.lower() in INPUT_SUFFIXES
    if len(chosen) == 1 and is_file and not (os.path.isdir(target) or is_folder_name(target)):
        if not (job.skip_existing and os.path.isfile(target)):
            _each(dataclasses.replace(job, files=(tuple(ids), target)), tuple, tuple, one)
        return
    pairs = [(Path(name), Path(target) / f"{id}{job.suffix}") for name, id in ids.items()]
    begin = partial(load_for, tokens.info.header, how["model"], how["device"], how["force"], source)
    _each(job, lambda: pairs, begin, one)


def _stored_id(id: str, tokens: "Tokens", source: str) -> str:
    """An id as the tables have it: accents may be characters of their own there, or in what was typed."""
    for form in (id, *(unicodedata.normalize(name, id) for name in ("NFC", "NFD"))):
        if form in tokens.places:
            return form
    raise CodecError(f"{source}: has no utterance {id!r}; the first column of its tables (.tsv) names all")


def _told_of_sound(report: "DecodeReport") -> dict[str, Any]:
    damage = f"; damaged: {report.damage}" if report.damage else ""
    return told(report, f"{count(report.num_frames, 'code')}{saturated(report.num_saturated)}{damage}", bool(damage))


@click.command()
@option_model("stream", "Boxed model, model directory or Hub id.")
@option_sound_format
@option_refine
@options_of_files
def roundtrip(model: str, format: str | None, refine: int, device: str, precision: str, **shared: Any) -> None:
    """Turn speech into codes and back, to hear what is left of it.

    INPUT and OUTPUT are sound files, folders, or - for standard input and output; several files go into a folder. To
    have a folder made, end its name in /; of a folder as INPUT, OUTPUT always is one.
    """
    from codec.audio import OUTPUT_FORMATS, find_sounds
    from codec.files import roundtrip_file

    job = _Job(suffix=OUTPUT_FORMATS[format or "wav"], **shared)

    def find(folder: Path) -> list[Path]:
        require_outside(job.files[1], folder)
        return find_sounds(folder)

    def one(file: str, output: str, progress: Any) -> dict[str, Any]:
        encoded, decoded = roundtrip_file(
            file,
            output,
            model=model,
            device=device,
            precision=precision,
            refine=refine,
            format=format,
            overwrite=job.overwrite,
            progress=progress,
        )
        report = dataclasses.replace(
            encoded, target=decoded.target, elapsed_seconds=encoded.elapsed_seconds + decoded.elapsed_seconds
        )
        warning = softer(report)
        text = f"{count(report.num_frames, 'code')}, {report.bitrate:.3f} kbit/s{saturated(decoded.num_saturated)}"
        return told(report, text + warning, bool(warning)) | {"num_saturated": decoded.num_saturated}

    _each(job, partial(_mirrored, job, find), partial(_load_encoder, model, device, refine), one)


def _load_encoder(model: str, device: str, refine: int) -> None:
    """Load the model, which is kept, and find out whether its codes can be refined if they are to be."""
    from codec.files import load_model
    from codec.model.codec import require_refinable

    codec, _ = load_model(model, device)
    if refine:
        require_refinable(codec.config)


def _each(
    job: _Job,
    find_pairs: Callable[[], Iterable[tuple[Path, Path]]],
    begin: Callable[[], object],
    one: Callable[[str, str, Any], dict[str, Any]],
) -> None:
    """Do `one` for a file, or for each pair of several; there a bad file is reported and the rest goes on.

    What would go wrong with every file is found in `begin`, and where the disk is full or read-only nothing goes on.
    """

    def watched(source: str, target: str, label: str) -> None:
        with SpeedLine(label, not job.quiet) as progress:
            values = one(source, target, progress)
        show(values, job.as_json, job.quiet)

    (source, *more), target = job.files
    if job.as_json and target == STANDARD_STREAM:
        raise click.UsageError("--json and OUTPUT - cannot both have standard output")
    if target == STANDARD_STREAM and job.suffix not in (".json", ".txt") and sys.stdout.isatty():
        raise click.UsageError("OUTPUT - would fill the terminal with bytes; pipe it into a program, or name a file")
    if is_folder_name(target) and Path(target).is_file():
        raise CodecError(f"{target}: is a file, though its name ends as that of a folder; leave out the {os.sep}")
    if not more and not os.path.isdir(source):
        _single(job, watched)
        return
    if target == STANDARD_STREAM:
        raise click.UsageError("several files cannot all go to standard output; name a folder")
    if os.path.exists(target) and not os.path.isdir(target):
        raise CodecError(f"{target}: is a file; several files need a folder")
    if more and not (os.path.isdir(target) or is_folder_name(target)):  # maybe OUTPUT was forgotten
        raise CodecError(f"{target}: there is no such folder for several files; name it {target}{os.sep} to make it")
    pairs = list(find_pairs())
    if not (job.skip_existing and all(output.is_file() for _, output in pairs)):
        begin()
    _several(job, pairs, watched)


def _single(job: _Job, watched: Callable[[str, str, str], None]) -> None:
    (source,), target = job.files
    with contextlib.ExitStack() as folders:
        if os.path.isdir(target) or is_folder_name(target):
            if source == STANDARD_STREAM:
                raise click.UsageError("standard input has no name; OUTPUT must be a file, not a folder")
            target = os.path.join(target, Path(source).stem + job.suffix)
            folders.enter_context(_folder_of(Path(target)))
        if not (job.skip_existing and os.path.isfile(target)):
            watched(source, target, source)
        elif source != STANDARD_STREAM and not os.path.exists(source):
            raise CodecError(f"{source}: there is no such file")


@contextlib.contextmanager
def _folder_of(output: Path) -> Iterator[None]:
    """The folder of a file, made with those above it where it is missing; what was made and stays empty goes again."""
    if file := next(filter(Path.is_file, output.parents), None):
        raise CodecError(f"{file}: is a file, and {output} needs a folder there; rename one of them")
    made = [folder for folder in output.parents if not folder.exists()]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        with contextlib.suppress(OSError):
            for folder in made:
                folder.rmdir()


def _several(job: _Job, pairs: list[tuple[Path, Path]], watched: Callable[[str, str, str], None]) -> None:
    num_bad = num_there = 0
    taken: dict[Path | tuple[int, int], Path] = {}
    inputs = {os.path.realpath(file): file for file, _ in pairs} if job.overwrite else {}
    for number, (file, output) in enumerate(pairs, 1):
        try:
            _claim(output, file, taken)
            if job.skip_existing and output.is_file():
                continue
            if job.overwrite and inputs.get(os.path.realpath(output), file) != file:
                raise CodecError(f"{file}: would be written over {output}, another input; name another folder")
            with _folder_of(output):
                watched(str(file), str(output), f"[{number}/{len(pairs)}] {file}")
            with contextlib.suppress(FileNotFoundError):  # whoever waited for it may have moved it
                taken[_identity(output)] = file
        except BrokenPipeError:  # nobody reads the report
            raise
        except (CodecError, OSError) as error:
            if isinstance(error, OSError) and error.errno in FULL:
                raise
            num_bad += 1
            num_there += isinstance(error, FileExistsError) and output.is_file()
            complain(sentence(error))
            if job.as_json:
                click.echo(json.dumps({"source": str(file), "error": sentence(error)}))
    if num_bad:
        advice = "; --skip-existing passes over outputs that exist" if num_there else ""
        raise Failed(f"{num_bad} of {count(len(pairs), 'file')} could not be used{advice}")


def _claim(output: Path, file: Path, taken: dict[Path | tuple[int, int], Path]) -> None:
    """Note whose output it is. Raises CodecError where it is already another file's."""
    first = taken.setdefault(output, file)
    if output.is_file():  # maybe by another name, where upper and lower case are one
        first = taken.setdefault(_identity(output), first)
    if first != file:
        raise CodecError(f"{file}: would be written to {output}, as {first} was; rename one of them")


def _identity(path: Path) -> Path | tuple[int, int]:
    """What is the same for two names of a file, unless they are links that were made on purpose."""
    status = path.stat()
    return (status.st_dev, status.st_ino) if status.st_ino and status.st_nlink == 1 else path


def _find_codes(folder: Path) -> list[Path]:
    from codec.audio import find_files
    from codec.code_files import CODE_FORMATS

    suffixes = set(CODE_FORMATS.values())
    paths = find_files(folder, suffixes)
    if not paths:
        raise CodecError(f"{folder}: has no files ending in {', '.join(sorted(suffixes))}")
    return paths


def _mirrored(job: _Job, find: Callable[[Path], list[Path]]) -> Iterator[tuple[Path, Path]]:
    """Each file that is found in a folder, and its place in the mirrored tree; or each of several files."""
    (source, *more), target = job.files
    if more:
        for name in (source, *more):
            if name == STANDARD_STREAM or os.path.isdir(name):
                raise CodecError(f"{name}: several inputs must all be files; give a folder, or -, alone")
            yield Path(name), Path(target) / f"{Path(name).stem}{job.suffix}"
        return
    for file in find(Path(source)):
        yield file, (Path(target) / file.relative_to(source)).with_suffix(job.suffix)
