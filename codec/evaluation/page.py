"""The report as one HTML page that needs nothing else: no network, no script, no other file."""

import base64
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from codec import audio
from codec.errors import CodecError, sentence
from codec.evaluation.baselines import CONDITIONS, PUBLISHED
from codec.evaluation.comparison import lettered, rows_of_means, tables_of_differences, what_was_paired
from codec.evaluation.evaluate import Evaluation
from codec.evaluation.pairs import Item, load_pair
from codec.evaluation.pictures import histogram, spectrograms
from codec.evaluation.report import speakers_of
from codec.evaluation.statistics import FEWEST

NUM_SHOWN = 5  # best, and as many worst
MAX_SECONDS = 20.0  # of an utterance that can be heard
RANKED_BY = ("pesq_wb", "utmos22s", "stoi", "mel")
"""The first of these that was computed tells best from worst."""

ARROWS = {"higher": "&uarr;", "lower": "&darr;", "": ""}

STYLE = """
:root { color-scheme: light dark; --line: #8884; --faint: #888; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 84rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; } .wide { overflow-x: auto; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; } th:first-child, td:first-child, .left { text-align: left; }
td.text { white-space: normal; text-align: left; min-width: 9rem; } .faint, small { color: var(--faint); }
td.text:last-child { min-width: 18rem; } tr.ours td { font-weight: 600; }
svg { width: 220px; height: 44px; display: block; }
.range { display: flex; justify-content: space-between; font-size: .75em; color: var(--faint); }
figure { margin: 0 0 1.6rem; } figure .pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; }
figure img { width: 100%; height: 110px; display: block; image-rendering: auto; } audio { width: 100%; height: 2rem; }
figcaption { margin-bottom: .3rem; } code { font-size: .9em; overflow-wrap: anywhere; }
"""


def page(evaluation: Evaluation, *, with_audio: bool = True) -> str:
    """The report as text. An example that cannot be shown, or read any more, says why instead."""
    summary = evaluation.summary
    title = summary.get("model") or Path(summary["estimate"]).name or summary["estimate"]
    return "\n".join(
        [
            *_head(f"{title}: evaluation"),
            f"<h1>Evaluation of {escape(str(title))}</h1>",
            _introduction(summary),
            "<h2>Scores</h2>",
            _scores(evaluation),
            _codes(summary),
            "<h2>Beside published numbers</h2>",
            _published(summary),
            *_examples(evaluation, with_audio),
            _problems(summary),
            _not_computed(summary),
            "<h2>Conditions</h2>",
            _conditions(summary),
            "</body></html>\n",
        ]
    )


def comparison_page(comparison: Mapping[str, Any]) -> str:
    """Evaluations side by side, see `codec.evaluation.comparison.compare`."""
    metrics = comparison["metrics"].values()
    tables = []
    if len(comparison["systems"]) > 2:
        header, *rows = rows_of_means(comparison)
        tables.append(_table(header, [list(map(escape, row)) for row in rows]))
    for number, (header, *rows) in enumerate(tables_of_differences(comparison), start=1):
        drawn = [_differences(values, number) for values in metrics]
        rows = [[*map(escape, row), picture] for row, picture in zip(rows, drawn, strict=True)]
        tables.append(_table([*header, "differences"], rows))
    return "\n".join(
        [
            *_head("comparison"),
            "<h1>Comparison</h1>",
            f"<p>{'<br>'.join(map(escape, lettered(comparison)))}</p>",
            f"<p>{escape(what_was_paired(comparison))}. The intervals "
            f"are of the mean difference, from a bootstrap over speakers, or over files where fewer than {FEWEST} "
            "speakers are known; where one contains 0, nothing is decided.</p>",
            "<br>".join(tables),
            "</body></html>\n",
        ]
    )


def _differences(values: Mapping[str, Any], number: int) -> str:
    """How those of one system to the first are distributed, in one metric."""
    found = values["systems"][number]["difference"]
    interval = None if found["low"] is None else (found["low"], found["high"])
    return _distribution(list(found["by_utterance"].values()), {**values, "mean": found["mean"]}, interval)


def _head(title: str) -> list[str]:
    return [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width">',
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
    ]


def _introduction(summary: dict[str, Any]) -> str:
    minutes = f"{summary['seconds'] / 60:.1f} minutes"
    parts = [
        f"{summary['num_scored']} of {summary['num_utterances']} utterances scored, {minutes}",
        speakers_of(summary),
    ]
    if summary["is_subset"]:
        parts.append("<b>a subset of the data</b>")
    if summary["num_excluded"]:
        parts.append(f"<b>{summary['num_excluded']} excluded</b>, listed below")
    command = f"<p><code>{escape(summary['command'])}</code></p>"
    return f"<p>{'; '.join(parts)}.</p>{command}"


