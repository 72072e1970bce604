"""The command line: one function per sub-command that parses, calls and reports.

Every error a user can cause becomes one sentence on standard error and exit code 2; nothing is left half written.
Nothing heavy is imported before a command needs it.
"""

import argparse
import dataclasses
import json
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import click

from codec import __version__
from codec.errors import CodecError, sentence
from codec.output import STANDARD_STREAM
from codec.progress import CountLine, SpeedLine

BAD_INPUT = 2  # exit code
INTERRUPTED = 130  # exit code
PIPE_CLOSED = 141  # exit code
STOP_SIGNALS = {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}
SIGNALLED = {128 + number for number in STOP_SIGNALS}  # exit codes
UNITS = {
    "seconds": " s",
    "sample_rate": " Hz",
    "hop_length": " samples",
    "frame_rate": " frames/s",
    "bitrate": " kbit/s",
    "payload_bitrate": " kbit/s",
}

Function = TypeVar("Function", bound=Callable[..., Any])


class Failed(Exception):
    """Some files of a folder could not be used; each was reported where it happened."""


class Stopped(KeyboardInterrupt):
    """Training was asked to stop, and has saved where it stands."""


class PipeClosed(Exception):
    """Whoever read our output has gone."""


class Commands(click.Group):
    """The group of all commands; click would end the process itself when a pipe is closed."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except (CodecError, OSError) as error:
            if isinstance(error, BrokenPipeError) or isinstance(error.__cause__, BrokenPipeError):
                raise PipeClosed from error
            raise


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line, and end the process with its exit code."""
    _open_standard_streams()
    for number in STOP_SIGNALS:
        signal.signal(number, _stop)
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run the command line and return its exit code."""
    return exit_code(lambda: commands.main(arguments, prog_name="codec", standalone_mode=False))


def exit_code(main: Callable[[], object]) -> int:
    """Call a program; what a user can get wrong becomes one sentence on standard error and an exit code."""
    try:
        main()
        sys.stdout.flush()
        return 0
    except Failed as error:
        return _complain(str(error))
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return BAD_INPUT
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "codec"
        return _complain(f"{error.format_message().rstrip('.')}; see {command} --help")
    except click.exceptions.Exit as error:
        return error.exit_code
    except (click.Abort, KeyboardInterrupt) as error:
        cause = error.__cause__  # of what click makes of an interruption
        _complain(str(cause) if isinstance(cause, Stopped) else "interrupted; what was not complete is not there")
        return INTERRUPTED
    except SystemExit as error:
        if error.code in SIGNALLED:
            _complain("stopped; what was not complete is not there")
        raise
    except (PipeClosed, BrokenPipeError):
        _give_up_output()
        return PIPE_CLOSED
    except (CodecError, OSError) as error:
        _give_up_output()
        return _complain(sentence(error))
    except (MemoryError, RuntimeError) as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU
            return _complain("the GPU has not enough memory; use --device cpu")
        if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
            return _complain("there is not enough memory")
        raise


def _open_standard_streams() -> None:
    """Put something in the place of those that are closed, whose number the next file would get.

    Input and output cannot be used then, and say so; messages are lost.
    """
    for number, name, way in ((0, "stdin", os.O_WRONLY), (1, "stdout", os.O_RDONLY), (2, "stderr", os.O_WRONLY)):
        if getattr(sys, name) is None:
            os.open(os.devnull, way)  # gets the lowest number that is free
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))


def _give_up_output() -> None:
    """Throw away what cannot be written, or Python complains again when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def positive(text: str) -> int:
    """For `argparse` of the recipes: an integer from 1 on."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


def not_negative(text: str) -> float:
    """For `argparse` of the recipes: a finite number from 0 on."""
    if not 0 <= float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number from 0 on, got {text}")
    return float(text)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="codec", message="%(prog)s %(version)s")
def commands() -> None:
    """Speech to 0.9 kbit/s codes and back.

    \b
    codec encode talk.wav talk.codes
    codec decode talk.codes again.wav
    """


class Name(click.ParamType):
    """A path, or the name of a model. It cannot be empty, as a variable of a script is that was not set."""

    name = "path"

    def __init__(self, kind: type = str):
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not os.fspath(value):
            self.fail("it is empty", param, ctx)
        return self._kind(value)


def option_model(default: str | None, text: str) -> Callable[[Function], Function]:
    """--model"""
    return click.option(
        "--model", metavar="NAME|DIR", type=Name(), default=default, show_default=bool(default), help=text
    )


def _checked_device(context: click.Context, parameter: click.Parameter, value: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
        raise click.BadParameter(f"{value!r} is none of auto, cpu, cuda, cuda:1 ... and mps")
    return value


option_device = click.option(
    "--device",
    callback=_checked_device,
    metavar="auto|cpu|cuda|mps",
    default="auto",
    show_default=True,
    help="Where to run; auto takes a CUDA GPU where there is one. The second GPU is cuda:1.",
)
option_precision = click.option(
    "--precision",
    type=click.Choice(["float32", "bf16"]),
    default="float32",
    show_default=True,
    help="Of the network's large products; bf16 is faster on some processors; most codes differ.",
)
option_sound_format = click.option(
    "--format",
    type=click.Choice(["wav", "flac", "ogg", "wav-float"]),
    help="Where the suffix of OUTPUT does not say it.",
)
option_overwrite = click.option("--overwrite", is_flag=True, help="Replace files that exist.")
option_skip = click.option("--skip-existing", is_flag=True, help="Leave files that exist as they are, and go on.")
option_json = click.option(
    "--json", "as_json", is_flag=True, help="Report as JSON on standard output, a line per file."
)
option_json_once = click.option("--json", "as_json", is_flag=True, help="Report as JSON on standard output.")
option_quiet = click.option("--quiet", "-q", is_flag=True, help="No progress and no report, only errors.")
argument_input = click.argument("source", metavar="INPUT", type=Name())
argument_output = click.argument("target", metavar="OUTPUT", type=Name())


@commands.command()
@argument_input
@argument_output
@option_model("stream", "Boxed model, model directory or Hub id.")
@option_device
@option_precision
@click.option(
    "--format",
    type=click.Choice(["codes", "npy", "json", "txt"]),
    help="Where the suffix of OUTPUT does not say it; the last three are plain integers.",
)
@option_overwrite
@option_skip
@option_json
@option_quiet
def encode(
    source: str,
    target: str,
    model: str,
    device: str,
    precision: str,
    format: str | None,
    overwrite: bool,
    skip_existing: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Turn speech into codes.

    INPUT is a sound file (wav, flac, ogg, opus, mp3 ...), a folder, or - for standard input. OUTPUT is a file ending in
    .codes, .npy, .json or .txt, a folder, or - for standard output.
    """
    from codec.audio import SOUND_SUFFIXES
    from codec.code_files import CODE_FORMATS
    from codec.files import encode_file

    def one(file: str, output: str, progress: Any) -> dict[str, Any]:
        report = encode_file(
            file,
            output,
            model=model,
            device=device,
            precision=precision,
            format=format,
            overwrite=overwrite,
            progress=progress,
        )
        rate = "" if report.bitrate is None else f", {report.bitrate:.3f} kbit/s"
        return _told(report, f"{report.num_frames} codes{rate}")

    _each(source, target, SOUND_SUFFIXES, CODE_FORMATS[format or "codes"], one, skip_existing, as_json, quiet)


