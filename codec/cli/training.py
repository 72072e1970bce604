"""Commands for training runs: train, doctor."""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from codec.cli.options import Name, option_json_once, option_overwrite
from codec.cli.running import INTERRUPTED, Stopped, tell
from codec.errors import CodecError


@click.command()
@click.argument("settings", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--multirun", "-m", is_flag=True, help="One run per combination of values: KEY=A,B.")
@click.option("--show", is_flag=True, help="Print all settings as YAML, and do not train.")
def train(settings: tuple[str, ...], multirun: bool, show: bool) -> None:
    """Train a model, or resume a run.

    \b
    codec train recipe=stream-cpu data.train=FOLDER training.run=runs/mine

    Settings are those of configs/, composed by hydra; --show prints them. The model is written to RUN/last, and to
    RUN/best the one with the highest mean STOI on data.validation so far. Run again with the same training.run, it
    resumes exactly from its last saved state. On several GPUs: torchrun --nproc-per-node 4 -m codec train ... With
    --multirun, each run has a folder below training.run.
    """
    try:
        from codec.config import compose, sweep, to_yaml
    except ImportError as error:
        raise CodecError(f"training needs {error.name}; pip install 'codec[train]'") from error

    if not multirun and any(setting.lstrip("+~").startswith(("hydra.", "hydra/")) for setting in settings):
        raise CodecError("hydra's own settings are for --multirun; the folder of a run is training.run")
    if multirun and os.environ.get("WORLD_SIZE", "1") != "1":
        raise CodecError("--multirun starts one run after another by itself; give torchrun a single run, without it")
    if show and multirun:
        raise click.UsageError("--show is for one run; leave out --multirun")
    if show:
        click.echo(to_yaml(compose(list(settings), is_to_train=False)), nl=False)
    elif multirun:
        sweep(list(settings), _train_one_of_many)
    else:
        _train(compose(list(settings)))


def _train_one_of_many(config: Any) -> None:
    tell(config.training.run)
    _train(config)


def _train(config: Any) -> None:
    """Train. If it is asked to stop, no other run must start."""
    from codec.training.trainer import Trainer

    trainer = Trainer(config)
    directory = trainer.fit()
    if trainer.step < config.training.steps:
        if not trainer.ranks.is_first:  # which speaks for all
            sys.exit(INTERRUPTED)
        raise Stopped(f"{config.training.run}: stopped at step {trainer.step} of {config.training.steps} and saved")
    if trainer.ranks.is_first:
        click.echo(str(directory))


@click.command()
@click.argument("folder", metavar="RUN", type=Name())
@click.option("--curves", metavar="PNG", type=Name(), help="Also draw the run's curves, as one picture.")
@option_json_once
@option_overwrite
def doctor(folder: str, curves: str | None, as_json: bool, overwrite: bool) -> None:
    """Say which known failures a run resembles, and what to try."""
    from codec.training.doctor import diagnose, read_run

    record = read_run(Path(folder))
    if curves is not None:
        from codec.training.curves import draw_curves

        try:
            draw_curves(record.series, Path(curves), overwrite=overwrite)
        except ImportError as error:
            raise CodecError(f"curves need {error.name}; pip install 'codec[train]'") from error
    diagnosis = diagnose(record)
    click.echo(json.dumps(dataclasses.asdict(diagnosis), allow_nan=False) if as_json else str(diagnosis))
