"""The page that people open, its pictures, and evaluations side by side."""

import base64
import html
import html.parser
import io
import json
import os
import re
import shutil
import zlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from codec import audio
from codec.cli import run
from codec.errors import ConfigError
from codec.evaluation.baselines import PUBLISHED
from codec.evaluation.comparison import compare, comparison_table, write_comparison
from codec.evaluation.evaluate import Options, evaluate_folders, evaluate_model
from codec.evaluation.metric import Column
from codec.evaluation.pictures import histogram, png, spectrograms
from codec.evaluation.resampling import resample
from codec.evaluation.statistics import bootstrap_interval

FAST = Options(metrics=("mel", "si_sdr"), jobs=0)


class Checker(html.parser.HTMLParser):
    """Notes every element, and that each is closed in its turn."""

    VOID = frozenset({"meta", "br", "img"})

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.links = [], [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check(text: str) -> Checker:
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == []
    return checker


# -- the page


def test_page_needs_nothing_else(folders, tmp_path):
    evaluate_folders(*folders, output=tmp_path / "out", options=FAST)
    text = (tmp_path / "out" / "report.html").read_text()
    checker = check(text)
    assert all(link.startswith("data:") for link in checker.links)
    assert "script" not in checker.seen
    assert checker.seen.count("img") == 2 * 2  # three utterances: one worst, one best
    assert checker.seen.count("audio") == 2 * 2
    assert "Worst utterances by log-mel L1" in text
    assert text.index("<b>speaker/talk") < text.index("Best utterances")


def test_page_tells_what_a_reader_must_know(folders, tmp_path):
    shutil.copy(folders[0] / "speaker" / "talk0.wav", folders[0] / "<alone>.wav")
    evaluate_folders(*folders, output=tmp_path / "out", options=FAST)
    text = (tmp_path / "out" / "report.html").read_text()
    check(text)
    assert "3 of 4 utterances scored" in text
    assert "minutes; 1 known speaker; " in text
    assert "<b>1 excluded</b>" in text
    assert "&lt;alone&gt;" in text
    assert "<alone>" not in text
    assert "codec evaluate" in text
    assert "not asked for" in text
    assert "--metrics stoi" in text or "pip install" in text
    assert "sinc, Hann window" in text
    for row in PUBLISHED:
        assert row.conditions in html.unescape(text)


def test_players_hold_what_was_scored(folders, tmp_path):
    import soundfile

    evaluate_folders(*folders, output=tmp_path / "out", options=FAST)
    text = (tmp_path / "out" / "report.html").read_text()
    sounds = re.findall(r"data:audio/flac;base64,([A-Za-z0-9+/=]+)", text)
    id = re.search(r"<b>(speaker/talk\d)</b>", text)[1]
    for sound, folder in zip(sounds, folders, strict=False):
        wav, rate = soundfile.read(io.BytesIO(base64.b64decode(sound)), dtype="float32")
        assert rate == 24000
        assert np.array_equal(wav, audio.read(folder / f"{id}.wav")[0][0])


def test_players_leave_out_the_delay_that_was_removed(folders, tmp_path):
    import soundfile

    evaluate_folders(*folders, output=tmp_path / "out", options=Options(metrics=("mel",), jobs=0, delay=240))
    text = (tmp_path / "out" / "report.html").read_text()
    sounds = re.findall(r"data:audio/flac;base64,([A-Za-z0-9+/=]+)", text)
    id = re.search(r"<b>(speaker/talk\d)</b>", text)[1]
    estimate, _ = soundfile.read(io.BytesIO(base64.b64decode(sounds[1])), dtype="float32")
    assert np.array_equal(estimate, audio.read(folders[1] / f"{id}.wav")[0][0, 240:])


def test_page_without_players_is_small(folders, tmp_path):
    arguments = ["--metrics", "mel", "--jobs", "0", "-q", "-o", str(tmp_path / "out"), "--no-audio"]
    assert run(["evaluate", *map(str, folders), *arguments]) == 0
    text = (tmp_path / "out" / "report.html").read_text()
    assert "audio" not in check(text).seen
    assert len(text) < 200_000


@pytest.mark.parametrize(
    ("rate", "why"),
    [(1000, "has 400 samples, a spectrum of 1024 needs more"), (800_000, "flac cannot hold a sample rate of 800000")],
)
def test_example_that_cannot_be_shown_says_why(tmp_path, reference, rate, why):
    wav = resample(reference[9600:19200], 24000, rate)  # 0.4 s
    for name, offset in (("reference", 0), ("estimate", 0.001)):
        (tmp_path / name).mkdir()
        audio.write(tmp_path / name / "talk.wav", wav + offset, rate)
    options = Options(metrics=("pesq_wb",), jobs=0)
    evaluate_folders(tmp_path / "reference", tmp_path / "estimate", output=tmp_path / "out", options=options)
    text = (tmp_path / "out" / "report.html").read_text()
    assert "img" not in check(text).seen
    assert f"<p>{why}" in text


def test_page_of_a_model_has_codes_and_speed(model_directory, folders, tmp_path):
    evaluate_model(model_directory, folders[0], output=tmp_path / "out", options=FAST)
    text = (tmp_path / "out" / "report.html").read_text()
    check(text)
    assert "perplexity" in text
    assert "real-time factor, encoding" in text


def test_page_of_nothing_scored_is_written(folders, tmp_path):
    for path in folders[1].rglob("*.wav"):
        path.write_bytes(b"broken")
    with pytest.raises(Exception, match="nothing could be scored"):
        evaluate_folders(*folders, output=tmp_path / "out", options=FAST)
    text = (tmp_path / "out" / "report.html").read_text()
    check(text)
    assert "0 of 3 utterances scored" in text


# -- pictures


def test_png_is_what_it_says():
    levels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    data = png(levels)
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert data[16:24] == (4).to_bytes(4, "big") + (3).to_bytes(4, "big")
    place = data.index(b"IDAT")
    size = int.from_bytes(data[place - 4 : place], "big")
    rows = np.frombuffer(zlib.decompress(data[place + 4 : place + 4 + size]), np.uint8).reshape(3, 5)
    assert np.array_equal(rows[:, 1:], levels)
    assert not rows[:, 0].any()
    assert Image.open(io.BytesIO(data)).convert("RGB").size == (4, 3)


def test_spectrograms_of_identical_signals_are_identical_and_bounded():
    wav = np.random.default_rng(0).standard_normal(24000 * 30).astype(np.float32)
    first, second = spectrograms(wav, wav, 24000)
    assert first == second
    assert int.from_bytes(first[16:20], "big") <= 902


def test_histogram_of_one_value_has_no_bars():
    assert "<rect" not in histogram([1.0, 1.0], 1.0, None, "title")
    assert histogram([1.0, 2.0, 3.0], 2.0, (1.5, 2.5), "a < b").count("<rect") == 25
    assert "a &lt; b" in histogram([1.0, 2.0], 1.5, None, "a < b")


# -- comparison


@pytest.fixture
def two(folders, tmp_path):
    """Results for the same six references: B has half the distance of A."""
    for path in sorted(path for folder in folders for path in folder.rglob("*.wav")):
        wav = audio.read(path)[0][0]
        for half in range(2):
            audio.write(path.with_stem(f"{path.stem}-{half}"), wav[half * 18000 :][:18000], 24000)
        path.unlink()
    better = tmp_path / "better"
    for path in sorted(folders[1].rglob("*.wav")):
        reference, estimate = (audio.read(folder / path.relative_to(folders[1]))[0][0] for folder in folders)
        target = better / path.relative_to(folders[1])
        target.parent.mkdir(parents=True, exist_ok=True)
        audio.write(target, (reference + estimate) / 2, 24000)
    evaluate_folders(*folders, output=tmp_path / "A", options=FAST)
    evaluate_folders(folders[0], better, output=tmp_path / "B", options=FAST)
    return tmp_path / "A", tmp_path / "B"


def mel_difference(*two: Path) -> dict[str, Any]:
    """How the second differs from the first in the mel distance."""
    return compare(*two)["metrics"]["mel"]["systems"][1]["difference"]


def test_differences_are_paired_and_signed(two):
    found = compare(*two)
    first, second = found["metrics"]["mel"]["systems"]
    mel = second["difference"]
    assert found["num_common"] == 6
    assert mel["mean"] == pytest.approx(second["mean"] - first["mean"])
    assert mel["low"] <= mel["mean"] <= mel["high"] < 0
    assert (mel["num_better"], mel["num_worse"]) == (6, 0)
    assert mel["verdict"] == "better"
    assert mel_difference(*two[::-1])["verdict"] == "worse"
    assert mel_difference(*two[::-1])["mean"] == pytest.approx(-mel["mean"])


def test_five_files_decide_nothing(two):
    """All of them better: a fair coin does as much, or the opposite, in 6 % of all cases."""
    scores = two[0] / "scores.tsv"
    scores.write_text("\n".join(scores.read_text().splitlines()[:-1]) + "\n")
    mel = mel_difference(*two)
    assert (mel["num_better"], mel["low"], mel["verdict"]) == (5, None, "")


def test_more_files_of_the_same_speakers_decide_no_more(two):
    tables = [(folder / "scores.tsv").read_text().splitlines() for folder in two]

    def doubled(names: str) -> dict[str, Any]:
        """The mel distance where each row is there again under another id, by the same one of six speakers."""
        for folder, (header, *rows) in zip(two, tables, strict=True):
            named = [row.replace("\tspeaker\t", f"\t{number}{names}\t") for number, row in enumerate(rows)]
            lines = [header, *named, *(f"again/{row}" for row in named)]
            (folder / "scores.tsv").write_text("\n".join(lines) + "\n")
        return mel_difference(*two)

    once, twice, anybody = mel_difference(*two), doubled(""), doubled("unknown")
    assert (once["num_better"], twice["num_better"]) == (6, 12)
    assert (twice["low"], twice["high"]) == pytest.approx((once["low"], once["high"]))
    assert twice["low"] < anybody["low"] < anybody["high"] < twice["high"]


def test_no_difference_is_undecided(two):
    mel = mel_difference(two[0], two[0])
    assert (mel["mean"], mel["verdict"], mel["num_better"]) == (0, "", 0)
    assert "undecided" in comparison_table(compare(two[0], two[0]))


def test_comparison_is_written(two, tmp_path, capsys):
    assert run(["evaluate", "--compare", *map(str, two), "-o", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "log-mel L1" in printed
    assert printed.splitlines()[-2].endswith("B")
    check((tmp_path / "out" / "comparison.html").read_text())
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == compare(*two)
    lines = (tmp_path / "out" / "differences.tsv").read_text().splitlines()
    assert lines[0] == "id\tsystem\tmel\tsi_sdr"
    assert len(lines) == 7


def test_folders_whose_names_are_no_text_are_compared(folders, tmp_path):
    estimate = folders[1].rename(tmp_path / os.fsdecode(b"made\xff"))
    arguments = ["--metrics", "mel", "--jobs", "0", "-q", "-o"]
    assert run(["evaluate", str(folders[0]), str(estimate), *arguments, str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))["estimate"] == str(estimate)
    both = [str(tmp_path / "out")] * 2
    assert run(["evaluate", "--compare", *both, "-q", "-o", str(tmp_path / "compared")]) == 0
    assert "made\\udcff" in (tmp_path / "compared" / "comparison.html").read_text(encoding="utf-8")
    found = json.loads((tmp_path / "compared" / "comparison.json").read_text(encoding="utf-8"))
    assert found["systems"] == [f"{estimate} in {tmp_path / 'out'}"] * 2


def test_utterances_of_only_one_are_counted(two):
    scores = two[0] / "scores.tsv"
    scores.write_text("\n".join(scores.read_text().splitlines()[:-1]) + "\n")
    found = compare(*two)
    assert (found["num_common"], found["num_alone"]) == (5, 1)
    assert "1 in only one of both" in comparison_table(found)


def test_weighted_columns_have_weighted_means(two):
    """As error rates, whose weight is the number of words. Utterances of weight 0 have none."""
    weights = np.arange(6.0)
    for folder in two:
        summary = json.loads((folder / "summary.json").read_text())
        summary["metrics"]["mel"]["weight"] = "seconds"
        (folder / "summary.json").write_text(json.dumps(summary))
        header, *rows = [line.split("\t") for line in (folder / "scores.tsv").read_text().splitlines()]
        for row, weight in zip(rows, weights, strict=True):
            row[header.index("seconds")] = str(weight)
        (folder / "scores.tsv").write_text("".join("\t".join(row) + "\n" for row in [header, *rows]))
    assert compare(*two)["metrics"]["mel"]["num"] == 5
    mel = mel_difference(*two)
    differences = list(mel["by_utterance"].values())
    assert mel["mean"] == pytest.approx(np.average(differences, weights=weights[1:]))


def test_what_depends_on_the_sample_rate_is_not_compared_across_rates(two, folders, tmp_path):
    """Of sound without an upper band there is less to get wrong."""
    lower = tmp_path / "lower"
    for path in sorted(folders[1].rglob("*.wav")):
        wav = audio.read(path)[0][0]
        target = lower / path.relative_to(folders[1])
        target.parent.mkdir(parents=True, exist_ok=True)
        audio.write(target, resample(wav, 24000, 16000), 16000)
    options = replace(FAST, metrics=("mel", "stoi"))
    evaluate_folders(*folders, output=two[0], options=options)
    evaluate_folders(folders[0], lower, output=two[1], options=options)
    found = compare(*two)
    assert list(found["metrics"]) == ["stoi"]
    assert found["left_out"] == {"the sample rates differ": ["log-mel L1"]}
    assert "left out, because the sample rates differ: log-mel L1" in comparison_table(found)


def test_nothing_is_scored_beside_a_comparison(two, capsys):
    assert run(["evaluate", "--model", "stream", "--data", str(two[0]), "--compare", *map(str, two)]) == 2
    said = capsys.readouterr().err
    assert "--compare takes outputs of this command, and scores nothing: leave out --data, --model" in said


def test_other_references_are_refused(two, folders):
    wav, _ = audio.read(folders[0] / "speaker" / "talk1-0.wav")
    audio.write(folders[0] / "speaker" / "talk1-0.wav", 0.5 * wav, 24000, overwrite=True)
    evaluate_folders(*folders, output=two[0], options=FAST)
    with pytest.raises(ConfigError, match="the reference of speaker/talk1-0 is not the same"):
        compare(*two)


def test_references_of_which_nothing_is_kept_are_not_compared(two):
    journal = two[0] / "journal.jsonl"
    entries = [json.loads(line) | {"key": 5} for line in journal.read_text().splitlines()]
    journal.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert compare(*two)["num_common"] == 6


def test_evaluations_of_earlier_versions_are_compared(two):
    summary = json.loads((two[0] / "summary.json").read_text())
    for about in summary["metrics"].values():
        del about["at_own_rate"], about["identity"]
    change_summary(two[0], **summary)
    assert mel_difference(*two)["verdict"] == "better"


def test_what_other_weights_have_scored_is_not_compared(two):
    summary = json.loads((two[0] / "summary.json").read_text())
    summary["metrics"]["mel"]["identity"] += "/other weights"
    change_summary(two[0], **summary)
    found = compare(*two)
    assert "mel" not in found["metrics"]
    assert "with other weights or another version of the metric: log-mel L1" in comparison_table(found)


def test_files_without_a_value_in_one_are_told(two):
    """The utterances are common, and nothing else would say that one metric was compared over fewer."""
    header, first, *rest = (two[1] / "scores.tsv").read_text().splitlines()
    cells = first.split("\t")
    cells[header.split("\t").index("mel")] = ""
    (two[1] / "scores.tsv").write_text("\n".join([header, "\t".join(cells), *rest]) + "\n")
    found = compare(*two)
    assert (found["num_common"], found["metrics"]["mel"]["num"], found["metrics"]["si_sdr"]["num"]) == (6, 5, 6)
    assert [line.split()[-4] for line in comparison_table(found).splitlines() if "log-mel" in line] == ["5"]


def change_summary(folder: Path, **changes: Any) -> None:
    """Write other entries into a summary, or remove those that are to be None."""
    summary = json.loads((folder / "summary.json").read_text()) | changes
    (folder / "summary.json").write_text(json.dumps({k: v for k, v in summary.items() if v is not None}))


def change_column(folder: Path, **changes: Any) -> None:
    """Write other entries into what a summary says of its one column."""
    metrics = json.loads((folder / "summary.json").read_text())["metrics"]
    change_summary(folder, metrics={"mel": metrics["mel"] | changes})


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda folder: shutil.rmtree(folder), "cannot be read"),
        (lambda folder: (folder / "summary.json").write_text("{}"), "is not the summary"),
        (lambda folder: (folder / "summary.json").write_text('{"format": 9}'), "has format 9"),
        (lambda folder: change_summary(folder, estimate=None), "is not the summary"),
        (lambda folder: change_summary(folder, metrics=7), "is not the summary"),
        (lambda folder: change_summary(folder, metrics={"mel": 7}), "is not the summary"),
        (lambda folder: change_summary(folder, metrics={"mel": {"label": "mel"}}), "is not the summary"),
        (lambda folder: change_column(folder, better=[1]), "is not the summary"),
        (lambda folder: change_column(folder, better="best"), "is not the summary"),
        (lambda folder: change_column(folder, digits=-1), "is not the summary"),
        (lambda folder: change_column(folder, weight="words"), "no metric in common"),
        (lambda folder: (folder / "scores.tsv").write_text("id\tmel\nx\t1\n"), "no utterance in common"),
    ],
)
def test_folders_that_cannot_be_compared_are_refused(two, damage, what):
    damage(two[1])
    with pytest.raises(ConfigError, match=what):
        compare(*two[::-1])


