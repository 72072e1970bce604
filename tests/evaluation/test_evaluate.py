"""From two folders, or a model and a folder, to a table, a summary and named failures."""

import csv
import json
import os
import shlex
import shutil
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from codec import audio
from codec.cli import run
from codec.errors import AudioError, CodecError, ConfigError
from codec.evaluation import reconstruction
from codec.evaluation.comparison import compare
from codec.evaluation.evaluate import Options, evaluate_folders, evaluate_model
from codec.evaluation.journal import Journal, file_sum
from codec.evaluation.mel import MelDistance
from codec.evaluation.pairs import Problem
from codec.evaluation.reconstruction import Reconstruction
from codec.evaluation.report import table
from codec.files import decode_file, encode_file
from codec.model.catalogue import fingerprint

FAST = Options(metrics=("mel", "si_sdr"), jobs=0)


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "scores.tsv", encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


@pytest.fixture
def data(tmp_path, reference) -> Path:
    """Three utterances of a second each."""
    for number in range(3):
        path = tmp_path / "data" / f"talk{number}.wav"
        path.parent.mkdir(exist_ok=True)
        audio.write(path, reference[number * 24000 : (number + 1) * 24000 + 100], 24000)
    return tmp_path / "data"


# -- folders


def test_scores_of_two_folders(folders, tmp_path):
    result = evaluate_folders(*folders, output=tmp_path / "out", options=Options(jobs=0))
    rows = rows_of(tmp_path / "out")
    assert [row["id"] for row in rows] == ["speaker/talk0", "speaker/talk1", "speaker/talk2"]
    assert {row["speaker"] for row in rows} == {"speaker"}
    for row in rows:
        assert 1 < float(row["pesq_wb"]) < 4.6
        assert 0.5 < float(row["stoi"]) < 1
    summary = summary_of(tmp_path / "out")
    assert summary == json.loads(json.dumps(result.summary))
    metric = summary["metrics"]["mel"]
    assert metric["mean"] == pytest.approx(np.mean([float(row["mel"]) for row in rows]), rel=1e-5)
    assert metric["min"] < metric["mean"] < metric["max"]
    assert metric["low"] is None  # of three files
    assert summary["num_scored"] == 3
    assert summary["conditions"]["resampler"].startswith("sinc")
    assert summary["conditions"]["sample_rates"] == [24000]
    assert summary["conditions"]["versions"]["numpy"] == np.__version__


def test_how_many_speakers_the_intervals_are_of_is_told(folders, capsys):
    """A corpus with a level of folders above those of its readers is seen to have too few."""
    for folder in folders:
        shutil.copytree(folder / "speaker", folder / "other")
        shutil.copy(folder / "speaker" / "talk0.wav", folder / "alone.wav")
    assert run(["evaluate", *map(str, folders), "--metrics", "mel", "--jobs", "0"]) == 0
    assert ": 7 of 7 utterances, 2 known speakers, " in capsys.readouterr().out
    assert run(["evaluate", *(str(folder / "speaker") for folder in folders), "--metrics", "mel", "--jobs", "0"]) == 0
    assert ": 3 of 3 utterances, 0 known speakers, " in capsys.readouterr().out


def test_quotes_in_names_stay_as_they_are(folders, tmp_path):
    """As in the lists of `codec prepare`, with which tables of scores are joined."""
    name = 'say "hi" \\'
    for folder in folders:
        (folder / "speaker" / "talk1.wav").rename(folder / "speaker" / f"{name}.wav")
    evaluate_folders(*folders, output=tmp_path / "out", options=FAST)
    assert {row["id"] for row in rows_of(tmp_path / "out")} == {f"speaker/{name}", "speaker/talk0", "speaker/talk2"}
    _, second = compare(tmp_path / "out", tmp_path / "out")["metrics"]["mel"]["systems"]
    assert second["difference"]["by_utterance"].keys() == {f"speaker/{name}", "speaker/talk0", "speaker/talk2"}


