"""Commands for whole corpora: prepare, tokenize."""

import dataclasses
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from codec.cli.options import (
    Name,
    option_device,
    option_jobs,
    option_json_once,
    option_max_damaged,
    option_model,
    option_precision,
    option_quiet,
    option_refine,
    together,
)
from codec.cli.reporting import count
from codec.cli.running import Failed, complain, tell
from codec.progress import CountLine


@click.group()
def prepare() -> None:
    """Check a corpus and write manifests to train and evaluate on."""


options_of_preparation = together(
    click.option("--out", type=Name(Path), help="Where the manifests go.  [default: manifests, in the corpus]"),
    click.option("--min-seconds", default=0.5, show_default=True, help="Drop shorter files."),
    click.option("--max-seconds", default=40.0, show_default=True, help="Drop longer files."),
    click.option("--max-silent", default=0.9, show_default=True, help="Drop files with a larger silent share."),
    click.option("--max-clipped", default=0.01, show_default=True, help="Drop files with a larger clipped share."),
    click.option("--headers-only", is_flag=True, help="Do not read samples: faster, finds less."),
    click.option("--subset", default=0, metavar="N", help="Keep N utterances per manifest, from all speakers."),
    click.option("--seed", default=0, show_default=True, help="For all random draws."),
    option_max_damaged,
    click.option(
        "--exclude",
        type=Name(Path),
        multiple=True,
        metavar="LIST",
        help="Leave out the files in a manifest or a text file of ids or paths; may be repeated.",
    ),
    click.option("--strict", is_flag=True, help="Fail on any warning."),
    option_jobs,
    option_json_once,
    option_quiet,
)
"""What every preparation can be told."""


