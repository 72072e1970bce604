"""The protocol of the SimVQ table: both test sets, whole, averaged as published and as it should be."""

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest

from codec import audio
from codec.cli import exit_code
from codec.evaluation.pairs import Item
from codec.manifest import Utterance, write_manifest

SCRIPT = Path(__file__).parents[2] / "recipes" / "libritts" / "evaluate.py"


@pytest.fixture
def recipe(monkeypatch):
    specification = importlib.util.spec_from_file_location("recipe_evaluate", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    monkeypatch.setattr(module, "COUNTS", {"test-clean": 3, "test-other": 2})
    return module


@pytest.fixture
def manifests(tmp_path, speech) -> Path:
    """Speech, and in test-clean one file of 0.2 s, for which PESQ and STOI have no value."""
    wav = audio.read(speech)[0][0]
    for name, lengths in (("test-clean", (30000, 30000, 4800)), ("test-other", (30000, 30000))):
        utterances = []
        for number, length in enumerate(lengths):
            path = tmp_path / "wav" / name / f"{number}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            audio.write(path, wav[12000 * number + 12000 :][:length], 24000)
            utterances.append(Utterance(f"{name}_{number}", path, length, 24000, "1", name))
        write_manifest(tmp_path / "manifests" / f"{name}.tsv", utterances)
    return tmp_path / "manifests"


def arguments(manifests: Path, *more: str) -> list[str]:
    metrics = ["--metrics", "pesq_wb,stoi", "--jobs", "0", "--device", "cpu"]
    return ["--manifests", str(manifests), "--output", str(manifests.parent / "out"), *metrics, *more]


def run(recipe, arguments: list[str]) -> int:
    return exit_code(lambda: recipe.main(arguments))


def test_both_sets_and_both_ways_to_average(recipe, manifests, model_directory, capsys):
    assert run(recipe, arguments(manifests, "--model", str(model_directory))) == 0
    printed = capsys.readouterr().out
    rows = json.loads((manifests.parent / "out" / "table.json").read_text())
    assert [(row["set"], row["averaged"]) for row in rows] == [
        ("test-clean", "as published"),
        ("test-clean", "without failures"),
        ("test-other", "as published"),
        ("test-other", "without failures"),
    ]
    published, ours, *other = rows
    assert published["pesq_wb"] == pytest.approx((2 * ours["pesq_wb"] - 6) / 3)
    assert published["stoi"] == pytest.approx((2 * ours["stoi"] + 1e-5) / 3)
    assert other[0]["pesq_wb"] == other[1]["pesq_wb"]
    assert ours["utmos22s"] is None
    assert 0 < ours["utilisation"] < 1
    assert "| SimVQ, K = 4096 |" in printed
    assert "not computed:" in printed


def test_missing_file_is_refused(recipe, manifests, model_directory, capsys):
    recipe.COUNTS["test-other"] = 5120
    assert run(recipe, arguments(manifests, "--model", str(model_directory))) == 2
    complaint = capsys.readouterr().err
    assert "test-other.tsv: lists 2 utterances, test-other has 5120" in complaint
    assert not (manifests.parent / "out").exists()


def test_output_that_cannot_be_used_is_one_sentence(recipe, manifests, model_directory, capsys):
    (manifests.parent / "out").write_text("a file")
    assert run(recipe, arguments(manifests, "--model", str(model_directory))) == 2
    complaint = capsys.readouterr().err
    assert "out" in complaint
    assert complaint.count("\n") == 1


def test_names_of_metrics_may_have_spaces_between_them(recipe, manifests, model_directory):
    assert run(recipe, arguments(manifests, "--model", str(model_directory), "--metrics", "mel, stft,")) == 0


def test_subset_is_labelled(recipe, manifests, model_directory):
    recipe.COUNTS["test-other"] = 5120
    assert run(recipe, arguments(manifests, "--model", str(model_directory), "--allow-subset")) == 0
    rows = json.loads((manifests.parent / "out" / "table.json").read_text())
    assert rows[2]["set"] == "test-other (a subset, 2 utterances)"


def test_output_of_another_codec_is_scored(recipe, manifests):
    for path in (manifests.parent / "wav").rglob("*.wav"):
        target = manifests.parent / "theirs" / path.parent.name / f"{path.parent.name}_{path.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        audio.write(target, audio.read(path)[0], 24000)
    theirs = str(manifests.parent / "theirs")
    assert run(recipe, arguments(manifests, "--estimates", theirs)) == 0
    rows = json.loads((manifests.parent / "out" / "table.json").read_text())
    assert rows[1]["pesq_wb"] == pytest.approx(4.644, abs=1e-3)
    assert rows[1]["utilisation"] is None


@pytest.mark.parametrize(
    ("speech_samples", "error"), [(3900, -6), (200, -7)], ids=["shorter than a quarter of a second", "no utterance"]
)
def test_pesq_stands_in_with_its_error(recipe, tmp_path, speech, speech_samples, error):
    wav = audio.read(speech)[0][0][24000:][:speech_samples]
    silence = np.zeros(8000 if error == -7 else 0, np.float32)
    audio.write(tmp_path / "a.wav", np.concatenate([silence, wav, silence]), 16000)
    assert recipe.pesq_error(Item("a", tmp_path / "a.wav", tmp_path / "a.wav")) == error


def test_more_utterances_than_pesq_has_room_for_have_no_stand_in(recipe, tmp_path):
    bursts = np.concatenate([np.random.default_rng(0).normal(0, 0.1, 4000), np.zeros(4000)]).astype(np.float32)
    audio.write(tmp_path / "a.wav", np.tile(bursts, 45), 16000)
    assert math.isnan(recipe.pesq_error(Item("a", tmp_path / "a.wav", tmp_path / "a.wav")))


def test_output_is_cut_to_the_peak(recipe, manifests, model_directory, monkeypatch):
    assert recipe.PEAK == 0.99
    monkeypatch.setattr(recipe, "PEAK", 0.001)
    assert run(recipe, arguments(manifests, "--model", str(model_directory), "--metrics", "mel")) == 0
    peaks = [np.abs(audio.read(path)[0]).max() for path in (manifests.parent / "out").rglob("*.wav")]
    assert peaks == pytest.approx([0.001] * 5, abs=1 / 32768)