def test_several_processes_write_the_same_bytes(folders, tmp_path):
    for jobs in (0, 2):
        evaluate_folders(
            *folders, output=tmp_path / str(jobs), options=Options(metrics=("mel", "stft", "mcd"), jobs=jobs)
        )
    for name in ("scores.tsv", "problems.tsv", "summary.json"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_what_cannot_be_scored_is_listed_and_left_out_of_the_mean(folders, tmp_path, reference):
    good = evaluate_folders(*folders, options=FAST).summary["metrics"]["mel"]["mean"]
    for name, wav in (("silent", np.zeros(24000)), ("missing", None), ("short", reference[:20000])):
        audio.write(folders[0] / f"{name}.wav", reference[:24000], 24000)
        if wav is not None:
            audio.write(folders[1] / f"{name}.wav", wav, 24000)
    audio.write(folders[0] / "copy.wav", reference[:24000], 24000)
    audio.write(folders[1] / "copy.wav", reference[:24000], 24000)
    result = evaluate_folders(*folders, output=tmp_path / "out", options=FAST)
    problems = {(problem.id, problem.metric): problem.reason for problem in result.problems}
    assert set(problems) == {("silent", ""), ("missing", ""), ("short", ""), ("copy", "si_sdr")}
    assert "digital silence" in problems["silent", ""]
    assert "no estimate" in problems["missing", ""]
    assert "4000 samples (0.167 s) shorter" in problems["short", ""]
    assert "infinite" in problems["copy", "si_sdr"]
    assert result.summary["num_scored"] == 4
    assert result.summary["num_excluded"] == 3
    assert result.summary["metrics"]["si_sdr"]["num"] == 3
    assert result.summary["metrics"]["si_sdr"]["num_undefined"] == 1
    assert result.summary["metrics"]["mel"]["mean"] == pytest.approx(good * 3 / 4)  # the copy has distance 0
    assert "silent\tall\t" in (tmp_path / "out" / "problems.tsv").read_text()
    assert [row["si_sdr"] == "" for row in rows_of(tmp_path / "out")] == [True, False, False, False]


def test_an_utterance_without_any_defined_metric_is_counted_as_excluded(folders, reference):
    for folder in folders:  # too short for either metric
        audio.write(folder / "short.wav", reference[:3000], 24000)
    metrics = ("pesq_wb", "stoi")
    evaluation = evaluate_folders(*folders, options=Options(metrics=metrics, jobs=0))
    assert {(problem.id, problem.metric) for problem in evaluation.problems} == {("short", name) for name in metrics}
    summary = evaluation.summary
    assert (summary["num_utterances"], summary["num_scored"], summary["num_excluded"]) == (4, 3, 1)
    assert "3 of 4 utterances" in table(summary)
    assert "without a score: 1 utterances, 0 single metrics of others" in table(summary)


def test_nothing_scored_is_an_error_and_the_reasons_are_kept(folders, tmp_path):
    for path in folders[1].rglob("*.wav"):
        path.write_bytes(b"broken")
    with pytest.raises(AudioError, match=r"nothing could be scored: speaker/talk0: .*not a sound file.*2 more"):
        evaluate_folders(*folders, output=tmp_path / "out", options=FAST)
    assert len(summary_of(tmp_path / "out")["problems"]) == 3


def test_no_metric_that_can_be_computed_is_an_error(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CODEC_CACHE", str(tmp_path))
    assert run(["evaluate", *map(str, folders), "--metrics", "utmos", "--jobs", "0"]) == 2
    complaint = capsys.readouterr().err
    assert "nothing could be scored: utmos: its weights are not here; --metrics utmos --utmos-weights PATH" in complaint


def test_no_metric_that_can_be_computed_is_an_error_before_a_model_works(model_directory, data, tmp_path, monkeypatch):
    monkeypatch.setenv("CODEC_CACHE", str(tmp_path))
    options = Options(metrics=("dnsmos", "utmos"), jobs=0)
    with pytest.raises(ConfigError, match=r"nothing could be scored: utmos: .*; dnsmos: "):
        evaluate_model(str(model_directory), data, output=tmp_path / "out", options=options)
    assert not (tmp_path / "out").exists()


def test_a_folder_scored_against_itself_is_perfect(folders, tmp_path):
    result = evaluate_folders(folders[0], folders[0], output=tmp_path / "out", options=Options(jobs=0))
    assert result.summary["metrics"]["mel"]["mean"] == pytest.approx(0, abs=1e-6)
    assert result.summary["metrics"]["stoi"]["mean"] == pytest.approx(1, abs=1e-6)
    assert (tmp_path / "out" / "report.html").is_file()


def test_every_metric_that_was_not_computed_is_told_with_its_command(folders):
    entries = evaluate_folders(*folders, options=FAST).summary["not_computed"]
    commands = {entry["metric"]: entry["command"] for entry in entries}
    assert commands["stoi"] in ("--metrics stoi", "pip install 'codec[eval]'")
    assert "--model" in commands["utilisation"]
    assert "mel" not in commands


def test_missing_package_is_told(folders, monkeypatch):
    from codec.evaluation.pesq import WidebandPesq

    monkeypatch.setattr(WidebandPesq, "packages", ("no_such_package",))
    result = evaluate_folders(*folders, options=Options(metrics=("pesq_wb", "mel"), jobs=0))
    entry = next(entry for entry in result.summary["not_computed"] if entry["metric"] == "pesq_wb")
    assert entry == {
        "metric": "pesq_wb",
        "reason": "no_such_package not installed",
        "command": "pip install 'codec[eval]'",
    }
    assert "pesq_wb" not in result.summary["metrics"]


def test_subset_says_so_and_has_no_problems_of_the_rest(folders, model_directory):
    shutil.copy(folders[0] / "speaker" / "talk0.wav", folders[0] / "speaker" / "talk0.flac")  # two of one id
    options = Options(metrics=("mel",), jobs=0, limit=2)
    for evaluation in (
        evaluate_folders(*folders, options=options),
        evaluate_model(model_directory, folders[0], options=options),
    ):
        assert evaluation.summary["is_subset"]
        assert evaluation.summary["num_utterances"] == 2
        assert evaluation.problems == []


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"jobs": -1}, "jobs must be at least 0"),
        ({"limit": 0}, "limit must"),
        ({"hop_length": -1}, "hop"),
        ({"peak": -0.5}, "peak"),
    ],
)
def test_wrong_option_is_named(wrong, what):
    with pytest.raises(ConfigError, match=what):
        Options(**wrong)