@prepare.command("libritts")
@click.argument("root", type=Name(Path))
@click.option("--variant", type=click.Choice(["libritts", "libritts-r"]), default="libritts", show_default=True)
@click.option(
    "--parts", default="", metavar="NAME,...", help="train, dev, test, test-clean ...  [default: those there, or all]"
)
@click.option("--archives", type=Name(Path), help="Folder of the .tar.gz files.  [default: ROOT]")
@click.option("--download/--no-download", default=True, help="Fetch what is missing.  [default: download]")
@click.option("--mirror", "mirrors", multiple=True, metavar="URL", help="Used instead of openslr.org; may be repeated.")
@click.option("--keep-archives", is_flag=True, help="Keep fetched archives after unpacking.")
@click.option("--no-sums", is_flag=True, help="Accept archives whose MD5 sum is not the published one.")
@click.option("--filter-all", is_flag=True, help="Filter dev and test too, not only train.")
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
    **shared: Any,
) -> None:
    """LibriTTS or LibriTTS-R: downloaded, from archives or from an unpacked tree.

    ROOT holds the folder LibriTTS (LibriTTS_R), or will hold it. Parts that are named but missing are fetched; all of
    them, 84 GB, if there are none. Run again after an interruption, the command resumes where it stopped.
    """
    from codec.preparation.libritts import MIRRORS, Sources, prepare_libritts

    sources = Sources(archives, download, mirrors or MIRRORS, not no_sums, keep_archives)
    names = [name.strip() for name in parts.split(",") if name.strip()]
    _prepare(
        shared,
        lambda **given: prepare_libritts(
            root, variant=variant, parts=names, sources=sources, filter_all=filter_all, **given
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
@click.option("--dev", default=0.0, metavar="SHARE", help="Hold out this share of the utterances, by speaker.")
@click.option("--test", default=0.0, metavar="SHARE", help="The same, for a test list.")
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
    from codec.manifest import check_manifest

    utterances, complaints = check_manifest(manifest)
    for complaint in complaints:
        complain(complaint)
    if complaints:
        raise Failed(f"{len(complaints)} of {count(len(utterances), 'utterance')} do not agree with {manifest}")
    hours = sum(utterance.seconds for utterance in utterances) / 3600
    click.echo(f"{manifest}: {count(len(utterances), 'utterance')}, {hours:.2f} hours, all there")


def _prepare(shared: dict[str, Any], start: Callable[..., Any]) -> None:
    """Run a preparation and report what it did; problems make the command fail."""
    from codec.preparation.outcome import PreparationConfig, describe
    from codec.preparation.selection import Filters

    filters = Filters(*(shared[name] for name in ("min_seconds", "max_seconds", "max_silent", "max_clipped")))
    settings = {name: shared[name] for name in ("headers_only", "subset", "seed", "max_damaged", "strict", "jobs")}
    config = PreparationConfig(filters, **settings)
    with CountLine(not shared["quiet"]) as progress:
        outcome = start(folder=shared["out"], exclude=shared["exclude"], config=config, progress=progress)
    if shared["as_json"]:
        click.echo(json.dumps(outcome.summary))
    elif not shared["quiet"]:
        click.echo("\n".join(describe(outcome)))
    for warning in outcome.warnings:
        complain(f"warning: {warning}")
    if outcome.problems:
        raise Failed("; ".join(outcome.problems))


@click.command()
@click.argument("source", metavar="MANIFEST|DIR", type=Name())
@click.argument("target", metavar="OUT_DIR", type=Name())
@option_model("stream", "Boxed model, model directory or Hub id.")
@option_device
@option_precision
@option_refine
@option_jobs
@click.option(
    "--shard",
    type=int,
    metavar="N",
    help="Utterances per file of codes.  [default: as OUT_DIR was begun, or a hundredth of all, 50 to 1000]",
)
@click.option(
    "--share", default="1/1", show_default=True, metavar="I/N", help="Make only every N-th shard, from the I-th."
)
@option_max_damaged
@option_json_once
@option_quiet
def tokenize(
    source: str,
    target: str,
    model: str,
    device: str,
    precision: str,
    refine: int,
    jobs: int | None,
    shard: int | None,
    share: str,
    max_damaged: float,
    as_json: bool,
    quiet: bool,
) -> None:
    """Turn a whole corpus into codes, in a few large files.

    \b
    codec prepare folder recordings --out lists
    codec tokenize lists/all.tsv tokens

    OUT_DIR gets shards: a numpy array and a table for every --shard utterances. Run again, the command makes what is
    missing; with --share, several machines or GPUs split a corpus between them. Utterances that cannot be used are
    listed in OUT_DIR/*.failed.tsv, and tried again once their files have changed; up to --max-damaged of a share may
    fail. On a GPU the default is --jobs 0.
    """
    from codec.limits import excess
    from codec.tokenization.corpus import tokenize as tokenize_corpus

    if not (numbers := re.fullmatch(r"(\d{1,9})/(\d{1,9})", share)):
        raise click.UsageError(f"--share takes I/N, for example 2/8, got {share}")
    with CountLine(not quiet) as progress:
        report = tokenize_corpus(
            source,
            target,
            model=model,
            device=device,
            precision=precision,
            refine=refine,
            jobs=jobs,
            utterances_per_shard=shard,
            share=(int(numbers[1]), int(numbers[2])),
            progress=progress,
        )
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(report)))
    elif not quiet:
        already = f", {report.num_found} of which were there already" if report.num_found else ""
        speed = f" ({report.new_seconds / report.elapsed_seconds:.1f} x real time)" if report.new_seconds else ""
        tell(
            f"{target}: {count(report.num_utterances, 'utterance')}, {report.seconds / 3600:.2f} hours, "
            f"{report.num_codes} codes in {count(report.num_shards, 'shard')}{already}{speed}"
        )
    if report.num_failed:
        total, failures = report.num_failed + report.num_utterances, os.path.join(target, "*.failed.tsv")
        sentence = f"{report.num_failed} of {count(total, 'utterance')} could not be used"
        if too_many := excess(report.num_failed, total, max_damaged, f"see {failures}"):
            raise Failed(sentence + too_many)
        complain(f"warning: {sentence}, see {failures}")