@pytest.mark.parametrize(
    ("table", "what"),
    [
        ("", "no column id"),
        ("mel\n1\n", "no column id"),
        ("id\tmel\nx\ty\n", ""),
        ("id\tmel\nx\tnan\n", "x has a score that is not within"),
        ("id\tmel\nx\t-1e308\n", "x has a score that is not within"),
        ("id\tmel\nx\t1\nx\t2\n", "x is there twice"),
        ("id\tmel\tmel\nx\t1\t2\n", "two columns have the same name"),
        ("mel\tid\n1\n", "a row has 1 columns, the header 2"),
        ("id\tmel\nx\t1\t2\n", "a row has 3 columns, the header 2"),
        ("id\n" + "x" * 200_000, ""),
    ],
)
def test_tables_that_hold_no_scores_are_refused(two, table, what):
    (two[1] / "scores.tsv").write_text(table)
    with pytest.raises(ConfigError, match=rf"scores\.tsv: is not a table of scores \(.*{what}"):
        compare(*two)


def test_writing_replaces_earlier_results(two, tmp_path):
    for _ in range(2):
        write_comparison(compare(*two), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "comparison.html",
        "comparison.json",
        "differences.tsv",
        "table.tex",
        "table.tsv",
    ]


# -- comparison of several

PESQ = Column("pesq", "PESQ", "higher")
MEL = Column("mel", "mel <L1>", "lower")
RATE = Column("rate", "rate", "", "b/s")