def _scores(evaluation: Evaluation) -> str:
    rows = []
    for name, values in evaluation.summary["metrics"].items():
        if not values["is_shown"]:
            continue
        label = escape(values["label"]) + (f" <small>{escape(values['unit'])}</small>" if values["unit"] else "")
        if not values["num"]:
            rows.append([label, "-", "", "", "", "0", str(values["num_undefined"]), ""])
            continue
        digits, undefined = values["digits"], values["num_undefined"]
        interval = None if values["low"] is None else (values["low"], values["high"])
        rows.append(
            [
                label,
                f"<b>{values['mean']:.{digits}f}</b>",
                f"{interval[0]:.{digits}f} to {interval[1]:.{digits}f}" if interval else "",
                f"{values['median']:.{digits}f}",
                f"{values['weighted_mean']:.{digits}f}",
                f"{values['num']}" + (f" <small>+ {undefined} undefined</small>" if undefined else ""),
                ARROWS[values["better"]],
                _distribution(list(evaluation.values(name).values()), values, interval),
            ]
        )  # fmt: skip
    header = ["", "mean", "95 % interval", "median", "by duration", "files", "better", "distribution"]
    return _table(header, rows)


def _distribution(values: Sequence[float], about: Mapping[str, Any], interval: tuple[float, float] | None) -> str:
    low, high = (f"{value:.{about['digits']}f}" for value in (min(values), max(values)))
    picture = histogram(values, about["mean"], interval, f"{about['label']}: from {low} to {high}")
    return f'{picture}<div class="range"><span>{low}</span><span>{high}</span></div>'


def _codes(summary: dict[str, Any]) -> str:
    codes, speed = summary.get("codes", {}), summary.get("speed", {})
    rows = []
    if codes.get("num_codes"):
        rows += [
            ["codes used", f"{codes['utilisation']:.1%} of {codes['codebook_size']}"],
            ["perplexity", f"{codes['perplexity']:.0f}"],
            ["entropy", f"{codes['entropy']:.2f} bits, {codes['entropy_share']:.1%} of log2 K"],
            ["codes counted", f"{codes['num_codes']}"],
            ["bit rate, nominal", f"{codes['nominal_bitrate']:.3f} kbit/s"],
            ["bit rate of the codes", f"{codes['payload_bitrate']:.3f} kbit/s"],
            ["bit rate of the files", f"{codes['bitrate']:.3f} kbit/s"],
            ["bit rate by entropy", f"{codes['entropy_bitrate']:.3f} kbit/s"],
            ["samples beyond full scale", f"{codes['num_saturated']}"],
        ]
    if speed:
        where = f"{speed['device']}, {speed['processes'] or 1} at a time on {speed['cores']} cores"
        rows += [
            ["real-time factor, encoding", f"{speed['encode_rtf']:.3f} <small>{escape(where)}</small>"],
            ["real-time factor, decoding", f"{speed['decode_rtf']:.3f}"],
        ]
    return f"<h2>Codes and speed</h2>{_table(['', ''], rows)}" if rows else ""


def _published(summary: dict[str, Any]) -> str:
    metrics, codes = summary["metrics"], summary.get("codes", {})

    def ours(name: str) -> str:
        values = metrics.get(name, {"num": 0})
        if not values["num"]:
            return "-"
        mean = f"{values['mean']:.3f}"
        return (
            mean if values["low"] is None else f"{mean}<br><small>{values['low']:.3f} to {values['high']:.3f}</small>"
        )

    header = ["system", "kbit/s", "codes/s", "UTMOS", "PESQ wb", "STOI", "V/UV F1", "used", "data", "conditions"]
    scored = [ours(name) for name in ("utmos22s", "pesq_wb", "stoi", "vuv_f1")]
    subset = ", a subset" if summary["is_subset"] else ""
    own = [
        escape(str(summary.get("model") or summary["estimate"])),
        _number(codes.get("nominal_bitrate"), ".3g"),
        _number(codes.get("frame_rate"), ".4g"),
        *scored,
        _number(codes.get("utilisation"), ".1%"),
        escape(f"{summary['reference']}{subset}"),
        f"{summary['num_scored']} files, {summary['num_excluded']} excluded; no failed value in a mean",
    ]
    rows = [
        [
            escape(row.system),
            _number(row.bitrate, ".3g"),
            _number(row.frame_rate, ".4g"),
            *(_two_or_three(value) for value in (row.utmos, row.pesq_wb, row.stoi, row.vuv_f1)),
            _number(row.utilisation, ".1%"),
            escape(row.data),
            escape(row.conditions),
        ]
        for row in PUBLISHED
    ]
    return _table(header, [own, *rows], text_columns=(8, 9), first_class="ours") + f'<p class="faint">{CONDITIONS}</p>'


