"""Each file is measured once, rightly, and no kill loses what was measured."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import soundfile
from small_corpus import RATE, make_part, noise, plant_damage

from codec.preparation import survey as surveying
from codec.preparation.folder import classify_files
from codec.preparation.survey import measure, survey


@pytest.fixture
def files(tmp_path, monkeypatch) -> list[Path]:
    """Twelve sound files of every condition; a batch is two of them."""
    monkeypatch.setattr(surveying, "FILES_PER_BATCH", 2)
    plant_damage(make_part(tmp_path, "train-clean-100") / "103" / "100")
    return classify_files(tmp_path)[0]


def write(path: Path, wav: np.ndarray, **options) -> Path:
    soundfile.write(path, wav, RATE, **options)
    return path


def test_measures_are_those_of_the_samples(tmp_path):
    quiet, loud = np.full(RATE // 2, 0.001), np.full(RATE // 2, 0.5)
    loud[:240] = 1.0
    found = measure(write(tmp_path / "a.wav", np.concatenate([quiet, loud, -loud, -quiet])))
    assert (found.num_samples, found.sample_rate, found.channels, found.problem) == (2 * RATE, RATE, 1, "")
    assert found.peak == pytest.approx(1.0, abs=1e-4)
    assert found.silent_share == 0.5  # 0.001 is -60 dB
    assert found.clipped_share == 480 / (2 * RATE)


def test_samples_of_all_channels_count(tmp_path):
    wav = np.full((1000, 2), 0.1)
    wav[:500, 1] = -1.0
    found = measure(write(tmp_path / "a.wav", wav))
    assert (found.num_samples, found.channels, found.clipped_share) == (1000, 2, 0.25)
    assert found.peak == pytest.approx(1.0, abs=1e-4)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.wav")
    assert measure(tmp_path / "a.wav").problem == "is no regular file"


def test_measures_do_not_depend_on_the_blocks_a_file_is_read_in(tmp_path):
    wav = np.concatenate([noise(25), np.zeros(3 * RATE)])
    found = measure(write(tmp_path / "a.flac", wav))
    assert found.silent_share == pytest.approx(3 / 28, abs=1e-6)


@pytest.mark.parametrize("headers_only", [False, True])
def test_header_agrees_with_samples(headers_only, tmp_path):
    for path in (
        write(tmp_path / "a.wav", noise()),
        write(tmp_path / "a.flac", noise()),
        write(tmp_path / "a.ogg", noise()),
    ):
        found = measure(path, headers_only)
        assert (found.problem, found.num_samples, found.channels) == ("", len(noise()), 1)


@pytest.mark.parametrize("headers_only", [False, True])
def test_file_that_cannot_be_used_says_why(headers_only, tmp_path):
    whole = write(tmp_path / "a.wav", noise()).read_bytes()
    cases = {"cut": (whole[:-1000], "cut off"), "empty": (b"", "is empty"), "text": (b"hello", "not a sound file")}
    for name, (data, message) in cases.items():
        (tmp_path / f"{name}.wav").write_bytes(data)
        assert message in measure(tmp_path / f"{name}.wav", headers_only).problem
    assert "cannot be opened" in measure(tmp_path / "none.wav", headers_only).problem


def test_processes_change_nothing(files, tmp_path):
    alone = survey(files, tmp_path, tmp_path / "0.jsonl", jobs=0)
    assert survey(files, tmp_path, tmp_path / "2.jsonl", jobs=2) == alone
    assert sum(bool(found.problem) for found in alone) == 4


def test_known_files_are_not_read_again_and_changed_ones_are(files, tmp_path, monkeypatch):
    journal = tmp_path / "j.jsonl"
    first = survey(files, tmp_path, journal, jobs=0)
    measured = []
    monkeypatch.setattr(surveying, "measure", lambda path, headers: measured.append(path) or measure(path, headers))
    size = journal.stat().st_size
    assert survey(files, tmp_path, journal, jobs=0) == first
    assert measured == []
    assert journal.stat().st_size == size
    write(files[0], noise(1.0))
    changed = survey(files, tmp_path, journal, jobs=0)
    assert measured == [files[0]]
    assert changed[0].num_samples == RATE
    assert changed[1:] == first[1:]


def test_a_journal_that_may_be_there_is_not_passed_over(files, tmp_path, make_stale):
    journal = tmp_path / "j.jsonl"
    survey(files, tmp_path, journal, jobs=0)
    make_stale(journal)
    with pytest.raises(OSError, match="Stale file handle"):
        survey(files, tmp_path, journal, jobs=0)


def test_cut_or_foreign_lines_of_a_journal_are_measured_again(files, tmp_path):
    journal = tmp_path / "j.jsonl"
    first = survey(files, tmp_path, journal, jobs=0)
    data = journal.read_bytes()
    for damaged in (
        data[:-20],
        data[: len(data) // 2],
        b"\xff\0nonsense\n" + data,
        b'{"version": 0}\n' + data[16:],
        re.sub(rb'"sample_rate": \d+', b'"sample_rate": "x"', data),
        re.sub(rb'"sample_rate": \d+', b'"sample_rate": 0', data),
        re.sub(rb'"num_samples": \d+', b'"num_samples": ' + b"9" * 400, data),
        re.sub(rb'"path": "[^"]*"', b'"path": [1]', data),
        b"",
    ):
        journal.write_bytes(damaged)
        assert survey(files, tmp_path, journal, jobs=0) == first
        assert survey(files, tmp_path, journal, jobs=0) == first


def test_killed_survey_goes_on_where_it_stopped(files, tmp_path, monkeypatch):
    journal = tmp_path / "j.jsonl"
    code = f"""
        import os, signal
        from pathlib import Path
        from codec.preparation import survey as surveying
        surveying.FILES_PER_BATCH = 2
        def kill(step, done, total):
            if done >= 6:
                os.kill(os.getpid(), signal.SIGKILL)
        files = [Path(path) for path in {[str(path) for path in files]!r}]
        surveying.survey(files, Path({str(tmp_path)!r}), Path({str(journal)!r}), jobs=0, progress=kill)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=Path(__file__).parents[2])
    assert done.returncode == -signal.SIGKILL
    steps = []
    found = survey(files, tmp_path, journal, jobs=0, progress=lambda *step: steps.append(step))
    assert steps[0] == ("measured", 6, len(files))
    assert found == survey(files, tmp_path, tmp_path / "other.jsonl", jobs=0)