def write_results(folder: Path, name: str, scores: dict[Column, dict[str, float]]) -> Path:
    """What an evaluation leaves, as far as comparisons read it."""
    folder.mkdir()
    metrics = {column.name: asdict(column) for column in scores}
    summary = {"format": 1, "estimate": name, "conditions": {"sample_rates": [24000]}, "metrics": metrics}
    (folder / "summary.json").write_text(json.dumps(summary))
    ids = sorted(set().union(*scores.values()))
    rows = [[id, *(str(values.get(id, "")) for values in scores.values())] for id in ids]
    (folder / "scores.tsv").write_text("".join("\t".join(row) + "\n" for row in [["id", *metrics], *rows]))
    return folder


@pytest.fixture
def three(tmp_path):
    """Folders and scores of three systems for eight utterances that all have; the first and the third have one more."""
    random = np.random.default_rng(0)
    scores = {}
    for name, shift in (("ours", 0.0), ("base", -0.3), ("abl", 0.01)):
        pesq, mel = random.normal(2 + shift, 0.1, 8).round(4), random.normal(0.6, 0.1, 8).round(4)
        scores[name] = {PESQ: pesq, MEL: mel, RATE: np.full(8, 900.0 + len(name))}
    folders = [
        write_results(
            tmp_path / name,
            name,
            {
                column: {f"u{number}": float(value) for number, value in enumerate(values)}
                | ({f"only-{name}": 9.0} if name != "base" else {})
                for column, values in columns.items()
            },
        )
        for name, columns in scores.items()
    ]
    return folders, scores