@commands.command()
@argument_input
@argument_output
@option_model(None, "Boxed model, model directory or Hub id.  [default: the boxed one that made the codes]")
@option_device
@option_precision
@option_sound_format
@click.option("--recover", is_flag=True, help="Of a damaged file keep what is intact, with silence in the holes.")
@click.option("--force", is_flag=True, help="Decode with another model than made the codes.")
@option_overwrite
@option_skip
@option_json
@option_quiet
def decode(
    source: str,
    target: str,
    model: str | None,
    device: str,
    precision: str,
    format: str | None,
    recover: bool,
    force: bool,
    overwrite: bool,
    skip_existing: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Turn codes back into speech.

    INPUT is a file ending in .codes, .npy, .json or .txt, a folder of such, or one that codec tokenize has made, or -
    for standard input. OUTPUT is a sound file (wav, flac, ogg), a folder, or - for standard output.
    """
    from codec.audio import OUTPUT_FORMATS
    from codec.code_files import CODE_FORMATS
    from codec.files import decode_file
    from codec.tokenization.shards import Tokens, is_tokens

    def one(file: str, output: str, progress: Any) -> dict[str, Any]:
        report = decode_file(
            file,
            output,
            model=model,
            device=device,
            precision=precision,
            format=format,
            overwrite=overwrite,
            recover=recover,
            force=force,
            progress=progress,
        )
        damage = f"; damaged: {report.damage}" if report.damage else ""
        return _told(report, f"{report.num_frames} codes{_saturated(report.num_saturated)}{damage}", bool(damage))

    suffix = OUTPUT_FORMATS[format or "wav"]
    if not is_tokens(source):
        _each(source, target, set(CODE_FORMATS.values()), suffix, one, skip_existing, as_json, quiet)
        return
    tokens = Tokens(source)

    def one_of_tokens(name: str, output: str, progress: Any) -> dict[str, Any]:
        with tokens.as_file(os.path.relpath(name, source)) as file:
            try:
                values = one(str(file), output, progress)
            except CodecError as error:
                raise type(error)(str(error).replace(str(file), name)) from error
        return values | {"source": name, "text": values["text"].replace(str(file), name)}

    for id in tokens:
        if Path(id).is_absolute() or ".." in Path(id).parts:
            raise CodecError(f"{source}: id {id!r} cannot name a file below {target}; ids are relative paths")
    pairs = [(Path(source) / id, Path(target) / f"{id}{suffix}") for id in tokens]
    _each(source, target, (), suffix, one_of_tokens, skip_existing, as_json, quiet, pairs)


@commands.command()
@argument_input
@argument_output
@option_model("stream", "Boxed model, model directory or Hub id.")
@option_device
@option_precision
@option_sound_format
@option_overwrite
@option_skip
@option_json
@option_quiet
def roundtrip(
    source: str,
    target: str,
    model: str,
    device: str,
    precision: str,
    format: str | None,
    overwrite: bool,
    skip_existing: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Turn speech into codes and back, to hear what is left of it.

    INPUT and OUTPUT are sound files, folders, or - for standard input and output.
    """
    from codec.audio import OUTPUT_FORMATS, SOUND_SUFFIXES
    from codec.files import roundtrip_file

    def one(file: str, output: str, progress: Any) -> dict[str, Any]:
        encoded, decoded = roundtrip_file(
            file,
            output,
            model=model,
            device=device,
            precision=precision,
            format=format,
            overwrite=overwrite,
            progress=progress,
        )
        report = dataclasses.replace(
            encoded, target=decoded.target, elapsed_seconds=encoded.elapsed_seconds + decoded.elapsed_seconds
        )
        text = f"{report.num_frames} codes, {report.bitrate:.3f} kbit/s{_saturated(decoded.num_saturated)}"
        return _told(report, text) | {"num_saturated": decoded.num_saturated}

    _each(source, target, SOUND_SUFFIXES, OUTPUT_FORMATS[format or "wav"], one, skip_existing, as_json, quiet)


@commands.command()
@click.argument("source", metavar="MANIFEST|DIR", type=Name())
@click.argument("target", metavar="OUT_DIR", type=Name())
@option_model("stream", "Boxed model, model directory or Hub id.")
@option_device
@option_precision
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    help="Processes, of one thread each.  [default: one per core, for a GPU this one]",
)
@click.option("--shard", default=1000, show_default=True, metavar="N", help="Utterances in a file of codes.")
@click.option(
    "--share", default="1/1", show_default=True, metavar="I/N", help="Make only every N-th shard, from the I-th."
)
@option_json_once
@option_quiet
def tokenize(
    source: str,
    target: str,
    model: str,
    device: str,
    precision: str,
    jobs: int | None,
    shard: int,
    share: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Turn a whole corpus into codes, in few large files.

    \b
    codec prepare folder recordings --out lists
    codec tokenize lists/all.tsv tokens

    OUT_DIR gets a numpy array and a table for every N utterances. Started again, the command makes what is missing;
    with --share several machines or GPUs make one corpus together. Utterances that cannot be used are named in
    OUT_DIR/*.failed.tsv, and tried again once their files have changed.
    """
    from codec.tokenization.corpus import tokenize as tokenize_corpus

    first, _, of = share.partition("/")
    if not (first.isdecimal() and of.isdecimal()):
        raise click.UsageError(f"--share takes I/N, for example 2/8, got {share}")
    with CountLine(not quiet) as progress:
        report = tokenize_corpus(
            source,
            target,
            model=model,
            device=device,
            precision=precision,
            jobs=jobs,
            utterances_per_shard=shard,
            share=(int(first), int(of)),
            progress=progress,
        )
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(report)))
    elif not quiet:
        already = f", {report.num_found} of them were there already" if report.num_found else ""
        speed = f" ({report.new_seconds / report.elapsed_seconds:.1f} x real time)" if report.new_seconds else ""
        click.echo(
            f"{target}: {_count(report.num_utterances, 'utterance')}, {report.seconds / 3600:.2f} hours, "
            f"{report.num_codes} codes in {_count(report.num_shards, 'shard')}{already}{speed}",
            err=True,
        )
    if report.num_failed:
        total = _count(report.num_failed + report.num_utterances, "utterance")
        raise Failed(f"{report.num_failed} of {total} could not be used, see {os.path.join(target, '*.failed.tsv')}")


@commands.command()
@click.argument("paths", metavar="FILE...", type=Name(), nargs=-1, required=True)
@option_json
def info(paths: tuple[str, ...], as_json: bool) -> None:
    """Tell what a file of codes, a sound file or a model is.

    FILE is a .codes, .npy, .json or .txt file (also - for standard input), a sound file, a folder of tokens, a model
    directory or the name of a boxed model. A damaged .codes file is described as far as it can be, with exit code 2.
    """
    from codec.inspection import inspect

    num_bad = 0
    for path in paths:
        try:
            facts = inspect(path)
        except (CodecError, OSError) as error:
            if len(paths) == 1:
                raise
            num_bad += 1
            _complain(sentence(error))
            continue
        num_bad += bool(facts.get("damage"))
        click.echo(json.dumps(facts, allow_nan=False) if as_json else _table(facts) + "\n" * (len(paths) > 1))
    if num_bad:
        raise Failed(f"{num_bad} of {_count(len(paths), 'file')} damaged or unreadable")


@commands.command()
@option_json
def models(as_json: bool) -> None:
    """List the models in the box."""
    from codec.inspection import inspect_model
    from codec.model.catalogue import boxed_models, describe

    rows = [inspect_model(describe(name)) for name in boxed_models()]
    for row in rows:
        if as_json:
            click.echo(json.dumps(row))
        else:
            click.echo(
                f"{row['model']:16} {row['megabytes']:6.1f} MB  {row['bitrate']:.3g} kbit/s  {row['sample_rate']} Hz  "
                f"{row['frame_rate']:g} codes/s of {row['bits_per_code']} bits  {row['fingerprint']}"
            )
    if not rows and not as_json:
        click.echo("none; train one, or name a model directory with --model")


@commands.command("import")
@click.argument("path", metavar="CHECKPOINT", type=Name())
@click.argument("directory", metavar="OUT_DIR", type=Name())
@click.option("--from", "kind", type=click.Choice(["wavtokenizer", "simvq"]), required=True, help="Whose it is.")
@click.option(
    "--config", metavar="YAML", type=Name(), help="What it was trained with; else the shapes of the weights tell."
)
@click.option(
    "--weights",
    type=click.Choice(["ema", "raw"]),
    default="ema",
    show_default=True,
    help="SimVQ's averaged weights, or those of the last step.",
)
@click.option("--keep-discriminators", is_flag=True, help="Keep them too, for fine-tuning.")
@click.option("--with-simvq", is_flag=True, help="Put a SimVQ in the place of WavTokenizer's codebook; codes stay.")
@option_quiet
def import_(
    path: str,
    directory: str,
    kind: str,
    config: str | None,
    weights: str,
    keep_discriminators: bool,
    with_simvq: bool,
    quiet: bool,
) -> None:
    """Turn a published checkpoint into a model directory.

    Every key of CHECKPOINT is accounted for in the report; a key that is unknown or of another shape is an error.
    """
    from codec.model.importer import import_checkpoint

    report = import_checkpoint(
        path,
        kind,
        directory,
        config=config,
        weights=weights,
        keep_discriminators=keep_discriminators,
        with_simvq=with_simvq,
    )
    if not quiet:
        click.echo(report, err=True)


@commands.command("export")
@click.argument("model", metavar="MODEL", type=Name())
@click.argument("path", metavar="OUTPUT", type=Name())
@option_overwrite
def export(model: str, path: str, overwrite: bool) -> None:
    """Write a model's weights under the published key names, for other tools.

    MODEL is a model directory of the reference family. OUTPUT ends in .ckpt for the published loaders, in .safetensors
    for the state dict alone, or else is a PyTorch file of the state dict.
    """
    from codec.model.importer import export_checkpoint

    export_checkpoint(model, path, overwrite=overwrite)


@commands.command()
@click.argument("folders", metavar="[REFERENCE ESTIMATE]", type=Name(), nargs=-1)
@option_model(None, "Encode and decode with this model, then score: boxed model, model directory or Hub id.")
@click.option("--data", metavar="DIR|MANIFEST", type=Name(), help="What to encode with --model.")
@click.option(
    "--metrics", default="core", show_default=True, metavar="NAME,...", help="Metrics, or core, paper (as SimVQ), full."
)
@click.option(
    "--utmos-weights", metavar="FILE", type=Name(), help="Checkpoint of UTMOS22 strong, in any of its layouts."
)
@click.option("--dnsmos-weights", metavar="DIR", type=Name(), help="Folder with sig_bak_ovr.onnx and model_v8.onnx.")
@click.option("--asr-model", metavar="DIR|ID", type=Name(), help="Speech recogniser of transformers, for wer and dwer.")
@click.option("--speaker-model", metavar="DIR|ID", type=Name(), help="x-vector model of transformers, for speaker.")
@click.option("--download", is_flag=True, help="Fetch weights of metrics that are not here.")
@click.option(
    "--output", "-o", metavar="DIR", type=Name(), help="Table, summary and report go here; a run begun there goes on."
)
@click.option("--jobs", type=int, help="Processes.  [default: one per core]")
@click.option("--limit", type=int, metavar="N", help="Only N utterances, spread over the data.")
@click.option(
    "--hop-length",
    type=int,
    metavar="SAMPLES",
    help="By how much lengths may differ.  [default: the model's hop length; for folders 25 ms]",
)
@click.option("--delay", type=int, default=0, metavar="SAMPLES", help="How late the codec is; removed before scoring.")
@click.option("--no-audio", is_flag=True, help="No players in the report, which makes it small.")
@click.option(
    "--compare", nargs=2, metavar="A B", help="Compare two outputs of this command, utterance by utterance, instead."
)
@option_device
@click.option("--strict", is_flag=True, help="Exit code 2 if anything at all has no score.")
@option_json
@option_quiet
def evaluate(
    folders: tuple[str, ...],
    model: str | None,
    data: str | None,
    metrics: str,
    utmos_weights: str | None,
    dnsmos_weights: str | None,
    asr_model: str | None,
    speaker_model: str | None,
    download: bool,
    output: str | None,
    jobs: int | None,
    limit: int | None,
    hop_length: int | None,
    delay: int,
    no_audio: bool,
    compare: tuple[str, str] | None,
    device: str,
    strict: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Score a codec, or the output of any other.

    \b
    codec evaluate REFERENCE ESTIMATE            sound files of the same names in two folders
    codec evaluate --model stream --data DIR     encode, decode, score
    codec evaluate --compare A B                 which of two is better, and how sure that is
    """
    from codec.evaluation.evaluate import Options, evaluate_folders, evaluate_model
    from codec.evaluation.metric import Settings
    from codec.evaluation.registry import METRICS
    from codec.evaluation.report import table

    if compare:
        _compare(compare, output, as_json, quiet)
        return
    if (len(folders) != 2) if model is None else (folders or data is None):
        raise click.UsageError("name two folders, REFERENCE and ESTIMATE, or --model and --data, or --compare A B")
    settings = Settings(
        device=device,
        utmos_weights=Path(utmos_weights) if utmos_weights else None,
        dnsmos_weights=Path(dnsmos_weights) if dnsmos_weights else None,
        asr_model=asr_model,
        speaker_model=speaker_model,
        allow_download=download,
    )
    names = tuple(name.strip() for name in metrics.split(",") if name.strip())
    options = Options(names, settings, jobs, hop_length, limit, delay, with_audio=not no_audio)
    lines: dict[str, SpeedLine] = {}

    def progress(what: str, done: float, total: float) -> None:
        if what not in lines:
            lines[what] = SpeedLine(what, not quiet)
        lines[what](done, total)
        if done >= total:
            lines[what].clear()

    if model is None:
        result = evaluate_folders(*folders, output=output, options=options, progress=progress)
    else:
        result = evaluate_model(model, str(data), output=output, options=options, progress=progress)
    if as_json:
        click.echo(json.dumps(result.summary, allow_nan=False))
    elif not quiet:
        click.echo(table(result.summary))
    missing = [entry["metric"] for entry in result.summary["not_computed"] if entry["metric"] in METRICS]
    if strict and (result.problems or missing):
        without = f"; not computed: {', '.join(missing)}" if missing else ""
        raise Failed(f"{_count(len(result.problems), 'problem')}, listed in the report{without}")


def _compare(folders: tuple[str, str], output: str | None, as_json: bool, quiet: bool) -> None:
    from codec.evaluation.comparison import compare, comparison_table, write_comparison

    found = compare(*folders)
    if output is not None:
        write_comparison(found, Path(output))
    if as_json:
        click.echo(json.dumps(found, allow_nan=False))
    elif not quiet:
        click.echo(comparison_table(found))


# ------------------------------------------------------------------------------------------------- files and folders


def _each(
    source: str,
    target: str,
    suffixes: Iterable[str],
    target_suffix: str,
    one: Callable[[str, str, Any], dict[str, Any]],
    skip_existing: bool,
    as_json: bool,
    quiet: bool,
    pairs: list[tuple[Path, Path]] | None = None,
) -> None:
    """Do `one` for a file, or for each file of a folder; there a bad file is reported and the rest goes on.

    Of a folder that is no tree of files, `pairs` has the names of what is in it, with the output of each.
    """
    if as_json and target == STANDARD_STREAM:
        raise click.UsageError("--json and OUTPUT - cannot both have standard output")
    if not os.path.isdir(source):
        if os.path.isdir(target):
            target = os.path.join(target, Path(source).stem + target_suffix)
        if skip_existing and os.path.isfile(target):
            return
        _report(_watched(one, source, target, source, quiet), as_json, quiet)
        return
    if target == STANDARD_STREAM:
        raise click.UsageError("the files of a folder cannot all go to standard output; name a folder")
    if pairs is None:
        pairs = list(_pairs(Path(source), Path(target), set(suffixes), target_suffix))
    if not pairs:
        kind = f"files ending in {', '.join(sorted(suffixes))}" if suffixes else "utterances"
        raise CodecError(f"{source}: has no {kind}")
    num_bad = 0
    taken: dict[Path, Path] = {}
    for number, (file, output) in enumerate(pairs, 1):
        try:
            first = taken.setdefault(output, file)
            if first != file:
                raise CodecError(f"{file}: would be written to {output}, as {first} was; rename one of them")
            if skip_existing and output.is_file():
                continue
            output.parent.mkdir(parents=True, exist_ok=True)
            label = f"[{number}/{len(pairs)}] {file}"
            _report(_watched(one, str(file), str(output), label, quiet), as_json, quiet)
        except BrokenPipeError:  # nobody reads the report
            raise
        except (CodecError, OSError) as error:
            num_bad += 1
            _complain(sentence(error))
            if as_json:
                click.echo(json.dumps({"source": str(file), "error": sentence(error)}))
    if num_bad:
        raise Failed(f"{num_bad} of {_count(len(pairs), 'file')} could not be used")


def _pairs(source: Path, target: Path, suffixes: set[str], target_suffix: str) -> Iterator[tuple[Path, Path]]:
    """Each file with one of the suffixes, and its place in the mirrored tree; hidden files are left out."""
    from codec.audio import walk

    for file in sorted(walk(source)):
        if file.suffix.lower() in suffixes and not file.name.startswith(".") and not file.is_fifo():
            yield file, (target / file.relative_to(source)).with_suffix(target_suffix)


def _watched(
    one: Callable[[str, str, Any], dict[str, Any]], source: str, target: str, label: str, quiet: bool
) -> dict[str, Any]:
    with SpeedLine(label, not quiet) as progress:
        return one(source, target, progress)


@commands.group()
def prepare() -> None:
    """Check a corpus and list it in manifests to train and evaluate on."""


def options_of_preparation(function: Function) -> Function:
    """What every preparation can be told."""
    options = [
        click.option("--out", type=Name(Path), help="Where the manifests go.  [default: .../manifests]"),
        click.option("--min-seconds", default=0.5, show_default=True, help="Drop shorter files."),
        click.option("--max-seconds", default=40.0, show_default=True, help="Drop longer files."),
        click.option("--max-silent", default=0.9, show_default=True, help="Drop files with a larger silent share."),
        click.option(
            "--max-clipped", default=0.01, show_default=True, help="Drop files with more samples at full scale."
        ),
        click.option("--headers-only", is_flag=True, help="Do not read samples: faster, finds less."),
        click.option("--subset", default=0, metavar="N", help="Keep N utterances per manifest, over all speakers."),
        click.option("--seed", default=0, show_default=True, help="Of everything drawn."),
        click.option("--max-damaged", default=0.001, show_default=True, help="Fail above this share of damaged files."),
        click.option("--strict", is_flag=True, help="Fail on any warning."),
        click.option("--jobs", type=int, help="Processes.  [default: one per core]"),
        option_json_once,
        option_quiet,
    ]
    for option in reversed(options):
        function = option(function)
    return function


@prepare.command("libritts")
@click.argument("root", type=Name(Path))
@click.option("--variant", type=click.Choice(["libritts", "libritts-r"]), default="libritts", show_default=True)
@click.option(
    "--parts", default="", metavar="NAME,...", help="train, dev, test, test-clean ...  [default: those there, or all]"
)
@click.option("--archives", type=Name(Path), help="Folder of the .tar.gz files.  [default: ROOT]")
@click.option("--download/--no-download", default=True, help="Fetch what is missing.  [default: download]")
@click.option("--mirror", "mirrors", multiple=True, metavar="URL", help="Instead of openslr.org; may be repeated.")
@click.option("--keep-archives", is_flag=True, help="Keep fetched archives after unpacking.")
@click.option("--no-sums", is_flag=True, help="Accept archives whose MD5 sum is not the published one.")
@click.option("--filter-all", is_flag=True, help="Drop from dev and test too, not only from train.")
@click.option("--exclude", type=Name(Path), multiple=True, metavar="LIST", help="File with paths to leave out.")
@options_of_preparation
def prepare_libritts_command(
    root: Path,
    variant: str,
    parts: str,
    archives: Path | None,
    download: bool,
    mirrors: tuple[str, ...],
    keep_archives: bool,
    no_sums: bool,
    filter_all: bool,
    exclude: tuple[Path, ...],
    **shared: Any,
) -> None:
    """LibriTTS or LibriTTS-R, from nothing, from archives or from a tree.

    ROOT holds the folder LibriTTS (LibriTTS_R), or shall hold it. Parts that are named and are not there are fetched,
    and all of them, 84 GB, where there is none. What is interrupted goes on where it stopped when it is started again.
    """
    from codec.preparation.libritts import MIRRORS, Sources, prepare_libritts

    sources = Sources(archives, download, list(mirrors) or list(MIRRORS), not no_sums, keep_archives)
    names = [name.strip() for name in parts.split(",") if name.strip() not in ("", "all")]
    _prepare(
        shared,
        lambda **given: prepare_libritts(
            root, variant=variant, parts=names, sources=sources, filter_all=filter_all, exclude=exclude, **given
        ),
    )


@prepare.command("folder")
@click.argument("source", type=Name(Path))
@click.option(
    "--layout",
    default="speaker",
    show_default=True,
    help='Meaning of the folders above a file: "speaker", "part/speaker", "*/speaker", or "".',
)
@click.option("--dev", default=0.0, metavar="SHARE", help="Hold out this share of the utterances, with their speakers.")
@click.option("--test", default=0.0, metavar="SHARE", help="The same for a second list.")
@options_of_preparation
def prepare_folder_command(source: Path, layout: str, dev: float, test: float, **shared: Any) -> None:
    """Any folder of sound files."""
    from codec.preparation.folder import prepare_folder

    held_out = {name: share for name, share in (("dev", dev), ("test", test)) if share}
    _prepare(shared, lambda **given: prepare_folder(source, layout=layout, held_out=held_out, **given))


