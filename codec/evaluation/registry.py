"""All metrics by name, and groups of them."""

from collections.abc import Iterable, Sequence

from codec.errors import ConfigError
from codec.evaluation.asr import RelativeWordErrors, WordErrors
from codec.evaluation.dnsmos import Dnsmos
from codec.evaluation.mcd import MelCepstralDistortion
from codec.evaluation.mel import MelDistance
from codec.evaluation.metric import FILE_COLUMNS, Column, Metric
from codec.evaluation.pesq import NarrowbandPesq, WidebandPesq
from codec.evaluation.pitch import Pitch
from codec.evaluation.si_sdr import SiSdr
from codec.evaluation.speaker import SpeakerSimilarity
from codec.evaluation.stft import StftDistance
from codec.evaluation.stoi import ExtendedStoi, Stoi
from codec.evaluation.utmos import Utmos
from codec.plugins import added

ENTRY_POINTS = "codec.metrics"
"""Group of entry points by which other packages add metrics, see `Metric`."""

_OURS: tuple[type[Metric], ...] = (
    Utmos,
    WidebandPesq,
    NarrowbandPesq,
    Stoi,
    ExtendedStoi,
    Pitch,
    MelDistance,
    StftDistance,
    MelCepstralDistortion,
    SiSdr,
    WordErrors,
    RelativeWordErrors,
    SpeakerSimilarity,
    Dnsmos,
)
"""None of the modules above imports a network: what is heavy is imported when a metric is made."""


def _with_added() -> dict[str, type[Metric]]:
    metrics = {metric.name: metric for metric in _OURS}
    for _, where, metric in added(ENTRY_POINTS):
        if not (isinstance(metric, type) and issubclass(metric, Metric) and hasattr(metric, "name")):
            raise ConfigError(
                f"{where}: is not a metric, which is a class with a name derived from codec.evaluation.metric.Metric"
            )
        if metric.name in metrics:
            raise ConfigError(f"{where}: its name {metric.name!r} is that of another metric")
        if fault := _fault(metric, metrics.values()):
            raise ConfigError(f"{where}: {fault}")
        metrics[metric.name] = metric
    return metrics


MODEL_COLUMNS = (
    Column("bitrate", "bit rate of the files", "", "kbit/s"),
    Column("reencoding", "re-encoding agreement", "higher"),
)
"""Per utterance, where the model is at hand."""

_TAKEN = (*FILE_COLUMNS, *(column.name for column in MODEL_COLUMNS))


def _fault(metric: type[Metric], others: Iterable[type[Metric]]) -> str:
    """What is wrong with the columns of a metric of somebody else, in words that follow where it is from."""
    if not (columns := getattr(metric, "columns", ())) or not all(isinstance(column, Column) for column in columns):
        return "its columns are no tuple of codec.evaluation.metric.Column"
    own = [column.name for column in columns]
    taken = {*_TAKEN, *(column.name for other in others for column in other.columns)}
    for column in columns:
        if column.name in taken or own.count(column.name) > 1:
            return f"its column {column.name!r} has the name of another"
        if column.better not in ("higher", "lower", ""):
            return f"its column {column.name!r} is better {column.better!r}, which must be higher, lower or empty"
        if column.weight not in ("", *own):
            return f"its column {column.name!r} is weighted by {column.weight!r}, which is no column of the metric"
    return ""


METRICS = _with_added()

GROUPS: dict[str, tuple[str, ...]] = {
    "core": ("pesq_wb", "pesq_nb", "stoi", "estoi", "mel", "stft", "mcd", "si_sdr"),
    "paper": ("utmos", "pesq_wb", "stoi", "pitch"),
    "full": tuple(METRICS),
}


def choose(names: Sequence[str]) -> list[str]:
    """Names of metrics and of groups -> names of metrics, each once, in the order of `METRICS`.

    Raises:
        ConfigError: there is no such metric or group.
    """
    chosen: set[str] = set()
    for name in names:
        if name not in GROUPS and name not in METRICS:
            raise ConfigError(f"unknown metric {name!r}; groups: {', '.join(GROUPS)}; metrics: {', '.join(METRICS)}")
        chosen.update(GROUPS.get(name, (name,)))
    if not chosen:
        raise ConfigError(f"no metric named; groups: {', '.join(GROUPS)}; metrics: {', '.join(METRICS)}")
    return [name for name in METRICS if name in chosen]
