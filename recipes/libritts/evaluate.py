"""The table of the SimVQ paper for a model of ours: test-clean and test-other in one run, by its protocol.

    python recipes/libritts/evaluate.py --model runs/paper-4k/best --manifests corpus/manifests --output runs/table

Two rows come out for each set. The first averages as the published script does, failures included: PESQ counts -6 where
a file is too short and -7 where it has no utterance, STOI counts 1e-5 where there is too little speech, pairs without
V/UV F1 are left out. The second is ours: what failed is left out of every mean and listed by name. Where nothing failed
both are equal. Everything else of the protocol is in the metrics themselves (`codec evaluate`, group "paper"); samples
of the output are cut to +-0.99 and written with 16 bits before they are scored, as there.
"""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from codec.cli import exit_code
from codec.errors import CorpusError
from codec.evaluation.baselines import PUBLISHED
from codec.evaluation.evaluate import Evaluation, Options, evaluate_folders, evaluate_model
from codec.evaluation.metric import Settings
from codec.evaluation.pairs import Item, load_pair
from codec.evaluation.pesq import MAX_UTTERANCES, SAMPLE_RATE, count_utterances
from codec.evaluation.report import table
from codec.manifest import read_manifest
from codec.output import write_json, write_text
from codec.preparation.libritts import FILE_COUNTS, SPLITS

COUNTS = {name: FILE_COUNTS[name][0] for name in SPLITS["test"]}
"""Utterances of each set. Four missing ones have changed a published comparison before."""

COLUMNS = {"utmos22s": "UTMOS", "pesq_wb": "PESQ", "stoi": "STOI", "vuv_f1": "V/UV F1"}
PEAK = 0.99  # full scale is 1


def main(arguments: list[str] | None = None) -> None:
    """Evaluate, print and write the table."""
    options = parse(arguments)
    counts = {name: count_listed(name, options) for name in COUNTS}  # both, before hours go into the first
    rows = [row for name, count in counts.items() for row in evaluate(name, count, options)]
    text = markdown(rows)
    options.output.mkdir(parents=True, exist_ok=True)
    write_json(options.output / "table.json", rows)
    write_text(options.output / "table.md", text)
    print(text)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="boxed model, model directory or Hub id")
    source.add_argument(
        "--estimates", type=Path, help="folder with test-clean/ and test-other/ of another codec's output"
    )
    parser.add_argument(
        "--manifests", type=Path, required=True, help="folder that `codec prepare libritts` has written"
    )
    parser.add_argument("--output", type=Path, required=True, help="a run begun there goes on")
    parser.add_argument("--metrics", default="paper", help="names or groups, with commas between them")
    parser.add_argument("--utmos-weights", type=Path, help="checkpoint of UTMOS22 strong")
    parser.add_argument("--download", action="store_true", help="fetch weights of metrics that are not here")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--jobs", type=int, help="processes; one per core if not told")
    parser.add_argument("--allow-subset", action="store_true", help="score lists that are not the whole test sets")
    return parser.parse_args(arguments)


def count_listed(name: str, options: argparse.Namespace) -> int:
    """How many utterances the list of a test set has.

    Raises:
        CorpusError: it cannot be read, or is not the whole set, which --allow-subset allows.
    """
    manifest = options.manifests / f"{name}.tsv"
    count = len(read_manifest(manifest))
    if count != COUNTS[name] and not options.allow_subset:
        raise CorpusError(
            f"{manifest}: lists {count} utterances, {name} has {COUNTS[name]}; prepare it again, or say --allow-subset "
            f"for numbers that compare with nothing"
        )
    return count


