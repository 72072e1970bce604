"""What the experiments of this folder share on the outside: arguments, tables, figures, the name of the machine."""

import argparse
import csv
import os
import platform
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import matplotlib
import torch

from codec import tables
from codec.cli import positive
from codec.cores import num_cores
from codec.output import open_output

matplotlib.use("agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

HERE = Path(__file__).parent

LABELS = {
    "simvq": "SimVQ",
    "vq": "vanilla VQ",
    "vq-vqgan": "vanilla VQ, VQGAN's start",
    "ema": "EMA VQ",
    "fc": "VQGAN-FC",
    "lc": "VQGAN-LC",
    "fsq": "FSQ",
    "lfq": "LFQ",
}
COLOURS = dict(zip(LABELS, plt.get_cmap("tab10").colors, strict=False))


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options all experiments have."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0] if description else None)
    parser.add_argument("--output", type=Path, default=HERE, help="folder for figure and table")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=positive, default=num_cores())
    return parser


def prepare(options: argparse.Namespace) -> None:
    """Threads, seed, folder."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    options.output.mkdir(parents=True, exist_ok=True)


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Tab-separated, a header of the first row's names; floats with four digits, empty what a row does not have."""

    def cell(value: Any) -> Any:
        return f"{value:.4g}" if isinstance(value, float) else value

    tables.write_table(path, rows[0], ([cell(row.get(name, "")) for name in rows[0]] for row in rows))
    print(f"wrote {path}")


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of `write_table`, or none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def new_figure(num_rows: int, num_columns: int, width: float = 4.2, height: float = 3.4) -> tuple[Figure, Any]:
    """A figure and its axes, an array of `num_rows` by `num_columns`."""
    return plt.subplots(
        num_rows, num_columns, figsize=(width * num_columns, height * num_rows), squeeze=False, layout="constrained"
    )


def style(axes: Axes, x: str, y: str, title: str = "") -> None:
    """Labels and a light grid."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)


def save_figure(figure: Figure, path: Path) -> None:
    """As PNG."""
    with open_output(path, overwrite=True) as stream:
        figure.savefig(stream, dpi=110, format="png")
    plt.close(figure)
    print(f"wrote {path}")


def machine() -> str:
    """What the numbers of this run were measured on."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{date.today()}, {name}, {torch.get_num_threads()} of {num_cores()} cores{load}, torch {torch.__version__}"
