"""Every command of recipes/simvq in sizes of seconds: it runs, and writes figure and table."""

import csv
import importlib
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import pytest
import torch

from codec.cli import exit_code
from codec.errors import AudioError

ROOT = Path(__file__).parents[2]
SMALL = ("--data", str(ROOT / "tests" / "data"), "--latent-steps", "5", "--steps", "3")
MODULES = ("report", "speech", "learning", "toy", "utilisation", "ablation", "rank", "cost")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run one of the commands with arguments, and return the rows of its table."""
    monkeypatch.syspath_prepend(str(ROOT / "recipes" / "simvq"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    threads = torch.get_num_threads()

    def call(name: str, *arguments: str) -> list[dict[str, str]]:
        output = ["--output", str(tmp_path), "--threads", "1"]
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *output, *arguments])
        module(name).main()
        figure = (tmp_path / f"{name}.png").read_bytes()
        assert figure.startswith(b"\x89PNG")
        return table(tmp_path / f"{name}.tsv")

    yield call
    torch.set_num_threads(threads)
    for name in MODULES:
        sys.modules.pop(name, None)


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def test_toy_moves_the_codes_of_simvq_and_leaves_many_of_vanilla_vq_behind(run, tmp_path, monkeypatch):
    monkeypatch.setattr(module("toy"), "FRAMES", 4)  # of the animation, each of which takes its time
    rows = {row["mode"]: row for row in run("toy", "--steps", "40")}
    # By more than 0.01; a code at the fixed point of the affine map moves less.
    assert float(rows["C frozen, W learned (SimVQ)"]["codes that moved"]) > 0.95
    assert float(rows["C learned (vanilla VQ)"]["codes that moved"]) < 0.7
    assert float(rows["C learned, W frozen"]["codes that moved"]) < 0.7
    assert len(rows) == 4
    assert (tmp_path / "toy.gif").read_bytes().startswith(b"GIF")


def test_utilisation_has_a_row_for_every_quantizer_and_goes_on_where_it_was(run, capsys):
    small = (*SMALL, "--sizes", "16")
    rows = run("utilisation", *small)
    assert [row["quantizer"] for row in rows] == list(module("report").LABELS.values())
    assert all(0 < float(row["utilisation %"]) <= 100 for row in rows)
    assert all(1 <= float(row["perplexity"]) <= 16 for row in rows)
    assert all(int(row["frames"]) <= 356 for row in rows)
    again = run("utilisation", *small, "32", "--quantizers", "simvq", "--resume")
    assert again[: len(rows)] == rows
    assert [(row["quantizer"], row["codes"]) for row in again[len(rows) :]] == [("SimVQ", "32")]


def test_the_same_seed_gives_the_same_row(run):
    arguments = (*SMALL, "--sizes", "16", "--quantizers", "simvq", "vq")
    first, second = run("utilisation", *arguments), run("utilisation", *arguments)
    for row in (*first, *second):
        del row["learned s"], row["measured s"]
    assert first == second


def test_ablation_has_a_row_for_every_codebook_size_and_seed(run):
    rows = run("ablation", *SMALL, "--sizes", "16", "32", "--seeds", "0", "1")
    assert len({(row["codebook"], row["codes"], row["seed"]) for row in rows}) == len(rows) == 12


def test_rank_of_w_is_within_its_size(run):
    rows = run("rank", *SMALL, "--sizes", "16", "32", "--dim", "8")
    assert [row["codes"] for row in rows] == ["16", "32"]
    assert all(1 <= float(row[f"rank at the {when}"]) <= 8 for row in rows for when in ("start", "end"))


@pytest.mark.parametrize("what", ["search", "ours", "naive"])
def test_cost_measures_what_it_names(run, what, capsys):
    options = module("report").arguments("").parse_args(["--threads", "1"])
    options.dim, options.vectors, options.runs, options.usage = 8, 32, 1, False
    module("cost").measure(what, 64, options)
    values = dict(line.split() for line in capsys.readouterr().out.splitlines())
    names = {"search": {"search", "matmul", "onednn"}}.get(what, {"memory", "step", "forward"})
    assert set(values) == names
    assert all(float(value) >= 0 for value in values.values())


def test_naive_simvq_of_the_comparison_computes_what_ours_does(run):
    torch.manual_seed(0)
    cost = module("cost")
    ours, naive = cost.SimVQ(64, 8), cost.NaiveSimVQ(64, 8)
    naive.load_state_dict(ours.state_dict())
    latent = torch.randn(1, 8, 50)
    for expected, found in zip(cost.call(naive, latent), cost.call(ours, latent), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.slow
def test_cost_has_a_row_for_every_implementation(run):
    rows = run("cost", "--sizes", "64", "--vectors", "32", "--dim", "8", "--runs", "1")
    assert [row["implementation"] for row in rows] == ["this project", "naive", "vector-quantize-pytorch"]


def test_folder_without_speech_is_named(run, tmp_path):
    with pytest.raises(AudioError, match=r"has no sound files \(\.aif"):
        run("utilisation", "--data", str(tmp_path))


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("toy", ["--steps", "0"], "--steps: must be at least 1, got 0"),
        ("cost", ["--runs", "0"], "--runs: must be at least 1, got 0"),
        ("utilisation", ["--all-frames", "nothing"], "--all-frames: invalid choice: 'nothing'"),
        ("utilisation", [*SMALL, "--sizes", "17", "--quantizers", "lfq"], "of lfq must be a power of two, got 17"),
        ("rank", ["--data", "nowhere"], "codec: nowhere: no such folder"),
        ("rank", [*SMALL, "--frame-rate", "76"], "codec: --frame-rate must be a multiple of 75 that divides 24000"),
    ],
)
def test_what_cannot_be_meant_is_refused(run, monkeypatch, capsys, name, arguments, words):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        sys.exit(exit_code(module(name).main))
    assert ended.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