def test_several_are_compared_with_the_first(three):
    folders, scores = three
    found = compare(*folders)
    assert found["systems"] == ["ours", "base", "abl"]
    assert (found["num_common"], found["num_alone"], found["left_out"]) == (8, 2, {})
    for column, sign in ((PESQ, 1), (MEL, -1)):
        assert found["metrics"][column.name]["num"] == 8
        for name, system in zip(scores, found["metrics"][column.name]["systems"], strict=True):
            values, differences = scores[name][column], scores[name][column] - scores["ours"][column]
            assert system["mean"] == pytest.approx(values.mean())
            assert (system["low"], system["high"]) == pytest.approx(bootstrap_interval(values))
            if name == "ours":
                assert "difference" not in system
                continue
            difference = system["difference"]
            assert list(difference["by_utterance"].values()) == pytest.approx(differences.tolist())
            assert difference["mean"] == pytest.approx(differences.mean())
            low, high = bootstrap_interval(differences)
            assert (difference["low"], difference["high"]) == pytest.approx((low, high))
            assert difference["num_better"] == np.sum(sign * differences > 0)
            assert difference["num_worse"] == np.sum(sign * differences < 0)
            assert difference["verdict"] == ("" if low <= 0 <= high else "better" if sign * low > 0 else "worse")
    _, base, ablation = found["metrics"]["pesq"]["systems"]
    assert (base["difference"]["verdict"], ablation["difference"]["verdict"]) == ("worse", "")


