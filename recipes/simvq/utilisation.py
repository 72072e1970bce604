"""Utilisation and reconstruction against the codebook size, for SimVQ and its rivals, on latents of real speech.

    python recipes/simvq/utilisation.py --data FOLDER
    python recipes/simvq/utilisation.py --data FOLDER --resume --frame-rate 300 --sizes 262144 --quantizers simvq

Every quantizer learns on the same latents for the same number of steps; `learning.py` says how, `speech.py` of what.
Utilisation is counted over 32 frames per code where there are so many, and at most over `--frames`; over all frames for
the quantizers of `--all-frames`. Writes `utilisation.png` and `utilisation.tsv`.
"""

import argparse
import sys
from time import perf_counter
from typing import Any

import torch
from learning import FRAMES_PER_CODE, learn, measure
from report import COLOURS, LABELS, arguments, machine, new_figure, prepare, read_table, save_figure, style, write_table
from speech import SpeechLatents, add_data_options, load_frames, make_latents

from codec.cli import exit_code, positive
from codec.model.codec import QUANTIZERS
from codec.model.quantizer import Quantizer


def main() -> None:
    """Learn, measure, draw; the table is written after every quantizer."""
    parser = arguments(__doc__)
    add_data_options(parser)
    parser.add_argument("--sizes", type=positive, nargs="+", default=[1 << bits for bits in (10, 12, 14, 16)])
    parser.add_argument("--quantizers", nargs="+", choices=LABELS, default=list(LABELS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=positive, default=200)
    parser.add_argument("--dim", type=positive, default=16)
    parser.add_argument("--frames", type=positive, default=1 << 19, help="measured at most, for a quantizer")
    parser.add_argument(
        "--all-frames", nargs="*", choices=LABELS, default=["simvq"], help="quantizers measured on all frames instead"
    )
    parser.add_argument("--lfq-codes", type=positive, default=1 << 12, help="at most for LFQ, whose time grows fastest")
    parser.add_argument("--resume", action="store_true", help="keep the rows that the table already has")
    options = parser.parse_args()
    prepare(options)
    table = options.output / "utilisation.tsv"
    rows: list[dict[str, Any]] = list(read_table(table)) if options.resume else []
    done = {(row["quantizer"], int(row["codes"]), int(row["seed"])) for row in rows}
    frames = load_frames(options)
    for seed in options.seeds:
        speech = make_latents(frames, options, seed, has_prior=True)
        for size in options.sizes:
            for name in options.quantizers:
                is_too_slow = name == "lfq" and size > options.lfq_codes
                if (LABELS[name], size, seed) not in done and not is_too_slow:
                    rows.append(run(name, size, seed, speech, options))
                    write_table(table, rows)
    draw(read_table(table), options)
    print(machine())


def run(name: str, size: int, seed: int, speech: SpeechLatents, options: argparse.Namespace) -> dict[str, Any]:
    """One row of the table."""
    torch.manual_seed(seed)
    quantizer = create(name, size, options.dim)
    started = perf_counter()
    learn(quantizer, speech, options.steps)
    row = {"quantizer": LABELS[name], "codes": size, "seed": seed, "learned s": perf_counter() - started}
    most = len(speech.latents) if name in options.all_frames else options.frames
    row |= measure(quantizer, speech, min(most, FRAMES_PER_CODE * size))
    print({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}, flush=True)
    return row


def create(name: str, size: int, dim: int) -> Quantizer:
    """A quantizer as it starts. The codes of VQGAN's (and VQ-VAE's common) vanilla VQ are drawn from +-1 / K."""
    config_class, quantizer_class = QUANTIZERS[name.removesuffix("-vqgan")]
    config_class(codebook_size=size, codebook_dim=dim)  # refuses sizes that it cannot have
    quantizer: Quantizer = quantizer_class(size, dim)
    if name.endswith("-vqgan"):
        torch.nn.init.uniform_(quantizer.codebook, -1 / size, 1 / size)
    return quantizer


def draw(rows: list[dict[str, str]], options: argparse.Namespace) -> None:
    """Utilisation, perplexity and errors against K; lines are means over seeds, dots are seeds."""
    figure, grid = new_figure(1, 4)
    for axes, column in zip(grid[0], ("utilisation %", "perplexity", "latent error", "frame error"), strict=True):
        for name, label in LABELS.items():
            values: dict[int, list[float]] = {}
            for row in rows:
                if row["quantizer"] == label:
                    values.setdefault(int(row["codes"]), []).append(float(row[column]))
            sizes = sorted(values)
            axes.plot(sizes, [sum(values[k]) / len(values[k]) for k in sizes], color=COLOURS[name], label=label)
            for size in sizes:
                axes.plot([size] * len(values[size]), values[size], "o", color=COLOURS[name], markersize=4)
        axes.set_xscale("log", base=2)
        style(axes, "codes", column)
    grid[0, 1].set_yscale("log")
    grid[0, 0].legend(fontsize=7)
    save_figure(figure, options.output / "utilisation.png")


if __name__ == "__main__":
    sys.exit(exit_code(main))