# -- resuming


def test_second_run_scores_only_what_is_new_or_changed(folders, tmp_path, monkeypatch):
    first = evaluate_folders(*folders, output=tmp_path / "out", options=FAST)
    scored = []
    original = MelDistance.score
    monkeypatch.setattr(MelDistance, "score", lambda self, pair: scored.append(pair.id) or original(self, pair))
    second = evaluate_folders(*folders, output=tmp_path / "out", options=FAST)
    assert scored == []
    assert second.summary == first.summary
    shutil.copy(folders[0] / "speaker" / "talk0.wav", folders[1] / "speaker" / "talk0.wav")
    third = evaluate_folders(*folders, output=tmp_path / "out", options=FAST)
    assert scored == ["speaker/talk0"]
    assert third.values("mel")["speaker/talk0"] == 0
    evaluate_folders(*folders, output=tmp_path / "out", options=Options(metrics=("mel", "mcd"), jobs=0))
    assert scored == ["speaker/talk0"]


def test_run_that_was_cut_off_goes_on(folders, tmp_path, monkeypatch):
    original = MelDistance.score

    def until_the_second(self, pair):
        if pair.id.endswith("talk1"):
            raise KeyboardInterrupt
        return original(self, pair)

    monkeypatch.setattr(MelDistance, "score", until_the_second)
    with pytest.raises(KeyboardInterrupt):
        evaluate_folders(*folders, output=tmp_path / "out", options=FAST)
    journal = tmp_path / "out" / "journal.jsonl"
    journal.write_text(journal.read_text() + '{"kind": "scores", "id": "speaker/ta')
    scored = []
    monkeypatch.setattr(MelDistance, "score", lambda self, pair: scored.append(pair.id) or original(self, pair))
    result = evaluate_folders(*folders, output=tmp_path / "out", options=FAST)
    assert scored == ["speaker/talk1", "speaker/talk2"]
    assert result.summary["num_scored"] == 3


