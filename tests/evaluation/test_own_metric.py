"""The metric that the documentation shows, as a package of somebody else."""

import inspect
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from codec import audio
from codec.evaluation.metric import Metric

SOURCE, SETTINGS = map(textwrap.dedent, re.findall(r"\n\n((?: {4}.*\n|\n)+)", f"{inspect.getdoc(Metric)}\n"))


@pytest.fixture
def package(tmp_path) -> Path:
    """A folder with the package as pip installs it."""
    (tmp_path / "package" / "loudness-1.0.dist-info").mkdir(parents=True)
    (tmp_path / "package" / "loudness.py").write_text(SOURCE)
    entries = SETTINGS.replace('[project.entry-points."codec.metrics"]', "[codec.metrics]").replace('"', "")
    (tmp_path / "package" / "loudness-1.0.dist-info" / "entry_points.txt").write_text(entries)
    return tmp_path / "package"


def evaluate(package: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(package), *sys.path])
    command = [sys.executable, "-m", "codec", "evaluate", *arguments]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False)


def test_it_is_computed(package, tmp_path, reference):
    for name, gain in (("reference", 1.0), ("estimate", 0.5)):
        (tmp_path / name).mkdir()
        audio.write(tmp_path / name / "talk.wav", gain * reference, 24000)
    folders = str(tmp_path / "reference"), str(tmp_path / "estimate")
    done = evaluate(package, *folders, "--metrics", "loudness", "--jobs", "1", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["metrics"]["loudness"]["mean"] == pytest.approx(20 * np.log10(0.5), abs=0.01)


@pytest.mark.parametrize(
    ("wrong", "right", "what"),
    [
        ("import numpy", "import nowhere_numpy", r"cannot be loaded \(ModuleNotFoundError: .*\)"),
        (
            "class Loudness(Metric)",
            "class Loudness",
            "is not a metric, which is a class .*",
        ),
        ('name = "loudness"', 'title = "loudness"', "is not a metric, .* a name derived from .*Metric"),
        ('name = "loudness"', 'name = "mel"', "its name 'mel' is that of another metric"),
        ("columns = ", "rows = ", r"its columns are no tuple of codec\.evaluation\.metric\.Column"),
        ('Column("loudness"', 'Column("mel"', "its column 'mel' has the name of another"),
        ('Column("loudness"', 'Column("bitrate"', "its column 'bitrate' has the name of another"),
        ('Column("loudness"', 'Column("id"', "its column 'id' has the name of another"),
        ('"", "dB"', '"best", "dB"', "its column 'loudness' is better 'best', which must be higher, lower or empty"),
        ('"", "dB"', '"", "dB", weight="x"', "its column 'loudness' is weighted by 'x', which is no column of the .*"),
    ],
)
def test_what_is_wrong_with_it_is_one_sentence(package, wrong, right, what):
    (package / "loudness.py").write_text(SOURCE.replace(wrong, right))
    done = evaluate(package, "reference", "estimate")
    assert done.returncode == 2
    assert re.fullmatch(rf"codec: entry point loudness of codec\.metrics, loudness:Loudness: {what}\n", done.stderr)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("{}", "failed: ValueError: gave nothing, its columns are loudness"),
        ('{"loudness": 1.0, "more": 2.0}', "failed: ValueError: gave loudness, more, its columns are loudness"),
        ('{"loudness": 1e300}', "its value is not within ±1e+12"),
    ],
)
def test_what_it_may_not_give_is_named(package, tmp_path, reference, given, reason):
    (package / "loudness.py").write_text(SOURCE.replace(SOURCE[SOURCE.index("return {") + 7 :].rstrip(), given))
    for name in ("reference", "estimate"):
        (tmp_path / name).mkdir()
        audio.write(tmp_path / name / "talk.wav", reference, 24000)
    folders = str(tmp_path / "reference"), str(tmp_path / "estimate")
    done = evaluate(package, *folders, "--metrics", "loudness,mel", "--jobs", "0", "--json")
    assert done.returncode == 0, done.stderr
    (problem,) = json.loads(done.stdout)["problems"]
    assert problem["reason"] == reason


@pytest.mark.parametrize(
    ("error", "reason"),
    [("Undefined('no licence')", "no licence"), ("ImportError('no library')", "failed: ImportError: no library")],
)
def test_one_that_cannot_be_made_is_told_and_the_rest_is_scored(package, tmp_path, reference, error, reason):
    unmade = f"def __init__(self, settings):\n        raise {error}\n\n    def score"
    (package / "loudness.py").write_text(SOURCE.replace("def score", unmade))
    (tmp_path / "data").mkdir()
    audio.write(tmp_path / "data" / "talk.wav", reference, 24000)
    folders = [str(tmp_path / "data")] * 2
    done = evaluate(package, *folders, "--metrics", "loudness,mel", "--jobs", "0", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert list(summary["metrics"]) == ["mel"]
    assert {"metric": "loudness", "reason": reason, "command": "--metrics loudness"} in summary["not_computed"]


def test_a_file_of_weight_0_counts_for_nothing(package, tmp_path, reference):
    weighted = SOURCE.replace('"", "dB"),', '"", "dB", weight="w"), Column("w", "w", "", is_shown=False),')
    weighted = weighted.replace("return {", 'return {"w": float(abs(energies[0] - energies[1]) > 1), ')
    (package / "loudness.py").write_text(weighted)
    for name, gain in (("reference", 1.0), ("estimate", 0.5)):
        (tmp_path / name).mkdir()
        audio.write(tmp_path / name / "a.wav", reference, 24000)
        audio.write(tmp_path / name / "b.wav", gain * reference, 24000)
    folders = str(tmp_path / "reference"), str(tmp_path / "estimate")
    done = evaluate(package, *folders, "--metrics", "loudness", "--jobs", "0", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["metrics"]["loudness"]
    assert (found["num"], found["mean"]) == (1, pytest.approx(20 * np.log10(0.5), abs=0.01))
    done = evaluate(package, folders[0], folders[0], "--metrics", "loudness,mel", "--jobs", "0", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["metrics"]["loudness"]["num"] == 0