def _examples(evaluation: Evaluation, with_audio: bool) -> Iterable[str]:
    metrics = evaluation.summary["metrics"]
    name = next((name for name in RANKED_BY if metrics.get(name, {"num": 0})["num"]), None)
    if name is None:
        return
    sign = 1 if metrics[name]["better"] == "higher" else -1
    ranked = sorted(evaluation.values(name).items(), key=lambda entry: (sign * entry[1], entry[0]))
    num_shown = min(NUM_SHOWN, len(ranked) // 2) or 1
    worst, best = ranked[:num_shown], ranked[num_shown:][::-1][:num_shown]
    for heading, chosen in (("Worst utterances", worst), ("Best utterances", best)):
        if chosen:
            yield f"<h2>{heading} by {escape(metrics[name]['label'])}</h2>"
            yield '<p class="faint">Left what went in, right what came out; 0 Hz below, one colour scale for both.</p>'
        for id, _ in chosen:
            yield _example(evaluation, evaluation.items[id], with_audio)


def _example(evaluation: Evaluation, item: Item, with_audio: bool) -> str:
    shown = [
        f"{escape(values['label'])} {scores[item.id]:.{values['digits']}f}"
        for name, values in evaluation.summary["metrics"].items()
        if values["is_shown"] and item.id in (scores := evaluation.values(name))
    ]
    caption = f"<figcaption><b>{escape(item.id)}</b><br><small>{', '.join(shown)}</small></figcaption>"
    try:
        sides = "".join(_sides(item, evaluation.summary["conditions"]["delay_removed"], with_audio))
    except (CodecError, OSError) as error:
        return f"<figure>{caption}<p>{escape(sentence(error))}</p></figure>"
    return f'<figure>{caption}<div class="pair">{sides}</div></figure>'


def _sides(item: Item, delay: int, with_audio: bool) -> Iterable[str]:
    pair, _ = load_pair(item, float("inf"), delay)
    pictures = spectrograms(pair.reference, pair.estimate, pair.sample_rate)
    for wav, picture, what in zip((pair.reference, pair.estimate), pictures, ("reference", "estimate"), strict=True):
        image = f'<img alt="spectrogram of the {what}" src="{_data_uri("image/png", picture)}">'
        sound = ""
        if with_audio and pair.seconds <= MAX_SECONDS:
            source = _data_uri("audio/flac", _flac(wav, pair.sample_rate))
            sound = f'<audio controls preload="none" src="{source}"></audio>'
        yield f"<div>{image}{sound}</div>"


def _problems(summary: dict[str, Any]) -> str:
    if not summary["problems"]:
        return ""
    rows = [[escape(entry[name]) for name in ("id", "metric", "reason")] for entry in summary["problems"]]
    return f"<h2>Without a score</h2>{_table(['utterance', 'metric', 'reason'], rows, text_columns=(1, 2))}"


def _not_computed(summary: dict[str, Any]) -> str:
    if not summary["not_computed"]:
        return ""
    rows = [
        [escape(entry["metric"]), escape(entry["reason"]), f"<code>{escape(entry['command'])}</code>"]
        for entry in summary["not_computed"]
    ]
    return f"<h2>Not computed</h2>{_table(['metric', 'why', 'what would'], rows, text_columns=(1, 2))}"


def _conditions(summary: dict[str, Any]) -> str:
    conditions, lengths = summary["conditions"], summary["lengths"]
    largest = abs(lengths["largest_difference"])
    rows = [
        ["sample rate of the scored files", ", ".join(f"{rate} Hz" for rate in conditions["sample_rates"])],
        ["resampler of the metrics", escape(conditions["resampler"])],
        ["intervals", escape(conditions["intervals"])],
        ["lengths", f"{lengths['num_different']} files differed, by at most {largest} samples"],
        ["delay", escape(_delay(summary["delay"], conditions["delay_removed"]))],
        ["model", escape(summary.get("fingerprint", "-"))],
        ["steps of refining", str(conditions["refining_steps"])],
        ["versions", escape(", ".join(f"{name} {version}" for name, version in conditions["versions"].items()))],
    ]  # fmt: skip
    rows += [
        [f"weights of {escape(name)}", escape(", ".join(f"{key} {value}" for key, value in found.items()))]
        for name, found in conditions["weights"].items()
    ]
    return _table(["", ""], rows, text_columns=(1,))


def _delay(delay: dict[str, Any], removed: int) -> str:
    if not delay["num_measured"]:
        return "cannot be told from the waveforms"
    agreeing = f"{delay['num_agreeing']} of {delay['num_measured']} files that could be measured"
    rest = f"{delay['median']} samples (median; {delay['min']} to {delay['max']}, about the same in {agreeing})"
    return f"{rest}, after {removed} were removed" if removed else rest


def _table(
    header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: Sequence[int] = (), first_class: str = ""
) -> str:
    def cell(number: int, value: str) -> str:
        return f'<td class="text">{value}</td>' if number in text_columns else f"<td>{value}</td>"

    lines = [
        (f'<tr class="{first_class}">' if first_class and not row_number else "<tr>")
        + "".join(cell(number, value) for number, value in enumerate(row))
        + "</tr>"
        for row_number, row in enumerate(rows)
    ]
    head = "".join(
        f'<th class="left">{value}</th>' if number in text_columns else f"<th>{value}</th>"
        for number, value in enumerate(header)
    )
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _two_or_three(value: float | None) -> str:
    """With as many digits as were published."""
    return _number(value, ".2f" if value is not None and round(value, 2) == value else ".3f")


def _flac(wav: np.ndarray, sample_rate: int) -> bytes:
    with tempfile.TemporaryDirectory(prefix="codec-") as folder:
        path = Path(folder) / "sound.flac"
        audio.write(path, wav, sample_rate)
        return path.read_bytes()


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