def test_text_that_came_later_or_was_edited_is_scored(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(MelDistance, "score", lambda self, pair: {"mel": float(len(pair.text or ""))})
    reference = folders[0] / "speaker" / "talk0.wav"
    for text in (None, "good", "better"):
        if text:
            reference.with_suffix(".txt").write_text(text)
        result = evaluate_folders(*folders, output=tmp_path / "out", options=FAST)
        assert result.values("mel")["speaker/talk0"] == len(text or "")
    assert Journal.references(tmp_path / "out")["speaker/talk0"] == file_sum(reference)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that nobody can read")
def test_text_that_cannot_be_read_is_one_problem(folders):
    text = folders[0] / "speaker" / "talk0.txt"
    text.symlink_to("/proc/self/mem")
    result = evaluate_folders(*folders, options=FAST)
    assert result.problems == [Problem("speaker/talk0", "", f"{text}: Input/output error")]
    assert result.summary["num_scored"] == 2


def test_what_failed_is_tried_again(folders, tmp_path, monkeypatch):
    def fail(self, pair):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(MelDistance, "score", fail)
        first = evaluate_folders(*folders, output=tmp_path / "out", options=FAST)
    assert {problem.reason for problem in first.problems} == {"failed: MemoryError: MemoryError"}
    second = evaluate_folders(*folders, output=tmp_path / "out", options=FAST)
    assert second.problems == []
    assert second.summary["metrics"]["mel"]["num"] == 3


def test_journal_does_not_grow_without_need(model_directory, data, tmp_path):
    journal = tmp_path / "out" / "journal.jsonl"
    sizes = []
    for metrics, jobs in ((("mel",), 0), (("mel", "si_sdr"), 0), (("mel", "si_sdr"), 0), (("mel", "si_sdr"), 1)):
        evaluate_model(model_directory, data, output=tmp_path / "out", options=Options(metrics, jobs=jobs))
        sizes.append(journal.read_bytes().count(b"\n"))
    assert sizes == [6, 9, 6, 6]  # a line more where a metric was added, until the next run writes it anew


def test_journal_that_may_be_there_is_not_emptied(tmp_path, make_stale):
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.append("output", Reconstruction("talk0", "key"))
    before = path.read_bytes()
    make_stale(path)
    with pytest.raises(OSError, match="Stale file handle"):
        Journal(path)
    assert path.read_bytes() == before


def test_run_that_was_killed_in_an_entry_goes_on(folders, tmp_path):
    """The last time in the middle of a letter."""
    for folder in folders:
        (folder / "speaker" / "talk2.wav").rename(folder / "speaker" / "t\xe4lk2.wav")
    evaluate_folders(*folders, output=tmp_path / "out", options=FAST)
    journal = tmp_path / "out" / "journal.jsonl"
    data = journal.read_bytes()
    for length in (1, 7, 30, data.index(b"\n") - 1, data.rindex("\xe4".encode()) + 1):
        journal.write_bytes(data[:length])
        assert evaluate_folders(*folders, output=tmp_path / "out", options=FAST).summary["num_scored"] == 3


@pytest.mark.parametrize(
    "change",
    [
        lambda entry: entry.update(novelty=1),
        lambda entry: entry.pop("key"),
        lambda entry: entry.update(key=5),
        lambda entry: entry.update(dict.fromkeys({"scores", "bitrate"} & entry.keys(), "high")),
    ],
    ids=["added", "removed", "other key", "other values"],
)
def test_entries_of_another_version_are_made_again(model_directory, data, tmp_path, change):
    for number in (1, 2):
        (data / f"talk{number}.wav").unlink()
    first = evaluate_model(model_directory, data, output=tmp_path / "out", options=FAST)
    journal = tmp_path / "out" / "journal.jsonl"
    entries = [json.loads(line) for line in journal.read_text().splitlines()]
    for entry in entries:
        change(entry)
    journal.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    second = evaluate_model(model_directory, data, output=tmp_path / "out", options=FAST)
    assert second.values("mel") == first.values("mel")


def test_folder_with_other_things_is_refused(folders, tmp_path):
    with pytest.raises(ConfigError, match="holds other things"):
        evaluate_folders(*folders, output=folders[0], options=FAST)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="is a file"):
        evaluate_folders(*folders, output=tmp_path / "file", options=FAST)


