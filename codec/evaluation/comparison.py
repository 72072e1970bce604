"""Evaluations of the same utterances, paired: which codec is better than the first, and how sure that is."""

import csv
import os
from collections import ChainMap
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from string import ascii_uppercase
from typing import Any, get_type_hints

import numpy as np

from codec.errors import ConfigError, sentence
from codec.evaluation.journal import Journal
from codec.evaluation.metric import LARGEST_SCORE, Column
from codec.evaluation.report import SCORES_NAME, SUMMARY_NAME, label_of, model_of
from codec.evaluation.statistics import bootstrap_interval
from codec.input import is_of, read_json
from codec.manifest import UNKNOWN_SPEAKER
from codec.output import write_json, write_text
from codec.tables import aligned, write_table

LETTERS = ascii_uppercase
"""What the systems are called in tables, in their order."""
_LATEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": "$<$", ">": "$>$", "|": "$|$"}
)
Scores = dict[str, dict[str, float]]
"""By id, then by column."""
_ABOUT = {name: kind for name, kind in get_type_hints(Column).items() if name != "name"}
"""What a summary says of each column, as far as it is needed here, and its types."""


def compare(*folders: str | os.PathLike[str]) -> dict[str, Any]:
    """Means of every column that all have, and the paired differences of the other systems to the first.

    Args:
        folders: of evaluations' results, 2 to 26.

    Returns:
        "systems" (names; equal ones with their folders), "num_common" and "num_alone" (utterances in all, and in only
        some), "left_out" (reason -> labels of what was not compared), and "metrics": column -> label, unit, better,
        digits, "num" (common utterances that have a value in all), and "systems": of each the "mean" over these
        utterances with its 95 % interval, "low" and "high" (see `bootstrap_interval`), and of all but the first the
        "difference", theirs minus the first's: its mean, low and high, "by_utterance", how many are better and worse,
        and "verdict": "better" or "worse" than the first, or "" where the interval contains 0.

    Raises:
        ConfigError: too few or too many; a folder has no results; they have no utterance or no metric in common, or
            their references differ.
    """
    paths = [Path(folder) for folder in folders]
    if not 2 <= len(paths) <= len(LETTERS):
        raise ConfigError(f"2 to {len(LETTERS)} outputs of `codec evaluate` can be compared, got {len(paths)}")
    together = f"{', '.join(map(str, paths[:-1]))} and {paths[-1]}"
    summaries = [_summary(path) for path in paths]
    tables, named = zip(*map(_scores, paths), strict=True)
    speakers = ChainMap(*named)  # tables of earlier versions lack them
    common = sorted(set.intersection(*map(set, tables)))
    if not common:
        raise ConfigError(f"{together}: have no utterance in common; only the same data can be compared")
    _check_references(paths, common)
    metrics: dict[str, dict[str, Any]] = {}
    left_out: dict[str, list[str]] = {}
    # In the order of the first, then what only others have.
    for column in dict.fromkeys(column for summary in summaries for column in summary["metrics"]):
        versions = [summary["metrics"][column] for summary in summaries if column in summary["metrics"]]
        about = versions[0]
        if not about["is_shown"]:
            continue
        ids = _scored_in_all(column, about["weight"], tables, common)
        if len(versions) < len(paths) or not ids:
            left_out.setdefault("not all have them", []).append(about["label"])
        elif reason := _obstacle(versions, summaries):
            left_out.setdefault(reason, []).append(about["label"])
        elif found := _compared(column, about, tables, ids, [speakers.get(id, UNKNOWN_SPEAKER) for id in ids]):
            metrics[column] = found
    if not metrics:
        raise ConfigError(
            f"{together}: have no metric in common; evaluate all with the same --metrics "
            "and weights, and at the same sample rate"
        )
    names = [_name(summary) for summary in summaries]
    return {
        "systems": [
            f"{name} in {path}" if names.count(name) > 1 else name for name, path in zip(names, paths, strict=True)
        ],
        "num_common": len(common),
        "num_alone": len(set().union(*tables)) - len(common),
        "left_out": left_out,
        "metrics": metrics,
    }


def _scored_in_all(column: str, weight: str, tables: Sequence[Scores], common: Sequence[str]) -> list[str]:
    """The utterances that count in this column; of weight 0 none does."""
    return [
        id
        for id in common
        if all(column in scores[id] for scores in tables) and (not weight or tables[0][id].get(weight, 0) > 0)
    ]


