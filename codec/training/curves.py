"""The curves of a training run as one picture, to keep beside its model."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from codec.errors import ConfigError
from codec.output import open_output

CURVES = (
    *("loss/mel", "loss/loudness", "loss/convergence", "loss/disturbance", "loss/intelligibility", "loss/pitch"),
    *("loss/quantizer", "loss/usage", "loss/adversarial", "loss/feature_matching", "loss/discriminator"),
    *("codes/utilisation", "codes/perplexity"),
    *("validation/mel", "validation/pesq_wb", "validation/stoi"),
)
"""What is drawn of a run, by the names in its log, as far as they are there."""


def draw_curves(series: Mapping[str, Sequence[tuple[int, float]]], path: Path, *, overwrite: bool = False) -> None:
    """Write a PNG with a panel for each of `CURVES` over the steps.

    Args:
        series: by name, the steps and the values at them; nan leaves a gap.
        path: of the picture.
        overwrite: replace a file that exists.

    Raises:
        ConfigError: `path` does not end in .png.
        ImportError: matplotlib is not installed.
        OSError: the file exists, or the system refuses.
    """
    from matplotlib.figure import Figure

    if path.suffix.lower() != ".png":
        raise ConfigError(f"{path}: the curves are a picture; give it a name that ends in .png")
    names = [name for name in CURVES if name in series]
    num_rows = max(1, -(-len(names) // 2))
    figure = Figure(figsize=(10, 1.8 * num_rows), layout="constrained")
    panels = figure.subplots(num_rows, 2, sharex=True, squeeze=False).flatten(order="F")
    for panel, name in zip(panels, names, strict=False):
        panel.plot(*zip(*series[name], strict=True), linewidth=0.8)
        panel.set_title(name, fontsize=8, loc="left")
        panel.grid(alpha=0.3)
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    for panel in (panels[num_rows - 1], panels[-1]):
        panel.set_xlabel("step")
    with open_output(path, overwrite=overwrite) as stream:
        figure.savefig(stream, dpi=80, format="png")
