"""Two evaluations of the same utterances, paired: which codec is better, and how sure that is."""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from codec.errors import ConfigError, sentence
from codec.evaluation.journal import Journal
from codec.evaluation.metric import Column
from codec.evaluation.report import SCORES_NAME, SUMMARY_NAME, model_of
from codec.evaluation.statistics import bootstrap_interval
from codec.input import is_of, read_json
from codec.manifest import UNKNOWN_SPEAKER
from codec.output import write_json, write_text
from codec.tables import aligned, write_table

LARGEST_SCORE = 1e12
"""In magnitude; sums and squares of what is beyond may be infinite."""
_ABOUT = {name: kind for name, kind in get_type_hints(Column).items() if name != "name"}
"""What a summary says of each column, as far as it is needed here, and its types."""


def compare(first: str | os.PathLike[str], second: str | os.PathLike[str]) -> dict[str, Any]:
    """Paired differences, second minus first, of every column that both have.

    Args:
        first: folder of an evaluation's results.
        second: another.

    Returns:
        "first" and "second" (names), "num_common" and "num_alone" (utterances in both, in one only), "left_out" (labels
        of what depends on the sample rate, where that is not the same in both), "otherwise_scored" (labels of what
        other weights or another version of a metric gave), and "metrics": column -> label, "num" (common utterances
        that have a value in both), means of both over them, the mean difference with its 95 % interval (see
        `bootstrap_interval`), the differences by utterance, how many are better and worse in the second, and "verdict":
        "first", "second", or "" where the interval contains 0.

    Raises:
        ConfigError: a folder has no results, they have no utterance in common, or their references differ.
    """
    folders = Path(first), Path(second)
    summaries = [_summary(folder) for folder in folders]
    (earlier, names), (later, more_names) = (_scores(folder) for folder in folders)
    tables, speakers = (earlier, later), more_names | names  # tables of earlier versions lack them
    common = sorted(set(tables[0]) & set(tables[1]))
    if not common:
        raise ConfigError(f"{first} and {second}: have no utterance in common; only the same data can be compared")
    _check_references(folders, common)
    rates = [_rates(summary) for summary in summaries]
    metrics, left_out, otherwise_scored = {}, [], []
    for column, about in summaries[0]["metrics"].items():
        if column in summaries[1]["metrics"] and about["is_shown"]:
            if rates[0] != rates[1] and about["at_own_rate"]:
                left_out.append(about["label"])
                continue
            if len({about["identity"], summaries[1]["metrics"][column]["identity"]} - {""}) > 1:
                otherwise_scored.append(about["label"])
                continue
            found = _compared(column, about, tables, common, speakers)
            if found is not None:
                metrics[column] = found
    if not metrics:
        raise ConfigError(
            f"{first} and {second}: have no metric in common; evaluate both with the same --metrics "
            "and weights, and at the same sample rate"
        )
    return {
        "first": _name(summaries[0]),
        "second": _name(summaries[1]),
        "num_common": len(common),
        "num_alone": len(set(tables[0]) ^ set(tables[1])),
        "left_out": left_out,
        "otherwise_scored": otherwise_scored,
        "metrics": metrics,
    }


def _compared(
    column: str,
    about: Mapping[str, Any],
    tables: Sequence[dict[str, dict[str, float]]],
    common: Sequence[str],
    speakers: Mapping[str, str],
) -> dict[str, Any] | None:
    """One column of both tables, see `compare`; None where nothing can be said of it."""
    weight = about["weight"]
    ids = [
        id
        for id in common
        if all(column in table[id] for table in tables) and (not weight or tables[0][id].get(weight, 0) > 0)
    ]
    earlier, later = ([table[id][column] for id in ids] for table in tables)
    differences = [second - first for first, second in zip(earlier, later, strict=True)]
    if not ids or (not about["better"] and not any(differences)):
        return None
    weights = [tables[0][id][weight] for id in ids] if weight else None
    first, second, difference = (float(np.average(values, weights=weights)) for values in (earlier, later, differences))
    interval = bootstrap_interval(differences, weights, [speakers.get(id, UNKNOWN_SPEAKER) for id in ids])
    low, high = interval or (None, None)
    sign = {"higher": 1, "lower": -1}.get(about["better"], 0)
    return {
        "label": about["label"],
        "unit": about["unit"],
        "better": about["better"],
        "digits": about["digits"],
        "num": len(ids),
        "differences": dict(zip(ids, differences, strict=True)),
        "first": first,
        "second": second,
        "difference": difference,
        "low": low,
        "high": high,
        "num_better": sum(sign * difference > 0 for difference in differences),
        "num_worse": sum(sign * difference < 0 for difference in differences),
        "verdict": _verdict(low, high, sign),
    }