@prepare.command("check")
@click.argument("manifest", type=Name(Path))
def prepare_check_command(manifest: Path) -> None:
    """Compare a manifest with the headers of its sound files."""
    from codec.manifest import check_manifest, read_manifest

    complaints = check_manifest(manifest)
    for complaint in complaints:
        _complain(complaint)
    utterances = read_manifest(manifest)
    if complaints:
        raise Failed(f"{len(complaints)} of {_count(len(utterances), 'utterance')} do not agree with {manifest}")
    hours = sum(utterance.seconds for utterance in utterances) / 3600
    click.echo(f"{manifest}: {_count(len(utterances), 'utterance')}, {hours:.2f} hours, all there")


def _prepare(shared: dict[str, Any], start: Callable[..., Any]) -> None:
    """Run a preparation and report what it did; problems make the command fail."""
    from codec.preparation.outcome import PreparationConfig, describe
    from codec.preparation.selection import Filters

    filters = Filters(*(shared[name] for name in ("min_seconds", "max_seconds", "max_silent", "max_clipped")))
    settings = {name: shared[name] for name in ("headers_only", "subset", "seed", "max_damaged", "strict")}
    config = PreparationConfig(filters, **settings, num_workers=shared["jobs"])
    with CountLine(not shared["quiet"]) as progress:
        outcome = start(folder=shared["out"], config=config, progress=progress)
    if shared["as_json"]:
        click.echo(json.dumps(outcome.summary))
    elif not shared["quiet"]:
        click.echo("\n".join(describe(outcome)))
    for warning in outcome.warnings if not shared["quiet"] else ():
        _complain(f"warning: {warning}")
    if outcome.problems:
        raise Failed("; ".join(outcome.problems))