def evaluate(name: str, count: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Both rows of one test set, of which so many utterances are listed.

    Raises:
        CodecError: the model cannot be used, or nothing could be scored.
    """
    settings = Settings(device=options.device, utmos_weights=options.utmos_weights, allow_download=options.download)
    names = tuple(name.strip() for name in options.metrics.split(",") if name.strip())
    choices = Options(metrics=names, settings=settings, jobs=options.jobs, peak=PEAK)
    progress = show_progress if sys.stderr.isatty() else None
    manifest, output = options.manifests / f"{name}.tsv", options.output / name
    if options.model is not None:
        result = evaluate_model(options.model, manifest, output=output, options=choices, progress=progress)
    else:
        result = evaluate_folders(manifest, options.estimates / name, output=output, options=choices, progress=progress)
    print(table(result.summary), end="\n\n")
    label = name if count == COUNTS[name] else f"{name} (a subset, {count} utterances)"
    return [row_of(result, label, as_published=True), row_of(result, label, as_published=False)]


def row_of(result: Evaluation, label: str, *, as_published: bool) -> dict[str, Any]:
    """One row of the table; a metric that was not computed is None."""
    summary = result.summary
    row: dict[str, Any] = {
        "system": summary.get("model") or summary["estimate"],
        "averaged": "as published" if as_published else "without failures",
        "set": label,
        "utterances": summary["num_scored"],
        "excluded": summary["num_excluded"],
    }
    for column in COLUMNS:
        values = list(result.values(column).values())
        if as_published:
            failed = [result.items[problem.id] for problem in result.problems if problem.metric == column]
            values += [STAND_INS[column](item) for item in failed if column in STAND_INS]
        mean = sum(values) / len(values) if values else None
        row[column] = "nan" if mean is not None and math.isnan(mean) else mean
    row["utilisation"] = (summary.get("codes") or {}).get("utilisation")
    return row


def pesq_error(item: Item) -> float:
    """The code of the error for which the `pesq` package has no value, or NaN where it has no code."""
    import pesq  # a compiled extension

    reference, estimate = load_pair(item, tolerance=math.inf)[0].at(SAMPLE_RATE)
    if count_utterances(reference) > MAX_UTTERANCES:
        return math.nan
    try:
        value = pesq.pesq(SAMPLE_RATE, reference, estimate, "wb", on_error=pesq.PesqError.RETURN_VALUES)
    except ValueError:  # the levels of a silent estimate cannot be aligned
        return math.nan
    return float(value) if value < 0 else math.nan


STAND_INS: dict[str, Callable[[Item], float]] = {"pesq_wb": pesq_error, "stoi": lambda item: 1e-5}
"""What the published script averages in for a pair without a value; it leaves the pair out where there is none."""


def markdown(rows: list[dict[str, Any]]) -> str:
    """Our rows, then the published ones on the same sets."""
    lines = [
        "| system | averaged | set | UTMOS | PESQ | STOI | V/UV F1 | used | utterances |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        cells = [number(row[column], ".3f") for column in COLUMNS]
        excluded = f" ({row['excluded']} excluded)" if row["excluded"] else ""
        used = number(row["utilisation"], ".1%")
        start = f"| {row['system']} | {row['averaged']} | {row['set']} |"
        lines.append(f"{start} {' | '.join(cells)} | {used} | {row['utterances']}{excluded} |")
    for known in PUBLISHED:
        if known.data.startswith("LibriTTS"):
            values = (known.utmos, known.pesq_wb, known.stoi, known.vuv_f1)
            start = f"| {known.system} | {known.conditions} | {known.data.removeprefix('LibriTTS ')} |"
            cells = [*(number(value, ".3g") for value in values), number(known.utilisation, ".1%")]
            lines.append(f"{start} {' | '.join(cells)} | |")
    return "\n".join(lines) + "\n"


def number(value: float | str | None, form: str) -> str:
    """As text, "-" where there is none."""
    return "-" if value is None else value if isinstance(value, str) else format(value, form)


def show_progress(what: str, done: float, total: float) -> None:
    """One line on standard error."""
    end = "\n" if done >= total else ""
    print(f"\r\x1b[K{what}: {done / 3600:.2f} of {total / 3600:.2f} h", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(exit_code(main))
