"""Two dimensions, four ways to learn a codebook: which codes reach the targets, and which are left behind.

    python recipes/simvq/toy.py

Targets lie away from the codes, as the latents of an encoder do at the start of training. Each mode minimises
||z - q||^2 by gradient descent on the code vectors only, from the same effective codes; noise on the targets stands for
an encoder that changes a little from step to step. Writes `toy.png`, `toy.gif` and `toy.tsv`.

Source: SimVQ, arXiv:2411.02038, the toy examples of section 4.
"""

import sys
from pathlib import Path

import torch
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.axes import Axes
from report import arguments, new_figure, prepare, save_figure, write_table
from torch import Tensor

from codec import SimVQ
from codec.cli import exit_code, positive
from codec.model.quantizer import VQ

NUM_CODES = 100
NUM_TARGETS = 400
NOISE = 0.1
LEARNING_RATE = 0.5
FRAMES = 48


def main() -> None:
    """Run the four modes and draw them."""
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=positive, default=3000)
    options = parser.parse_args()
    prepare(options)
    targets = torch.randn(NUM_TARGETS, 2) @ torch.tensor([[1.2, 0.4], [0.0, 0.5]]) + torch.tensor([2.5, 1.5])
    shown = sorted({round(options.steps ** (i / (FRAMES - 1))) for i in range(FRAMES)} | {0})
    tracks = {name: learn(mode, targets, options.steps, shown) for name, mode in modes().items()}
    write_table(options.output / "toy.tsv", [summary(name, track, targets) for name, track in tracks.items()])
    draw(tracks, targets, shown, options.output)


def modes() -> dict[str, VQ]:
    """The four, starting from the same effective codes."""
    rows = torch.randn(NUM_CODES, 2) / 2**0.5
    mix = torch.tensor([[0.8, 0.6], [-0.3, 1.1]])  # any invertible W will do
    result = {}
    for name, quantizer, start in (
        ("C learned (vanilla VQ)", VQ(NUM_CODES, 2, beta=0), torch.eye(2)),
        ("C learned, W frozen", SimVQ(NUM_CODES, 2, beta=0, is_codebook_trained=True), mix),
        ("C frozen, W learned (SimVQ)", SimVQ(NUM_CODES, 2, beta=0), torch.eye(2)),
        ("C and W learned", SimVQ(NUM_CODES, 2, beta=0, is_codebook_trained=True), torch.eye(2)),
    ):
        with torch.no_grad():
            quantizer.codebook.copy_(rows @ torch.linalg.inv(start))
            if isinstance(quantizer, SimVQ):
                quantizer.projection.weight.copy_(start.T)
                quantizer.projection.bias.zero_()
        result[name] = quantizer
    result["C learned, W frozen"].projection.requires_grad_(False)
    return result


def learn(quantizer: VQ, targets: Tensor, num_steps: int, shown: list[int]) -> Tensor:
    """The effective codes at the steps to be shown: (steps, K, 2)."""
    optimizer = torch.optim.SGD([p for p in quantizer.parameters() if p.requires_grad], lr=LEARNING_RATE)
    generator = torch.Generator().manual_seed(1)
    track = []
    for step in range(num_steps + 1):
        if step in shown:
            track.append(quantizer.effective_codebook().detach().clone())
        noisy = targets + NOISE * torch.randn(targets.shape, generator=generator)
        optimizer.zero_grad()
        quantizer(noisy).loss.backward()
        optimizer.step()
    return torch.stack(track)


def summary(name: str, track: Tensor, targets: Tensor) -> dict[str, str | float]:
    """What became of the codes."""
    first, last = (torch.cdist(targets, codes) for codes in (track[0], track[-1]))
    moved = (track[-1] - track[0]).norm(dim=1) > 0.01
    return {
        "mode": name,
        "codes that moved": moved.float().mean().item(),
        "utilisation at the start": first.argmin(1).unique().numel() / NUM_CODES,
        "utilisation at the end": last.argmin(1).unique().numel() / NUM_CODES,
        "error at the start": first.amin(1).square().mean().item(),
        "error at the end": last.amin(1).square().mean().item(),
    }


def draw(tracks: dict[str, Tensor], targets: Tensor, shown: list[int], output: Path) -> None:
    """The way of every code as a figure, and the same as an animation."""
    figure, grid = new_figure(1, 4, width=3.4, height=3.3)
    for axes, (name, track) in zip(grid[0], tracks.items(), strict=True):
        prepare_axes(axes, name, targets)
        for code in range(NUM_CODES):
            axes.plot(*track[:, code].T, color="0.6", linewidth=0.6, zorder=1)
        axes.scatter(*track[0].T, s=6, color="0.6", label="codes at the start", zorder=2)
        axes.scatter(*track[-1].T, s=8, color="tab:red", label=f"codes after {shown[-1]} steps", zorder=3)
    grid[0, 0].legend(loc="upper left", fontsize=7)
    save_figure(figure, output / "toy.png")

    figure, grid = new_figure(1, 4, width=2.6, height=2.7)
    points = []
    for axes, (name, track) in zip(grid[0], tracks.items(), strict=True):
        prepare_axes(axes, name, targets)
        points.append(axes.scatter(*track[0].T, s=6, color="tab:red"))
    heading = figure.suptitle("step 0", fontsize=9)

    def update(index: int) -> list:
        for scatter, track in zip(points, tracks.values(), strict=True):
            scatter.set_offsets(track[index])
        heading.set_text(f"step {shown[index]}")
        return [*points, heading]

    FuncAnimation(figure, update, frames=len(shown)).save(output / "toy.gif", PillowWriter(fps=8), dpi=70)
    print(f"wrote {output / 'toy.gif'}")


def prepare_axes(axes: Axes, name: str, targets: Tensor) -> None:
    """Targets, and the same window everywhere."""
    axes.scatter(*targets.T, s=4, color="tab:blue", alpha=0.4, label="targets", zorder=0)
    axes.set(xlim=(-3, 6.5), ylim=(-2.5, 4), xticks=[], yticks=[])
    axes.set_title(name, fontsize=9)


if __name__ == "__main__":
    sys.exit(exit_code(main))