def comparison_table(comparison: Mapping[str, Any]) -> str:
    """What a person wants to see in a terminal."""
    rows = [["metric", "A", "B", "B - A", "95 % interval", "files", "B better", "B worse", "better"]]
    for values in comparison["metrics"].values():
        digits = values["digits"]
        interval = "" if values["low"] is None else f"{values['low']:+.{digits}f} .. {values['high']:+.{digits}f}"
        rows.append(
            [
                values["label"] + (f" ({values['unit']})" if values["unit"] else ""),
                f"{values['first']:.{digits}f}",
                f"{values['second']:.{digits}f}",
                f"{values['difference']:+.{digits}f}",
                interval,
                str(values["num"]),
                str(values["num_better"]) if values["better"] else "",
                str(values["num_worse"]) if values["better"] else "",
                {"first": "A", "second": "B"}.get(values["verdict"], "undecided" if values["better"] else ""),
            ]
        )
    heading = [
        f"A: {comparison['first']}",
        f"B: {comparison['second']}",
        f"{comparison['num_common']} utterances of both, paired{omissions(comparison)}",
    ]
    return "\n".join([*heading, "", *aligned(rows, words=("metric", "better"))])


def omissions(comparison: Mapping[str, Any]) -> str:
    """The clauses that say what was not compared."""
    clauses = []
    if comparison["num_alone"]:
        clauses.append(f"{comparison['num_alone']} in only one of both were left out")
    if comparison["left_out"]:
        clauses.append(f"left out, because the sample rates differ: {', '.join(comparison['left_out'])}")
    if comparison["otherwise_scored"]:
        labels = ", ".join(comparison["otherwise_scored"])
        clauses.append(
            f"left out, because they were scored with other weights or another version of the metric: {labels}"
        )
    return "".join(f"; {clause}" for clause in clauses)


def write_comparison(comparison: Mapping[str, Any], folder: Path) -> None:
    """Write `comparison.json`, `differences.tsv` and `comparison.html`; what is there of these names is replaced."""
    from codec.evaluation.page import comparison_page

    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "comparison.json", comparison)
    differences = [values["differences"] for values in comparison["metrics"].values()]
    write_table(
        folder / "differences.tsv",
        ["id", *comparison["metrics"]],
        (
            [id, *(f"{found[id]:.6g}" if id in found else "" for found in differences)]
            for id in sorted(set().union(*differences))
        ),
    )
    write_text(folder / "comparison.html", comparison_page(comparison))


def _verdict(low: float | None, high: float | None, sign: int) -> str:
    if low is None or high is None or not sign or low <= 0 <= high:
        return ""
    return "second" if sign * low > 0 else "first"


def _name(summary: Mapping[str, Any]) -> str:
    return model_of(summary) if "model" in summary else str(summary["estimate"])


def _rates(summary: Mapping[str, Any]) -> list[int]:
    return list(summary["conditions"]["sample_rates"])


def _summary(folder: Path) -> dict[str, Any]:
    path = folder / SUMMARY_NAME
    try:
        summary = read_json(path)
        if summary["format"] != 1:
            raise ConfigError(f"{path}: has format {summary['format']}, this version reads 1; evaluate again")
        _name(summary)
        _rates(summary)
        for about in summary["metrics"].values():
            about.setdefault("at_own_rate", False)  # summaries of earlier versions do not say it, nor the next
            about.setdefault("identity", "")
            is_whole = isinstance(about["identity"], str) and about["digits"] in range(20)
            if not is_whole or not all(is_of(about[name], kind) for name, kind in _ABOUT.items()):
                raise ValueError
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); name the output of an evaluation") from error
    except ConfigError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: is not the summary of an evaluation") from error
    return summary


def _scores(folder: Path) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """By id, the scores by column, and the speakers, where the table tells them."""
    path = folder / SCORES_NAME
    scores: dict[str, dict[str, float]] = {}
    speakers: dict[str, str] = {}
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            rows = list(filter(None, csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)))
        columns = rows.pop(0) if rows else []
        if "id" not in columns:
            raise ValueError("it has no column id")
        if len(set(columns)) < len(columns):
            raise ValueError("two columns have the same name")
        for row in rows:
            if len(row) != len(columns):
                raise ValueError(f"a row has {len(row)} columns, the header {len(columns)}")
            cells = dict(zip(columns, row, strict=True))
            id = cells.pop("id")
            if id in scores:
                raise ValueError(f"{id} is there twice")
            if "speaker" in cells:
                speakers[id] = cells.pop("speaker")
            scores[id] = {name: float(cell) for name, cell in cells.items() if cell}
            if not all(abs(value) <= LARGEST_SCORE for value in scores[id].values()):
                raise ValueError(f"{id} has a score that is not within ±{LARGEST_SCORE:g}")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); name the output of an evaluation") from error
    except (ValueError, csv.Error) as error:
        raise ConfigError(f"{path}: is not a table of scores ({sentence(error)})") from error
    return scores, speakers


def _check_references(folders: tuple[Path, Path], ids: list[str]) -> None:
    """Hold the sums of the references against each other, where both journals are there."""
    sums = [Journal.references(folder) for folder in folders]
    different = [id for id in ids if id in sums[0] and id in sums[1] and sums[0][id] != sums[1][id]]
    if different:
        more = f" and {len(different) - 1} more" if len(different) > 1 else ""
        raise ConfigError(
            f"{folders[0]} and {folders[1]}: the reference of {different[0]}{more} is not the same in both"
        )
