"""How many directions W uses: its effective rank while it learns, and against the codebook size.

    python recipes/simvq/rank.py --data FOLDER

The latents are those of an autoencoder without prior, in more dimensions than it needs. The effective rank is exp H of
the singular values divided by their sum (Roy and Vetterli, 2007): that of a random W is near its size, that of a
projection onto r directions is r. Writes `rank.png` and `rank.tsv`.
"""

import sys

import torch
from learning import FRAMES_PER_CODE, learn, measure
from report import arguments, machine, new_figure, prepare, save_figure, style, write_table
from speech import add_data_options, load_frames, make_latents

from codec import SimVQ
from codec.cli import exit_code, positive
from codec.training.monitor import effective_rank


def main() -> None:
    """Learn at every size, with the rank taken on the way; draw."""
    parser = arguments(__doc__)
    add_data_options(parser)
    parser.add_argument("--sizes", type=positive, nargs="+", default=[1 << bits for bits in (10, 12, 14, 16)])
    parser.add_argument("--steps", type=positive, default=400)
    parser.add_argument("--dim", type=positive, default=64)
    parser.add_argument("--frames", type=positive, default=1 << 17, help="measured at most")
    options = parser.parse_args()
    prepare(options)
    frames = load_frames(options)
    speech = make_latents(frames, options, options.seed, has_prior=False)
    of_latents = effective_rank(speech.latents[:8192])
    rows, curves = [], {}
    for size in options.sizes:
        torch.manual_seed(options.seed)
        quantizer = SimVQ(size, options.dim)
        curve: list[tuple[int, float]] = []

        def note(step: int, quantizer: SimVQ = quantizer, curve: list[tuple[int, float]] = curve) -> None:
            if step % max(options.steps // 60, 1) == 0 or step == options.steps:
                curve.append((step, effective_rank(quantizer.projection.weight)))

        learn(quantizer, speech, options.steps, note)
        curves[size] = curve
        row = {"codes": size, "rank at the start": curve[0][1], "rank at the end": curve[-1][1]}
        rows.append(row | {"rank of the latents": of_latents})
        rows[-1] |= measure(quantizer, speech, min(options.frames, FRAMES_PER_CODE * size))
        print(rows[-1], flush=True)
    write_table(options.output / "rank.tsv", rows)

    figure, grid = new_figure(1, 2)
    for size, curve in curves.items():
        grid[0, 0].plot(*zip(*curve, strict=True), label=f"{size} codes")
    grid[0, 0].axhline(of_latents, color="0.5", linestyle="--", label="of the latents")
    grid[0, 0].legend(fontsize=7)
    style(grid[0, 0], "step", "effective rank of W")
    grid[0, 1].plot(options.sizes, [row["rank at the end"] for row in rows], "o-")
    grid[0, 1].axhline(of_latents, color="0.5", linestyle="--")
    grid[0, 1].set_xscale("log", base=2)
    style(grid[0, 1], "codes", "effective rank of W at the end")
    save_figure(figure, options.output / "rank.png")
    print(machine())


if __name__ == "__main__":
    sys.exit(exit_code(main))
