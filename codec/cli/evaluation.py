"""The command that scores codecs: evaluate."""

import json
from contextlib import ExitStack
from pathlib import Path

import click
from click.core import ParameterSource

from codec.cli.options import (
    Name,
    option_device,
    option_jobs,
    option_json_once,
    option_model,
    option_quiet,
    option_refine,
)
from codec.cli.reporting import count
from codec.cli.running import Failed
from codec.progress import SpeedLine


@click.command()
@click.argument("folders", metavar="[REFERENCE ESTIMATE | A B ...]", type=Name(), nargs=-1)
@option_model(None, "Encode and decode with this model, then score: boxed model, model directory or Hub id.")
@click.option("--data", metavar="DIR|MANIFEST", type=Name(), help="Recordings to encode with --model.")
@option_refine
@click.option(
    "--metrics", default="core", show_default=True, metavar="NAME,...", help="Metrics, or core, paper (SimVQ's), full."
)
@click.option("--utmos-weights", metavar="FILE", type=Name(), help="UTMOS22 strong checkpoint, in any of its layouts.")
@click.option("--dnsmos-weights", metavar="DIR", type=Name(), help="Folder with sig_bak_ovr.onnx and model_v8.onnx.")
@click.option(
    "--asr-model",
    metavar="DIR|ID",
    type=Name(),
    help="transformers speech recogniser, for wer (what was said: in NAME.txt beside NAME.wav) and dwer.",
)
@click.option("--speaker-model", metavar="DIR|ID", type=Name(), help="transformers x-vector model, for speaker.")
@click.option("--download", is_flag=True, help="Fetch metric weights that are missing.")
@click.option(
    "--output", "-o", metavar="DIR", type=Name(), help="Table, summary and report go here; resumes a run begun there."
)
@option_jobs
@click.option("--limit", type=int, metavar="N", help="Only N utterances, spread over the data.")
@click.option(
    "--hop-length",
    type=int,
    metavar="SAMPLES",
    help="How much lengths may differ.  [default: the model's hop length; for folders 25 ms]",
)
@click.option("--delay", type=int, default=0, metavar="SAMPLES", help="The codec's delay; removed before scoring.")
@click.option("--no-audio", is_flag=True, help="No players in the report, to keep it small.")
@click.option(
    "--compare", is_flag=True, help="Compare outputs of this command, A B ..., utterance by utterance with the first."
)
@option_device
@click.option("--strict", is_flag=True, help="Exit with code 2 if anything has no score.")
@option_json_once
@option_quiet
def evaluate(
    folders: tuple[str, ...],
    model: str | None,
    data: str | None,
    refine: int,
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
    compare: bool,
    device: str,
    strict: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Score a model, or the output of any codec.

    \b
    codec evaluate REFERENCE ESTIMATE            sound files of the same names in two folders
    codec evaluate --model stream --data DIR     encode, decode, score
    codec evaluate --compare A B C               which are better than the first, and how certain that is

    Intervals are over speakers: those of the list, or the first-level sub-folders of DIR or REFERENCE; so name
    LibriTTS/test-clean, not LibriTTS. Where fewer than six are known, intervals are over files.
    """
    from codec.evaluation.evaluate import Options, evaluate_folders, evaluate_model
    from codec.evaluation.metric import Settings
    from codec.evaluation.registry import choose
    from codec.evaluation.report import table

    if refine and model is None:
        raise click.UsageError("--refine is for the codes of --model")
    if compare:
        context = click.get_current_context()
        given = {name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
        if unused := given - {"folders", "compare", "output", "as_json", "quiet"}:
            listed = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(unused))
            raise click.UsageError(f"--compare takes outputs of this command, and scores nothing: leave out {listed}")
        _compare(folders, output, as_json, quiet)
        return
    if (len(folders), model is None, data is None) not in ((2, True, True), (0, False, False)):
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
    options = Options(names, settings, jobs, hop_length, limit, delay, with_audio=not no_audio, refine=refine)
    lines: dict[str, SpeedLine] = {}
    with ExitStack() as shown:

        def progress(what: str, done: float, total: float) -> None:
            if what not in lines:
                lines[what] = shown.enter_context(SpeedLine(what, not quiet))
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
    wanted = choose(names)
    missing = [entry["metric"] for entry in result.summary["not_computed"] if entry["metric"] in wanted]
    if strict and (result.problems or missing):
        without = f"; not computed: {', '.join(missing)}" if missing else ""
        raise Failed(f"{count(len(result.problems), 'problem')}, listed in the report{without}")


def _compare(folders: tuple[str, ...], output: str | None, as_json: bool, quiet: bool) -> None:
    from codec.evaluation.comparison import compare, comparison_table, write_comparison

    found = compare(*folders)
    if output is not None:
        write_comparison(found, Path(output))
    if as_json:
        click.echo(json.dumps(found, allow_nan=False))
    elif not quiet:
        click.echo(comparison_table(found))