def _obstacle(versions: Sequence[Mapping[str, Any]], summaries: Sequence[Mapping[str, Any]]) -> str:
    """Why a column that all have cannot be compared, given what each summary says of it; empty if it can."""
    is_at_own_rate = any(version["at_own_rate"] for version in versions)
    if is_at_own_rate and any(_rates(summary) != _rates(summaries[0]) for summary in summaries):
        return "the sample rates differ"
    if len({version["identity"] for version in versions} - {""}) > 1:
        return "they were scored with other weights or another version of the metric"
    return ""


def _compared(
    column: str, about: Mapping[str, Any], tables: Sequence[Scores], ids: Sequence[str], speakers: Sequence[str]
) -> dict[str, Any] | None:
    """One column of all tables, see `compare`; None where nobody can be better, and all are the same."""
    values = np.array([[scores[id][column] for id in ids] for scores in tables])  # (systems, utterances)
    if not about["better"] and (values == values[0]).all():
        return None
    weights = [tables[0][id][about["weight"]] for id in ids] if about["weight"] else None
    sign = {"higher": 1, "lower": -1}.get(about["better"], 0)

    def mean(values: np.ndarray) -> dict[str, Any]:
        low, high = bootstrap_interval(values, weights, speakers) or (None, None)
        return {"mean": float(np.average(values, weights=weights)), "low": low, "high": high}

    systems = [mean(row) for row in values]
    for system, differences in zip(systems[1:], values[1:] - values[0], strict=True):
        difference = mean(differences)
        system["difference"] = difference | {
            "by_utterance": dict(zip(ids, differences.tolist(), strict=True)),
            "num_better": int((sign * differences > 0).sum()),
            "num_worse": int((sign * differences < 0).sum()),
            "verdict": _verdict(difference["low"], difference["high"], sign),
        }
    return {name: about[name] for name in ("label", "unit", "better", "digits")} | {
        "num": len(ids),
        "systems": systems,
    }


def comparison_table(comparison: Mapping[str, Any]) -> str:
    """What a person wants to see in a terminal."""
    lines = [*lettered(comparison), what_was_paired(comparison)]
    means = [rows_of_means(comparison)] if len(comparison["systems"]) > 2 else []  # two stand beside their difference
    for rows in [*means, *tables_of_differences(comparison)]:
        lines += ["", *aligned(rows, words=("metric", "better", "winner"))]
    return "\n".join(lines)


def lettered(comparison: Mapping[str, Any]) -> list[str]:
    """The systems' names behind the letters that stand for them in tables."""
    return [f"{letter}: {name}" for letter, name in zip(LETTERS, comparison["systems"], strict=False)]


def what_was_paired(comparison: Mapping[str, Any]) -> str:
    """How many utterances, and the clauses that say what was not compared."""
    whole, part = ("both", "only one of both") if len(comparison["systems"]) == 2 else ("all", "only some")
    clauses = [f"{comparison['num_common']} utterances of {whole}, paired"]
    if comparison["num_alone"]:
        clauses.append(f"{comparison['num_alone']} in {part} were left out")
    clauses += [f"left out, because {reason}: {', '.join(labels)}" for reason, labels in comparison["left_out"].items()]
    return "; ".join(clauses)


def rows_of_means(comparison: Mapping[str, Any]) -> list[list[str]]:
    """The means of all systems, a row for each metric; the names of the columns first."""
    metrics = comparison["metrics"].values()
    header = ["metric", *LETTERS[: len(comparison["systems"])], "better"]
    return [header, *([label_of(values), *_shown_means(values), values["better"]] for values in metrics)]