@commands.command()
@click.argument("settings", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--multirun", "-m", is_flag=True, help="A run for each combination of values: KEY=A,B.")
def train(settings: tuple[str, ...], multirun: bool) -> None:
    """Train a model, or go on with a run.

    \b
    codec train recipe=stream-cpu data.train=FOLDER training.run=runs/mine

    Settings are those of configs/, composed by hydra. The model is written to RUN/last, the best so far to RUN/best.
    Started again on the same run, training goes on exactly where its state was last saved. On several GPUs:
    torchrun --nproc-per-node 4 -m codec train ... Of --multirun each run has a folder below training.run.
    """
    try:
        from codec.config import compose, sweep
    except ImportError as error:
        raise CodecError(f"training needs {error.name}; pip install 'codec[train]'") from error

    if multirun:
        sweep(list(settings), _train_one_of_many)
    else:
        _train(compose(list(settings)))


def _train_one_of_many(config: Any) -> None:
    click.echo(config.training.run, err=True)
    _train(config)


def _train(config: Any) -> None:
    """Train. If it is asked to stop, no other run must start."""
    from codec.training.trainer import Trainer

    trainer = Trainer(config)
    directory = trainer.fit()
    if trainer.step < config.training.steps:
        raise Stopped(f"{config.training.run}: stopped at step {trainer.step} of {config.training.steps} and saved")
    click.echo(str(directory))


@commands.command()
@click.argument("folder", metavar="RUN", type=Name())
@click.option("--curves", metavar="PNG", type=Name(), help="Also draw the run's curves, as one picture.")
@option_json_once
@option_overwrite
def doctor(folder: str, curves: str | None, as_json: bool, overwrite: bool) -> None:
    """Say which known failures a training run resembles, and what to try."""
    from codec.training.doctor import diagnose, read_run

    record = read_run(Path(folder))
    if curves is not None:
        from codec.training.curves import draw_curves

        try:
            draw_curves(record.series, Path(curves), overwrite=overwrite)
        except ImportError as error:
            raise CodecError(f"curves need {error.name}; pip install 'codec[train]'") from error
    diagnosis = diagnose(record)
    click.echo(json.dumps(diagnosis.to_dict(), allow_nan=False) if as_json else str(diagnosis))


# --------------------------------------------------------------------------------------------------------- reporting


def _told(report: Any, text: str, is_warning: bool = False) -> dict[str, Any]:
    """A report's values, with a line for people under "text"."""
    speed = report.seconds / report.elapsed_seconds
    line = f"{report.source} -> {report.target}: {report.seconds:.2f} s, {text} ({speed:.1f} x real time)"
    return dataclasses.asdict(report) | {"text": line, "is_warning": is_warning}


def _report(values: dict[str, Any], as_json: bool, quiet: bool) -> None:
    text, is_warning = values.pop("text"), values.pop("is_warning")
    if as_json:
        click.echo(json.dumps(values, allow_nan=False))
    if is_warning or not (quiet or as_json):
        click.echo(text, err=True)


def _table(facts: dict[str, Any]) -> str:
    """Facts as aligned lines; empty ones are left out."""
    width = max(map(len, facts))
    lines = []
    for name, value in facts.items():
        if isinstance(value, float):
            value = f"{value:.3f}".rstrip("0").rstrip(".")
        elif isinstance(value, dict):
            value = json.dumps(value)
        if value is not None:
            lines.append(f"{name.replace('_', ' '):{width}}  {value}{UNITS.get(name, '')}")
    return "\n".join(lines)


def _saturated(number: int) -> str:
    return f", {_count(number, 'sample')} beyond full scale" if number else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _complain(sentence: str) -> int:
    click.echo(f"codec: {sentence}", err=True)
    return BAD_INPUT


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    """End in order on a signal: what is open is closed, and what is half written is removed."""
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
