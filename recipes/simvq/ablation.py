"""What C is drawn from, and whether it is learned too: three codebooks behind the same projection.

    python recipes/simvq/ablation.py --data FOLDER

On the latents of `utilisation.py`, several seeds. Writes `ablation.png` and `ablation.tsv`.
"""

import sys
from typing import Any

import torch
from learning import FRAMES_PER_CODE, learn, measure
from report import arguments, machine, new_figure, prepare, save_figure, style, write_table
from speech import add_data_options, load_frames, make_latents

from codec import SimVQ
from codec.cli import exit_code, positive

CODEBOOKS: dict[str, dict[str, Any]] = {
    "Gaussian, frozen": {},
    "uniform, frozen": {"codebook_init": "uniform"},
    "Gaussian, trained": {"is_codebook_trained": True},
}


def main() -> None:
    """Learn, measure, draw."""
    parser = arguments(__doc__)
    add_data_options(parser)
    parser.add_argument("--sizes", type=positive, nargs="+", default=[1024, 16384])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=positive, default=200)
    parser.add_argument("--dim", type=positive, default=16)
    options = parser.parse_args()
    prepare(options)
    frames = load_frames(options)
    rows = []
    for seed in options.seeds:
        speech = make_latents(frames, options, seed, has_prior=True)
        for size in options.sizes:
            for name, settings in CODEBOOKS.items():
                torch.manual_seed(seed)
                quantizer = SimVQ(size, options.dim, **settings)
                learn(quantizer, speech, options.steps)
                rows.append({"codebook": name, "codes": size, "seed": seed})
                rows[-1] |= measure(quantizer, speech, FRAMES_PER_CODE * size)
    write_table(options.output / "ablation.tsv", rows)
    draw(rows, options.output / "ablation.png", options.sizes)
    print(machine())


def draw(rows: list[dict[str, Any]], path: Any, sizes: list[int]) -> None:
    """A group of bars for each size: means, with the seeds as dots."""
    figure, grid = new_figure(1, 3)
    width = 0.8 / len(CODEBOOKS)
    for axes, column in zip(grid[0], ("utilisation %", "latent error", "frame error"), strict=True):
        for index, name in enumerate(CODEBOOKS):
            for place, size in enumerate(sizes):
                values = [row[column] for row in rows if row["codebook"] == name and row["codes"] == size]
                x = place + (index - 1) * width
                label = name if place == 0 else None
                axes.bar(x, sum(values) / len(values), width * 0.9, color=f"C{index}", alpha=0.6, label=label)
                axes.plot([x] * len(values), values, "k.", markersize=4)
        axes.set_xticks(range(len(sizes)), [str(size) for size in sizes])
        style(axes, "codes", column)
    grid[0, 0].legend(fontsize=7, loc="lower left")
    save_figure(figure, path)


if __name__ == "__main__":
    sys.exit(exit_code(main))