def tables_of_differences(comparison: Mapping[str, Any]) -> list[list[list[str]]]:
    """For each system after the first, its rows of differences, one for each metric; the names of the columns first."""
    tables = []
    for number, letter in enumerate(LETTERS[1 : len(comparison["systems"])], start=1):
        counts = [f"{letter} better", f"{letter} worse"]
        rows = [["metric", "A", letter, f"{letter} - A", "95 % interval", "files", *counts, "winner"]]
        for values in comparison["metrics"].values():
            means, digits = _shown_means(values), values["digits"]
            found = values["systems"][number]["difference"]
            interval = "" if found["low"] is None else f"{found['low']:+.{digits}f} .. {found['high']:+.{digits}f}"
            cells = [means[0], means[number], f"{found['mean']:+.{digits}f}", interval, str(values["num"])]
            verdict = {"better": letter, "worse": "A"}.get(found["verdict"], "undecided")
            judged = [str(found["num_better"]), str(found["num_worse"]), verdict] if values["better"] else [""] * 3
            rows.append([label_of(values), *cells, *judged])
        tables.append(rows)
    return tables


def latex_table(comparison: Mapping[str, Any]) -> str:
    """A tabular with a row of means for each system, the best in bold, also where only rounding makes them equal."""
    arrows = {"higher": r" $\uparrow$", "lower": r" $\downarrow$", "": ""}
    # In braces, as a bracket at the beginning of a row would be taken for an argument of the line break before it.
    columns = [["system", *(f"{{{_in_latex(name)}}}" for name in comparison["systems"])]]
    for values in comparison["metrics"].values():
        cells = _shown_means(values)
        choose = {"higher": max, "lower": min}.get(values["better"])
        best = choose(map(float, cells)) if choose else None
        means = [rf"$\mathbf{{{cell}}}$" if float(cell) == best else f"${cell}$" for cell in cells]
        columns.append([_in_latex(label_of(values)) + arrows[values["better"]], *means])
    header, *rows = [" & ".join(row) + r" \\" for row in zip(*columns, strict=True)]
    begin = rf"\begin{{tabular}}{{l{'r' * len(comparison['metrics'])}}}"
    return "\n".join([begin, r"\hline", header, r"\hline", *rows, r"\hline", r"\end{tabular}", ""])


def write_comparison(comparison: Mapping[str, Any], folder: Path) -> None:
    """Write what was compared; what is there of these names is replaced.

    `comparison.json` holds everything, and `comparison.html` shows it. `differences.tsv` has a row for each utterance
    of each system after the first; `table.tsv` and `table.tex` have one for each system, as papers do.
    """
    from codec.evaluation.page import comparison_page

    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "comparison.json", comparison)
    metrics = comparison["metrics"]
    differences, means = [], []
    for number, name in enumerate(comparison["systems"]):
        columns = [values["systems"][number] for values in metrics.values()]
        means.append([name, *(_number(column[key]) for column in columns for key in ("mean", "low", "high"))])
        if number:
            found = [column["difference"]["by_utterance"] for column in columns]
            ids = sorted(set().union(*found))
            differences += [[id, name, *(_number(by_utterance.get(id)) for by_utterance in found)] for id in ids]
    write_table(folder / "differences.tsv", ["id", "system", *metrics], differences)
    header = [column + bound for column in metrics for bound in ("", "_low", "_high")]
    write_table(folder / "table.tsv", ["system", *header], means)
    write_text(folder / "table.tex", latex_table(comparison))
    write_text(folder / "comparison.html", comparison_page(comparison))


def _shown_means(values: Mapping[str, Any]) -> list[str]:
    return [f"{system['mean']:.{values['digits']}f}" for system in values["systems"]]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _in_latex(text: str) -> str:
    """Escaped; what cannot be printed becomes a question mark."""
    return "".join(character if character.isprintable() else "?" for character in text).translate(_LATEX)


def _verdict(low: float | None, high: float | None, sign: int) -> str:
    if low is None or high is None or not sign or low <= 0 <= high:
        return ""
    return "better" if sign * low > 0 else "worse"


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


def _scores(folder: Path) -> tuple[Scores, dict[str, str]]:
    """By id, the scores by column, and the speakers, where the table tells them."""
    path = folder / SCORES_NAME
    scores: Scores = {}
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


def _check_references(folders: Sequence[Path], ids: Sequence[str]) -> None:
    """Hold the sums of the references against each other, where journals are there."""
    journals = [(folder, Journal.references(folder)) for folder in folders]
    for (first, sums), (second, others) in combinations(journals, 2):
        different = [id for id in ids if id in sums and id in others and sums[id] != others[id]]
        if different:
            more = f" and {len(different) - 1} more" if len(different) > 1 else ""
            raise ConfigError(f"{first} and {second}: the reference of {different[0]}{more} is not the same in both")