def test_interrupted_survey_leaves_no_processes(files, tmp_path):
    def interrupt(step, done, total):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        survey(files, tmp_path, tmp_path / "j.jsonl", jobs=2, progress=interrupt)
    assert multiprocessing.active_children() == []


def test_a_crash_costs_only_the_file_at_fault(files, tmp_path):
    """It is told apart from the others of its batch, and tried again the next time."""
    script, journal = tmp_path / "crash.py", tmp_path / "j.jsonl"
    script.write_text(f"""
import os, signal
from pathlib import Path
from codec.preparation import survey as surveying
measure = surveying.measure
def crash(path, *more):
    if path.name == {files[1].name!r}:
        os.kill(os.getpid(), signal.SIGSEGV)
    return measure(path, *more)
surveying.measure = crash
if __name__ == "__main__":
    files = [Path(path) for path in {[str(path) for path in files]!r}]
    found = surveying.survey(files, Path({str(tmp_path)!r}), Path({str(journal)!r}), jobs=1)
    print([number for number, one in enumerate(found) if one.problem == "the process that worked on it has died"])
""")
    done = subprocess.run([sys.executable, script], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[1]\n")
    steps = []
    found = survey(files, tmp_path, journal, jobs=0, progress=lambda *step: steps.append(step))
    assert steps[0] == ("measured", len(files) - 1, len(files))
    assert found == [measure(path) for path in files]
