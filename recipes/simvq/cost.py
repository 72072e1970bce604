"""Time and memory of quantizing against the codebook size: ours, the naive way, and the best-known library.

    python recipes/simvq/cost.py

Every measurement runs in a process of its own, in which the resident peak is reset before the call, after a tiny one
that loads what has to be loaded. "Search" is the exact search alone; its floor is one matrix product of the same size,
(N, d) x (d, K), timed in the same process in turn with it: `torch.matmul`, and the same product in oneDNN's own layout,
which on many CPUs is twice as fast. "Forward" is the whole quantizer in eval mode, "step" is forward and backward in
training: commitment loss plus mean square of the output, gradients into latents and projection. "Naive" projects the
whole table with gradient and holds the N x K distances, as the published code does. The library is
vector-quantize-pytorch (its `SimVQ`). Writes `cost.png` and `cost.tsv`.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from report import arguments, machine, new_figure, prepare, save_figure, style, write_table
from torch import Tensor, nn

from codec import SimVQ
from codec.cli import exit_code, positive
from codec.model.search import half_squared_norms, nearest_code

IMPLEMENTATIONS = {"ours": "this project", "naive": "naive", "library": "vector-quantize-pytorch"}
MARKS = {"ours": "o-", "naive": "s-", "library": "^-"}


def main() -> None:
    """Measure every implementation at every size, each in a new process."""
    parser = arguments(__doc__)
    parser.add_argument("--sizes", type=positive, nargs="+", default=[1 << bits for bits in (10, 12, 14, 16, 18)])
    parser.add_argument("--vectors", type=positive, default=1500, help="N, 20 s of speech")
    parser.add_argument("--dim", type=positive, default=512)
    parser.add_argument("--runs", type=positive, default=5, help="timed runs after one that warms up")
    parser.add_argument("--usage", action="store_true", help="with the usage loss of `codec train` in our steps")
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "K"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    prepare(options)
    if options.measure:
        return measure(options.measure[0], int(options.measure[1]), options)
    rows = [row for size in options.sizes for row in measure_size(size)]
    write_table(options.output / "cost.tsv", rows)
    draw(rows, options.output / "cost.png")
    print(machine())


def measure_size(codebook_size: int) -> list[dict[str, Any]]:
    """One row for each implementation."""
    search = run_measurement("search", codebook_size)
    rows = []
    for name, label in IMPLEMENTATIONS.items():
        values = run_measurement(name, codebook_size)
        row = {"codes": codebook_size, "implementation": label}
        row |= {"forward s": values["forward"], "step s": values["step"], "extra memory MiB": values["memory"]}
        if name == "ours":
            row |= {"search s": search["search"], "matmul s": search["matmul"], "oneDNN matmul s": search["onednn"]}
            row |= {"search / matmul": search["search"] / search["matmul"]}
            row |= {"search / oneDNN matmul": search["search"] / search["onednn"]}
        rows.append(row)
        print({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}, flush=True)
    return rows


def run_measurement(what: str, codebook_size: int) -> dict[str, float]:
    """`measure` in a new process; what it could not do (out of memory, missing library) is NaN."""
    command = [sys.executable, __file__, *sys.argv[1:], "--measure", what, str(codebook_size)]
    done = subprocess.run(command, capture_output=True, text=True)
    values = dict.fromkeys(("search", "matmul", "onednn", "forward", "step", "memory"), float("nan"))
    for line in done.stdout.splitlines():
        name, value = line.split()
        values[name] = float(value)
    if done.returncode:
        print(f"{what} with {codebook_size} codes: {(done.stderr.strip() or 'killed').splitlines()[-1]}")
    return values


def measure(what: str, codebook_size: int, options: argparse.Namespace) -> None:
    """Print times in seconds and memory in MiB, one `name value` a line."""
    latent = torch.randn(1, options.dim, options.vectors)
    if what == "search":
        return measure_search(codebook_size, latent, options.runs)
    implementation = {"ours": SimVQ, "naive": NaiveSimVQ, "library": LibrarySimVQ}[what]

    def step(quantizer: nn.Module) -> None:
        leaf = latent.clone().requires_grad_()
        quantizer.zero_grad()
        quantized, loss = call(quantizer.train(), leaf)
        if options.usage and isinstance(quantizer, SimVQ):
            loss = loss + quantizer.usage_loss(leaf)
        (loss + quantized.square().mean()).backward()

    step(implementation(16, options.dim))
    quantizer = implementation(codebook_size, options.dim)
    reset_peak()
    before = peak_memory()
    step(quantizer)
    print("memory", max(peak_memory() - before, 0.0))  # the system counts pages per thread, and is off by some
    print("step", median(seconds(lambda: step(quantizer)) for _ in range(options.runs)))
    with torch.no_grad():
        call(quantizer.eval(), latent)
        print("forward", median(seconds(lambda: call(quantizer, latent)) for _ in range(options.runs)))


def measure_search(codebook_size: int, latent: Tensor, runs: int) -> None:
    """Search and its floors in turn, so that a busy machine slows all alike."""
    quantizer = SimVQ(codebook_size, latent.shape[1]).eval()
    with torch.no_grad():
        vectors, codes = latent[0].T.contiguous(), quantizer.effective_codebook()
        half_norms, packed_vectors = half_squared_norms(codes), vectors.to_mkldnn()
        jobs: dict[str, Callable[[], object]] = {
            "search": lambda: nearest_code(vectors, codes, half_norms=half_norms),
            "matmul": lambda: torch.matmul(vectors, codes.T),
            # In tiles, whose packing is counted: all at once it would be slower.
            "onednn": lambda: [F.linear(packed_vectors, tile.to_mkldnn()) for tile in codes.split(1024)],
        }
        times: dict[str, list[float]] = {name: [] for name in jobs}
        for _ in range(runs + 1):
            for name, job in jobs.items():
                times[name].append(seconds(job))
    for name, values in times.items():
        print(name, median(values[1:]))


def call(quantizer: nn.Module, latent: Tensor) -> tuple[Tensor, Tensor]:
    """Quantized latent and loss, whatever the implementation returns."""
    output = quantizer(latent)
    return (output.quantized, output.loss) if isinstance(quantizer, SimVQ) else output


class NaiveSimVQ(nn.Module):
    """SimVQ as one writes it down: the whole table projected at every call, all N x K distances at once."""

    def __init__(self, codebook_size: int, codebook_dim: int):
        super().__init__()
        self.register_buffer("codebook", torch.randn(codebook_size, codebook_dim) * codebook_dim**-0.5)
        self.projection = nn.Linear(codebook_dim, codebook_dim)

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """(1, D, N) -> quantized, loss."""
        vectors = latent[0].T
        codes = self.projection(self.codebook)
        distances = vectors.square().sum(1, keepdim=True) + codes.square().sum(1) - 2 * vectors @ codes.T
        selected = F.embedding(distances.argmin(1), codes)
        loss = 0.25 * F.mse_loss(vectors, selected.detach()) + F.mse_loss(selected, vectors.detach())
        return (vectors + (selected - vectors).detach()).T[None], loss


class LibrarySimVQ(nn.Module):
    """The library's, with the straight-through estimator like the others."""

    def __init__(self, codebook_size: int, codebook_dim: int):
        super().__init__()
        from vector_quantize_pytorch import SimVQ as Implementation

        self.quantizer = Implementation(codebook_dim, codebook_size, channel_first=True, rotation_trick=False)

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """(1, D, N) -> quantized, loss."""
        quantized, _, loss = self.quantizer(latent)
        return quantized, loss


def seconds(job: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    job()
    return time.perf_counter() - started


def reset_peak() -> None:
    """Forget the highest resident memory so far (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> float:
    """Highest resident memory of this process in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Search, step and memory against K."""
    figure, grid = new_figure(1, 3)
    for axes, column, title in zip(
        grid[0],
        ("forward s", "step s", "extra memory MiB"),
        ("forward in eval mode", "forward and backward", "peak memory of a step, beside the weights"),
        strict=True,
    ):
        for name, label in IMPLEMENTATIONS.items():
            mine = [row for row in rows if row["implementation"] == label]
            axes.plot([r["codes"] for r in mine], [r[column] for r in mine], MARKS[name], label=label)
        if column == "forward s":
            mine = [row for row in rows if "matmul s" in row]
            for name, line in (("matmul s", "k--"), ("oneDNN matmul s", "k:")):
                axes.plot([r["codes"] for r in mine], [r[name] for r in mine], line, label=f"one {name[:-2]}")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        style(axes, "codes", "MiB" if "MiB" in column else "seconds", title)
    grid[0, 0].legend(fontsize=7)
    save_figure(figure, path)


if __name__ == "__main__":
    sys.exit(exit_code(main))