def test_journal_that_is_none_is_refused(folders, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "journal.jsonl").write_text("[1]\n{}\n")
    with pytest.raises(ConfigError, match=r"journal\.jsonl:1: is not a journal"):
        evaluate_folders(*folders, output=tmp_path / "out", options=FAST)


# -- a model


def test_model_is_run_and_its_codes_are_counted(model_directory, data, tmp_path):
    result = evaluate_model(model_directory, data, output=tmp_path / "out", options=FAST)
    summary = summary_of(tmp_path / "out")
    assert summary["num_scored"] == 3
    assert summary["codes"]["codebook_size"] == 4096
    assert summary["codes"]["num_codes"] == 3 * 76  # 24100 samples need 76 frames of 320
    assert 0 < summary["codes"]["utilisation"] <= 228 / 4096
    assert summary["codes"]["nominal_bitrate"] == 0.9
    assert summary["codes"]["payload_bitrate"] == pytest.approx(76 * 12 / 24100 * 24, abs=0.01)
    assert summary["codes"]["bitrate"] > summary["codes"]["payload_bitrate"]
    assert summary["codes"]["entropy_bitrate"] == pytest.approx(75 * summary["codes"]["entropy"] / 1000)
    assert summary["speed"]["encode_rtf"] > 0
    assert summary["fingerprint"] == fingerprint(model_directory)
    row = rows_of(tmp_path / "out")[0]
    size = (tmp_path / "out" / "codes" / "talk0.codes").stat().st_size
    assert float(row["bitrate"]) == pytest.approx(size * 8 * 24 / 24100, rel=1e-5)
    encode_file(next(data.glob("talk0.*")), tmp_path / "talk0.codes", model=model_directory)
    assert (tmp_path / "talk0.codes").stat().st_size == size  # what a user's file takes
    assert 0 <= float(row["reencoding"]) <= 1
    assert audio.info(tmp_path / "out" / "estimates" / "talk0.wav").num_samples == 24100
    assert sorted(path.name for path in (tmp_path / "out" / "codes").iterdir()) == [f"talk{n}.codes" for n in range(3)]
    assert {entry["metric"] for entry in summary["not_computed"]}.isdisjoint({"utilisation", "bitrate", "reencoding"})
    assert result.values("reencoding").keys() == {"talk0", "talk1", "talk2"}


def test_encoding_again_leaves_no_file_and_harms_none(model_directory, data, tmp_path):
    """The codes of an utterance talk0.again are made in another process at the same time."""
    (tmp_path / "talk0.again.codes").write_bytes(b"of another")
    estimate, codes = tmp_path / "talk0.wav", tmp_path / "talk0.codes"
    task = reconstruction.Task("talk0", data / "talk0.wav", estimate, codes, None, None)
    made = reconstruction.prepare(str(model_directory), "cpu", 0)(task)
    assert made.problem is None
    assert (tmp_path / "talk0.again.codes").read_bytes() == b"of another"
    assert {path.name for path in tmp_path.glob("*.*")} == {"talk0.wav", "talk0.codes", "talk0.again.codes"}


def test_model_run_goes_on_and_another_model_starts_again(
    model_directory, other_model_directory, data, tmp_path, monkeypatch
):
    import codec.files

    evaluate_model(model_directory, data, output=tmp_path / "out", options=FAST)
    encoded = []
    original = codec.files.encode_file
    monkeypatch.setattr(
        codec.files, "encode_file", lambda path, *a, **k: encoded.append(path) or original(path, *a, **k)
    )
    evaluate_model(model_directory, data, output=tmp_path / "out", options=FAST)
    assert encoded == []
    evaluate_model(other_model_directory, data, output=tmp_path / "out", options=FAST)
    assert len(encoded) == 6  # and once more for the agreement


