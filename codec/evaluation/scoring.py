"""All metrics of one pair of files, as one task of a worker process."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import isfinite

from codec.errors import CodecError, sentence
from codec.evaluation.delay import delay_of
from codec.evaluation.journal import file_sum, text_sum
from codec.evaluation.metric import LARGEST_SCORE, Metric, Settings, Undefined
from codec.evaluation.pairs import Item, load_pair
from codec.evaluation.registry import METRICS

_FAILED = "failed: "
"""Begins the reason where a metric raised what it should not: maybe the memory was full, so it is tried again."""


@dataclass
class Row:
    """What is known of one utterance: the value of each column, or why it has none."""

    id: str
    key: str = ""  # of the reference, the estimate, how they were brought together, and the text where there is one
    seconds: float = 0.0
    sample_rate: int = 0
    surplus: int = 0  # samples by which the estimate was longer
    delay: int | None = None  # samples by which it is late, as far as that can be told
    problem: str | None = None  # why there are no scores at all
    scores: dict[str, dict[str, float]] = field(default_factory=dict)  # by identity of the metric, then by column
    undefined: dict[str, str] = field(default_factory=dict)  # by identity of the metric


@dataclass(frozen=True)
class Task:
    """One pair to score."""

    item: Item
    tolerance: float | None  # see `load_pair`
    delay: int  # see `load_pair`
    known: Row | None  # of an earlier run


def prepare(names: Sequence[str], settings: Settings) -> Callable[[Task], Row]:
    """`score` with these metrics, made once in a process."""
    return partial(score, {METRICS[name].identity(settings): METRICS[name](settings) for name in names})


def score(metrics: Mapping[str, Metric], task: Task) -> Row:
    """The row of a pair, by metrics that are named by their identity; what an earlier run has found for the same files
    and text is taken from there."""
    item = task.item
    row = Row(item.id)
    try:
        row.key = f"{file_sum(item.reference)} {file_sum(item.estimate)} {task.tolerance} {task.delay}"
        if text := item.text:
            row.key += f" {text_sum(text)}"
        if task.known and task.known.key == row.key:
            known = {name: why for name, why in task.known.undefined.items() if not why.startswith(_FAILED)}
            row = replace(task.known, scores=dict(task.known.scores), undefined=known)
        missing = {name: metric for name, metric in metrics.items() if name not in {*row.scores, *row.undefined}}
        if not missing:
            return row
        pair, row.surplus = load_pair(item, task.tolerance, task.delay)
    except (CodecError, OSError) as error:
        row.problem = sentence(error)
        return row
    row.seconds, row.sample_rate, row.delay = pair.seconds, pair.sample_rate, delay_of(pair)
    for identity, metric in missing.items():
        try:
            values = metric.score(pair)
            columns = [column.name for column in metric.columns]
            if sorted(values) != sorted(columns):
                raise ValueError(f"gave {', '.join(values) or 'nothing'}, its columns are {', '.join(columns)}")
            if not all(map(isfinite, values.values())):
                raise Undefined("its value is not a finite number")
            if not all(abs(value) <= LARGEST_SCORE for value in values.values()):
                raise Undefined(f"its value is not within ±{LARGEST_SCORE:g}")
            row.scores[identity] = {column: float(value) for column, value in values.items()}
        except Undefined as error:
            row.undefined[identity] = sentence(error)
        except Exception as error:  # compiled packages raise anything; one file must not end a night's run
            row.undefined[identity] = f"{_FAILED}{type(error).__name__}: {sentence(error)}"
    return row