def test_means_of_several_stand_before_their_differences(three, tmp_path, capsys):
    folders, scores = three
    ours, *others = map(str, folders)
    assert run(["evaluate", ours, "--compare", *others, "-o", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    names, means, base, ablation = printed.split("\n\n")
    assert names.splitlines() == [
        *("A: ours", "B: base", "C: abl"),
        "8 utterances of all, paired; 2 in only some were left out",
    ]
    shown = [f"{columns[PESQ].mean():.3f}" for columns in scores.values()]
    assert means.splitlines()[0].split() == ["metric", "A", "B", "C", "better"]
    assert means.splitlines()[1].split() == ["PESQ", *shown, "higher"]
    assert base.splitlines()[1].split()[1:3] == shown[:2]
    assert base.splitlines()[1].split()[-1] == "A"
    assert ablation.splitlines()[1].split()[1:3] == shown[::2]
    assert ablation.splitlines()[1].split()[-1] == "undecided"
    text = (tmp_path / "out" / "comparison.html").read_text()
    assert check(text).seen.count("table") == 3
    assert "mel &lt;L1&gt;" in text
    differences = [line.split("\t") for line in (tmp_path / "out" / "differences.tsv").read_text().splitlines()[1:]]
    assert [row[:2] for row in differences] == [[f"u{u}", name] for name in ("base", "abl") for u in range(8)]


def test_table_of_a_paper_has_means_and_their_intervals(three, tmp_path):
    folders, scores = three
    write_comparison(compare(*folders), tmp_path / "out")
    header, *rows = [line.split("\t") for line in (tmp_path / "out" / "table.tsv").read_text().splitlines()]
    assert header == ["system", *(name + bound for name in ("pesq", "mel", "rate") for bound in ("", "_low", "_high"))]
    assert [row[0] for row in rows] == list(scores)
    for row, columns in zip(rows, scores.values(), strict=True):
        expected = [number for values in columns.values() for number in (values.mean(), *bootstrap_interval(values))]
        assert [float(cell) for cell in row[1:]] == pytest.approx(expected, rel=1e-5)


def test_table_in_latex_marks_the_best_and_escapes_names(tmp_path):
    means = {"[a]_{50%}": (2.0001, 0.5, 900), "b & \\c\n~": (2.0004, 0.4, 901), "d#$^|": (1.9, 0.4, 902)}
    folders = [
        write_results(tmp_path / str(number), name, {PESQ: {"u": pesq}, MEL: {"u": mel}, RATE: {"u": rate}})
        for number, (name, (pesq, mel, rate)) in enumerate(means.items())
    ]
    write_comparison(compare(*folders), tmp_path / "out")
    assert (tmp_path / "out" / "table.tex").read_text().splitlines() == [
        r"\begin{tabular}{lrrr}",
        r"\hline",
        r"system & PESQ $\uparrow$ & mel $<$L1$>$ $\downarrow$ & rate (b/s) \\",
        r"\hline",
        r"{[a]\_\{50\%\}} & $\mathbf{2.000}$ & $0.500$ & $900.000$ \\",
        r"{b \& \textbackslash{}c?\textasciitilde{}} & $\mathbf{2.000}$ & $\mathbf{0.400}$ & $901.000$ \\",
        r"{d\#\$\textasciicircum{}$|$} & $1.900$ & $\mathbf{0.400}$ & $902.000$ \\",
        r"\hline",
        r"\end{tabular}",
    ]
    assert "\n[a]_{50%}\t2.0001\t\t\t0.5\t" in (tmp_path / "out" / "table.tsv").read_text()


def test_equal_names_are_told_apart_by_their_folders(tmp_path):
    folders = [write_results(tmp_path / str(n), name, {PESQ: {"u": 1.0}}) for n, name in enumerate("mmn")]
    assert compare(*folders)["systems"] == [f"m in {folders[0]}", f"m in {folders[1]}", "n"]


def test_a_folder_named_twice_differs_in_nothing(three):
    folders, _ = three
    found = compare(*folders, folders[0])
    again = found["metrics"]["pesq"]["systems"][3]["difference"]
    assert (again["mean"], again["low"], again["high"], again["num_better"], again["verdict"]) == (0, 0, 0, 0, "")


def test_pairs_that_share_utterances_are_not_enough(tmp_path):
    shared = (("u", "v"), ("v", "w"), ("w", "u"))
    folders = [
        write_results(tmp_path / str(number), "m", {PESQ: dict.fromkeys(ids, 1.0)}) for number, ids in enumerate(shared)
    ]
    with pytest.raises(ConfigError, match=r"0, .*1 and .*2: have no utterance in common"):
        compare(*folders)


def test_what_one_lacks_is_left_out_of_all_and_told(tmp_path):
    """Whether it was not asked for, or has no value."""
    has = [{PESQ: 2.0, MEL: 0.5, RATE: 900.0}, {PESQ: 2.1, MEL: 0.4, RATE: 901.0}, {PESQ: 1.9, RATE: 902.0}]
    folders = [
        write_results(tmp_path / str(n), str(n), {column: {"u": value} for column, value in values.items()})
        for n, values in enumerate(has)
    ]
    (folders[0] / "scores.tsv").write_text("id\tpesq\tmel\trate\nu\t2.0\t0.5\t\n")
    for ordered in (folders, folders[::-1]):
        found = compare(*ordered)
        assert list(found["metrics"]) == ["pesq"]
        assert {label for labels in found["left_out"].values() for label in labels} == {"mel <L1>", "rate"}
        assert "; left out, because not all have them: " in comparison_table(found)


@pytest.mark.parametrize("telling", [(0, 1, 2), (1, 2), (2,)])  # of an earlier version are those that do not say it
def test_a_third_system_at_another_rate_leaves_out_what_depends_on_it(three, telling):
    folders, _ = three
    for number, folder in enumerate(folders):
        summary = json.loads((folder / "summary.json").read_text())
        del summary["metrics"]["mel"]["at_own_rate"]
        if number in telling:
            summary["metrics"]["mel"]["at_own_rate"] = True
        summary["conditions"]["sample_rates"] = [16000 if folder == folders[2] else 24000]
        (folder / "summary.json").write_text(json.dumps(summary))
    assert "mel" in compare(*folders[:2])["metrics"]
    assert compare(*folders)["left_out"] == {"the sample rates differ": ["mel <L1>"]}


def test_speakers_that_only_a_later_table_tells_count(two):
    once = mel_difference(*two)
    path = two[0] / "scores.tsv"
    rows = [row.split("\t") for row in path.read_text().splitlines()]
    place = rows[0].index("speaker")
    path.write_text("".join("\t".join(row[:place] + row[place + 1 :]) + "\n" for row in rows))
    for number, folder in enumerate(two):
        assert ("speaker" in (folder / "scores.tsv").read_text().splitlines()[0]) == bool(number)
    assert mel_difference(*two) == once


def test_references_that_only_the_others_have_differently_are_refused(three):
    folders, _ = three
    for folder, sum in zip(folders[1:], "ab", strict=True):
        (folder / "journal.jsonl").write_text(json.dumps({"kind": "scores", "id": "u3", "key": f"{sum} x"}) + "\n")
    with pytest.raises(ConfigError, match=r"base and .*abl: the reference of u3 is not the same"):
        compare(*folders)


@pytest.mark.parametrize("num", [0, 1, 27])
def test_too_few_or_too_many_are_refused(three, capsys, num):
    assert run(["evaluate", "--compare", *[str(three[0][0])] * num]) == 2
    assert capsys.readouterr().err == f"codec: 2 to 26 outputs of `codec evaluate` can be compared, got {num}\n"