def test_output_that_another_run_has_left_is_made_again(model_directory, other_model_directory, data, tmp_path):
    """As of a run with another model that was killed before it kept an entry."""
    first = evaluate_model(model_directory, data, output=tmp_path / "out", options=FAST)
    codes, estimate = tmp_path / "out" / "codes" / "talk0.codes", tmp_path / "out" / "estimates" / "talk0.wav"
    encode_file(data / "talk0.wav", codes, model=other_model_directory, overwrite=True)
    decode_file(codes, estimate, model=other_model_directory, overwrite=True)
    second = evaluate_model(model_directory, data, output=tmp_path / "out", options=FAST)
    assert second.values("mel") == first.values("mel")


def test_estimates_are_not_replaced_by_what_is_made_of_them(model_directory, data, tmp_path):
    evaluate_model(model_directory, data, output=tmp_path / "out", options=FAST)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")}
    with pytest.raises(ConfigError, match=r"talk0\.wav: lies within .*out; name another folder for the results"):
        evaluate_model(model_directory, tmp_path / "out" / "estimates", output=tmp_path / "out", options=FAST)
    with pytest.raises(CodecError, match="out: is the folder of the originals"):
        evaluate_model(model_directory, tmp_path / "out", output=tmp_path / "out", options=FAST)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.*")} == before


def test_calls_in_several_threads_have_models_and_metrics_of_their_own(
    model_directory, other_model_directory, data, tmp_path
):
    others = {}

    def evaluate_another(stage: str) -> None:
        others[stage] = evaluate_model(other_model_directory, data, options=Options(metrics=("mel",), jobs=0))

    def call_another(stage: str, done: float, total: float) -> None:
        if 0 < done < total and stage not in others:
            thread = Thread(target=evaluate_another, args=(stage,))
            thread.start()
            thread.join()

    found = evaluate_model(model_directory, data, options=FAST, progress=call_another)
    alone = evaluate_model(model_directory, data, options=FAST)
    assert len(others) == 2
    assert all(found.values(column) == alone.values(column) for column in ("mel", "si_sdr"))
    assert all(other.values("mel") != alone.values("mel") for other in others.values())


def test_unreadable_input_of_a_model_is_listed(model_directory, data):
    (data / "broken.wav").write_bytes(b"no sound")
    result = evaluate_model(model_directory, data, options=FAST)
    assert [problem.id for problem in result.problems] == ["broken"]
    assert result.summary["num_scored"] == 3


# -- the command


def test_command_prints_the_table_and_writes_the_results(folders, tmp_path, capsys):
    output = str(tmp_path / "out")
    assert run(["evaluate", *map(str, folders), "--metrics", "mel,si_sdr", "--jobs", "0", "-o", output]) == 0
    printed = capsys.readouterr().out
    assert "log-mel L1" in printed
    assert "95 % interval" in printed
    assert "not computed:" in printed
    assert (tmp_path / "out" / "summary.json").exists()


def test_a_folder_whose_name_is_no_text_is_reported(folders, tmp_path):
    reference, estimate = folders
    odd = shutil.copytree(reference, tmp_path / os.fsdecode(b"caf\xe9"))
    (odd / "more.wav").write_bytes(b"no sound")
    output = tmp_path / "out"
    run(["evaluate", str(odd), str(estimate), "--metrics", "mel", "--jobs", "0", "-o", str(output)])
    assert str(odd) in summary_of(output).values()


def test_command_in_the_summary_gives_the_same_scores_again(folders, tmp_path, capsys):
    arguments = ["evaluate", *map(str, folders), "--metrics", "mel,stoi", "--limit", "2", "--delay", "7", "--json"]
    assert run([*arguments, "--jobs", "0", "-o", str(tmp_path / "out")]) == 0
    first = json.loads(capsys.readouterr().out)
    assert shlex.split(first["command"])[0] == "codec"
    assert run([*shlex.split(first["command"])[1:], "--json", "--jobs", "0"]) == 0
    assert json.loads(capsys.readouterr().out) == first


