"""Commands about what there is: info, models, import, export."""

import json

import click

from codec.cli.options import Name, option_json_once, option_overwrite, option_quiet
from codec.cli.reporting import count, table_of
from codec.cli.running import Failed, complain, tell
from codec.errors import CodecError, sentence
from codec.progress import CountLine


@click.command()
@click.argument("paths", metavar="FILE...", type=Name(), nargs=-1, required=True)
@option_json_once
def info(paths: tuple[str, ...], as_json: bool) -> None:
    """Describe a file of codes, a sound file or a model.

    FILE is a .codes, .npy, .json or .txt file (also - for standard input), a sound file, a folder of tokens, a model
    directory or the name of a boxed model. A damaged .codes file is described as far as possible, with exit code 2.
    """
    from codec.inspection import inspect

    num_bad = 0
    for path in paths:
        try:
            with CountLine() as progress:
                facts = inspect(path, progress)
        except (CodecError, OSError) as error:
            if len(paths) == 1:
                raise
            num_bad += 1
            complain(sentence(error))
            continue
        num_bad += bool(facts.get("damage"))
        click.echo(json.dumps(facts, allow_nan=False) if as_json else table_of(facts) + "\n" * (len(paths) > 1))
    if num_bad:
        raise Failed(f"{num_bad} of {count(len(paths), 'file')} damaged or unreadable")


@click.command()
@option_json_once
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


@click.command("import")
@click.argument("path", metavar="CHECKPOINT", type=Name())
@click.argument("directory", metavar="OUT_DIR", type=Name())
@click.option("--from", "kind", type=click.Choice(["wavtokenizer", "simvq"]), required=True, help="Where it is from.")
@click.option(
    "--config", metavar="YAML", type=Name(), help="What it was trained with; otherwise inferred from the weights."
)
@click.option(
    "--weights",
    type=click.Choice(["ema", "raw"]),
    default="ema",
    show_default=True,
    help="SimVQ's averaged weights, or those of the last step.",
)
@click.option("--keep-discriminators", is_flag=True, help="Also keep these, for fine-tuning.")
@click.option("--with-simvq", is_flag=True, help="Replace WavTokenizer's codebook with a SimVQ; codes stay the same.")
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

    The report accounts for every key of CHECKPOINT; an unknown key, or one with another shape, is an error.
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
        tell(report)


@click.command("export")
@click.argument("model", metavar="MODEL", type=Name())
@click.argument("path", metavar="OUTPUT", type=Name())
@option_overwrite
def export(model: str, path: str, overwrite: bool) -> None:
    """Write a model's weights under their published names.

    MODEL is a model directory of the reference family. OUTPUT with the suffix .ckpt is for the published loaders, with
    .safetensors the state dict alone, with any other a PyTorch file of the state dict.
    """
    from codec.model.importer import export_checkpoint

    export_checkpoint(model, path, overwrite=overwrite)
