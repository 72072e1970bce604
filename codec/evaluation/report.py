"""The results of an evaluation as files and as a table for the terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codec.evaluation.delay import NOTICEABLE
from codec.evaluation.evaluate import Evaluation
from codec.evaluation.metric import FILE_COLUMNS
from codec.output import write_json, write_text
from codec.tables import aligned, write_table

SCORES_NAME = "scores.tsv"
PROBLEMS_NAME = "problems.tsv"
SUMMARY_NAME = "summary.json"
PAGE_NAME = "report.html"


def write_report(evaluation: Evaluation, folder: Path, *, with_audio: bool = True) -> None:
    """Write `scores.tsv`, `problems.tsv`, `summary.json` and `report.html`, in the place of earlier ones.

    A row of scores for each scored utterance; an empty cell has its reason among the problems.
    """
    from codec.evaluation.page import page

    folder.mkdir(parents=True, exist_ok=True)
    columns = list(evaluation.summary["metrics"])
    values = {column: evaluation.values(column) for column in columns}
    write_table(
        folder / SCORES_NAME,
        [*FILE_COLUMNS, *columns],
        (
            [row.id, evaluation.items[row.id].speaker, f"{row.seconds:.3f}", row.surplus]
            + [f"{values[column][row.id]:.6g}" if row.id in values[column] else "" for column in columns]
            for row in evaluation.rows
        ),
    )
    write_table(
        folder / PROBLEMS_NAME,
        ["id", "metric", "reason"],
        ([problem.id, problem.metric or "all", problem.reason] for problem in evaluation.problems),
    )
    write_text(folder / PAGE_NAME, page(evaluation, with_audio=with_audio))
    write_json(folder / SUMMARY_NAME, evaluation.summary)


def table(summary: dict[str, Any]) -> str:
    """What a person wants to see in a terminal."""
    rows = [["metric", "mean", "95 % interval", "median", "files", "better"]]
    for values in summary["metrics"].values():
        if not values["is_shown"]:
            continue
        label = label_of(values)
        if not values["num"]:
            rows.append([label, "-", "", "", "0", values["better"]])
            continue
        digits = values["digits"]
        interval = "" if values["low"] is None else f"{values['low']:.{digits}f} .. {values['high']:.{digits}f}"
        cells = [f"{values['mean']:.{digits}f}", interval, f"{values['median']:.{digits}f}", str(values["num"])]
        rows.append([label, *cells, values["better"]])
    return "\n".join([_heading(summary), "", *aligned(rows, words=("metric", "better")), *_notes(summary)])


def label_of(values: Mapping[str, Any]) -> str:
    """What a column is called, with its unit."""
    return values["label"] + (f" ({values['unit']})" if values["unit"] else "")


def model_of(summary: Mapping[str, Any]) -> str:
    """The model whose codes were scored, and in how many steps they were refined."""
    steps = summary["conditions"].get("refining_steps", 0)
    refined = f", refined in {steps} step{'s' * (steps != 1)}" if steps else ""
    return f"{summary['model']} ({summary['fingerprint']}{refined})"


def speakers_of(summary: Mapping[str, Any]) -> str:
    """How many people were heard, so that one sees where folders were taken for people that are none."""
    return f"{summary['num_speakers']} known speaker{'s' * (summary['num_speakers'] != 1)}"


def _heading(summary: dict[str, Any]) -> str:
    if "model" in summary:
        what = f"{model_of(summary)} on {summary['reference']}"
    else:
        what = f"{summary['estimate']} against {summary['reference']}"
    subset = ", a subset" if summary["is_subset"] else ""
    rates = ", ".join(f"{rate} Hz" for rate in summary["conditions"]["sample_rates"])
    return (
        f"{what}: {summary['num_scored']} of {summary['num_utterances']} utterances{subset}, {speakers_of(summary)}, "
        f"{summary['seconds']:.1f} s at {rates}"
    )


def _notes(summary: dict[str, Any]) -> list[str]:
    notes = [""]
    codes = summary.get("codes", {})
    if codes.get("num_codes"):
        notes.append(
            f"codes: {codes['utilisation']:.1%} of {codes['codebook_size']} used, perplexity "
            f"{codes['perplexity']:.0f}, entropy {codes['entropy']:.2f} bits ({codes['entropy_share']:.1%}), over "
            f"{codes['num_codes']} codes"
        )
        notes.append(
            f"bit rate: {codes['bitrate']:.3f} kbit/s on disk, {codes['payload_bitrate']:.3f} of codes, "
            f"{codes['entropy_bitrate']:.3f} by their entropy"
        )
    if speed := summary.get("speed", {}):
        notes.append(
            f"real-time factor: {speed['encode_rtf']:.3f} to encode, {speed['decode_rtf']:.3f} to decode "
            f"({speed['device']}, {speed['processes'] or 1} at a time on {speed['cores']} cores)"
        )
    lengths = summary["lengths"]
    if lengths["num_different"]:
        notes.append(
            f"lengths: {lengths['num_different']} estimates were longer or shorter, by at most "
            f"{abs(lengths['largest_difference'])} samples; pairs were cut to the shorter"
        )
    delay = summary["delay"]
    # Of waveforms that a codec invents, chance says a delay, and for each file another one.
    is_common = 2 * delay["num_agreeing"] > summary["num_scored"]
    if is_common and abs(delay["median"]) >= NOTICEABLE:
        is_late = delay["median"] > 0
        notes.append(
            f"delay: estimates are {abs(delay['median'])} samples {'late' if is_late else 'early'} (median of "
            f"{delay['num_measured']}), which harms every score that compares in time"
            + (f"; --delay {delay['median']} removes it" if is_late else "")
        )
    problems = summary["problems"]
    if problems:
        excluded, undefined = summary["num_excluded"], summary["num_undefined"]
        notes.append(f"without a score: {excluded} utterances, {undefined} single metrics of others")
        notes += [f"  {entry['id']} ({entry['metric']}): {entry['reason']}" for entry in problems[:20]]
        if len(problems) > 20:
            notes.append(f"  and {len(problems) - 20} more, see {PROBLEMS_NAME}")
    if summary["not_computed"]:
        notes.append("not computed:")
        notes += [f"  {entry['metric']}: {entry['reason']}; {entry['command']}" for entry in summary["not_computed"]]
    return notes if len(notes) > 1 else []