def test_command_evaluates_a_model(model_directory, data, capsys):
    arguments = ["--model", str(model_directory), "--data", str(data), "--metrics", "mel", "--jobs", "0", "--json"]
    assert run(["evaluate", *arguments]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["codes"]["num_codes"] == 228


def test_command_is_strict_when_asked(folders, capsys):
    arguments = ["evaluate", *map(str, folders), "--jobs", "0", "-q", "--metrics"]
    assert run([*arguments, "mel", "--strict"]) == 0
    assert run([*arguments, "mel,wer"]) == 0
    assert run([*arguments, "mel,wer", "--strict"]) == 2
    assert capsys.readouterr().err == "codec: 0 problems, listed in the report; not computed: wer\n"
    shutil.copy(folders[0] / "speaker" / "talk0.wav", folders[0] / "alone.wav")
    assert run([*arguments, "mel", "--strict"]) == 2
    assert capsys.readouterr().err == "codec: 1 problem, listed in the report\n"


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ([], "name two folders"),
        (["a"], "name two folders"),
        (["a", "b", "--model", "m"], "name two folders"),
        (["--model", "m"], "name two folders"),
        (["a", "b", "--data", "d"], "name two folders"),
        (["--compare", "a", "b", "--strict", "--metrics", "mel"], "scores nothing: leave out --metrics, --strict"),
        (["a", "b"], "a: no such folder"),
        (["a", "b", "--metrics", "nonsense"], "unknown metric 'nonsense'"),
        (["--model", "no-such-model", "--data", "a"], "unknown model"),
    ],
)
def test_bad_command_is_one_sentence_and_exit_code_2(arguments, what, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["evaluate", *arguments]) == 2
    complaint = capsys.readouterr().err
    assert what in complaint
    assert complaint.count("\n") == 1


def test_delays_that_differ_from_file_to_file_are_no_advice(folders, tmp_path, capsys):
    shifted = tmp_path / "shifted"
    for delay, path in zip((-200, 90, 240), sorted(folders[0].rglob("*.wav")), strict=True):
        target = shifted / path.relative_to(folders[0])
        target.parent.mkdir(parents=True, exist_ok=True)
        audio.write(target, np.roll(audio.read(path)[0][0], delay), 24000)
    assert run(["evaluate", str(folders[0]), str(shifted), "--metrics", "mel", "--jobs", "0"]) == 0
    assert "delay:" not in capsys.readouterr().out


def test_late_codec_is_told_and_can_be_corrected(folders, tmp_path, reference, capsys):
    late = tmp_path / "late"
    for path in sorted(folders[0].rglob("*.wav")):
        target = late / path.relative_to(folders[0])
        target.parent.mkdir(parents=True, exist_ok=True)
        audio.write(target, 0.9 * np.roll(audio.read(path)[0][0], 240), 24000)
    arguments = ["evaluate", str(folders[0]), str(late), "--metrics", "mel", "--jobs", "0"]
    assert run(arguments) == 0
    assert "estimates are 240 samples late (median of 3)" in capsys.readouterr().out
    assert run([*arguments, "--delay", "240", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["delay"]["median"] == 0
    assert summary["conditions"]["delay_removed"] == 240
    assert summary["metrics"]["mel"]["mean"] == pytest.approx(-np.log(0.9), abs=0.05)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_value_of_a_metric_that_is_no_number_is_listed(folders, tmp_path, monkeypatch, value):
    monkeypatch.setattr(MelDistance, "score", lambda self, pair: {"mel": value})
    result = evaluate_folders(*folders, output=tmp_path / "out", options=FAST)
    assert {problem.reason for problem in result.problems} == {"its value is not a finite number"}
    assert result.summary["num_scored"] == 3


def test_value_of_a_metric_may_be_of_any_type_of_number(folders, tmp_path, monkeypatch):
    """What numpy makes of float32 is float32, which JSON does not know."""
    monkeypatch.setattr(MelDistance, "score", lambda self, pair: {"mel": np.abs(pair.estimate).max()})
    first, again = (evaluate_folders(*folders, output=tmp_path / "out", options=FAST) for _ in range(2))
    assert first.values("mel") == again.values("mel")
    assert first.summary["num_scored"] == 3


def test_unexpected_exception_of_a_metric_is_listed(folders, monkeypatch):
    def fail(self, pair):
        raise ZeroDivisionError("a mistake")

    monkeypatch.setattr(MelDistance, "score", fail)
    result = evaluate_folders(*folders, options=FAST)
    assert {problem.reason for problem in result.problems} == {"failed: ZeroDivisionError: a mistake"}
    assert result.summary["num_scored"] == 3
