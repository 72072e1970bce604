"""Many runs from one command: each as if it had been started alone, all checked before the first."""

import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import torch

from codec.cli import run
from codec.config import compose, sweep
from codec.errors import ConfigError, CorpusError
from codec.model.catalogue import describe
from codec.model.codec import CodecConfig
from codec.training.data import Batch
from codec.training.run_files import STATE_NAME
from codec.training.settings import Config
from codec.training.state import load_state
from codec.training.trainer import Trainer

started: list[Config] = []


def start(config: Config) -> None:
    started.append(config)
    if config.training.seed == 1:
        raise CorpusError("seed 1 is not to be had")


@pytest.fixture(autouse=True)
def none_started():
    started.clear()


def test_each_combination_is_a_run_in_a_folder_of_its_name(tiny_run: list[str], tmp_path: Path):
    sweep([*tiny_run, "training.steps=5,6", "model.decoder.width=24,48", "training.seed=2"], start)
    found = sorted((config.training.steps, config.model.decoder.width) for config in started)
    assert found == [(5, 24), (5, 48), (6, 24), (6, 48)]
    for config in started:
        steps, width = config.training.steps, config.model.decoder.width
        name = f"model.decoder.width={width},training.steps={steps}"
        assert Path(config.training.run) == tmp_path / "run" / name
        alone = [f"training.steps={steps}", f"model.decoder.width={width}", "training.seed=2"]
        assert config == compose([*tiny_run, *alone, f"training.run='{config.training.run}'"])


def test_a_plus_is_left_out(tiny_run: list[str]):
    sweep([*tiny_run, "+training.steps=5,6"], start)
    assert [config.training.steps for config in started] == [5, 6]


def test_the_folder_of_a_run_is_one_folder(tiny_run: list[str], tmp_path: Path):
    sweep([*tiny_run, "model/quantizer=fsq,lfq"], start)
    folders = [Path(config.training.run) for config in started]
    assert folders == [tmp_path / "run" / f"model.quantizer={kind}" for kind in ("fsq", "lfq")]


def test_all_variants_of_a_group_can_be_swept_over(training_folder: Path, tmp_path: Path):
    sweep([f"data.train={training_folder}", f"training.run={tmp_path}", "model/quantizer=glob([f*,l*])"], start)
    assert [config.model.quantizer.kind for config in started] == ["fc", "fsq", "lc", "lfq"]


def test_a_path_of_unusual_letters_is_the_same_in_every_run(training_folder: Path, tmp_path: Path):
    speech, folder = tmp_path / "josé (1)", tmp_path / "runs=é"
    speech.symlink_to(training_folder)
    sweep([f"data.train={speech}", f"training.run={folder}", "training.steps=5,6"], start)
    assert [config.data.train for config in started] == [str(speech)] * 2
    assert [Path(config.training.run) for config in started] == [folder / f"training.steps={n}" for n in (5, 6)]


def test_several_texts_of_unusual_letters_are_not_taken_for_one():
    with pytest.raises(ConfigError, match=r"'data.train=josé,b': cannot be read; a text .* needs quotes of its own"):
        sweep(["data.train=josé,b"], start)


def test_a_sweep_over_nothing_is_refused(training_folder: Path):
    with pytest.raises(ConfigError, match=r"'model/quantizer=glob\(zzz\*\)': there is no value to sweep over"):
        sweep([f"data.train={training_folder}", "model/quantizer=glob(zzz*)"], start)


def test_a_sweep_without_an_end_is_refused(training_folder: Path):
    with pytest.raises(ConfigError, match="Can only enumerate CHOICE and RANGE sweeps"):
        sweep([f"data.train={training_folder}", "training.learning_rate=interval(0.1,1)"], start)


def test_the_folder_of_all_runs_is_told_by_training_run(training_folder: Path):
    with pytest.raises(ConfigError, match=r"^hydra\.sweep is not yours to set: training\.run names the folder of all"):
        sweep([f"data.train={training_folder}", "training.seed=1,2", "hydra.sweep.dir=elsewhere"], start)


def test_the_folder_of_all_runs_may_be_below_the_home_folder(
    tiny_settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))  # Windows
    runs: list[str] = []
    sweep([*tiny_settings, "training.run=~/all", "training.seed=1,2"], lambda config: runs.append(config.training.run))
    assert runs == [str(tmp_path / "all" / f"training.seed={seed}") for seed in (1, 2)]


def test_the_folder_of_all_runs_is_one(training_folder: Path):
    with pytest.raises(ConfigError, match=r"^training\.run must name one folder, below which each run gets its own$"):
        sweep([f"data.train={training_folder}", "training.run=a,b"], start)


def test_a_mistake_in_any_run_is_found_before_the_first(tiny_run: list[str]):
    with pytest.raises(ConfigError, match=r"training\.steps must be at least 1, got 0"):
        sweep([*tiny_run, "training.steps=5,0"], start)
    assert started == []


def test_runs_that_would_share_a_cache_of_other_speech_are_refused(training_folder: Path, tmp_path: Path):
    settings = [f"data.train={training_folder}", f"training.run={tmp_path}"]
    others = [
        *("model=stream,stream-16k", f"data.train={training_folder},{training_folder / 'first'}"),
        f"data.validation={training_folder},{training_folder / 'first'}",
    ]
    for swept in others:
        with pytest.raises(
            ConfigError, match=r"^data\.cache: cache would be that of runs of different speech or sample"
        ):
            sweep([*settings, swept], start)
    assert started == []
    sweep([*settings, others[0], "data.cache='cache/${model.sample_rate}'"], start)
    sweep([*settings, f"data.validation='',{training_folder}"], start)
    assert len(started) == 4


def test_processes_of_torchrun_cannot_share_a_sweep(tiny_run: list[str], monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(["train", "--multirun", *tiny_run, "training.seed=1,2"]) == 2
    assert capsys.readouterr().err.startswith(
        "codec: --multirun starts one run after another by itself; give torchrun "
    )


def test_the_mistakes_of_all_runs_are_named_once(training_folder: Path):
    data = f"data.train={training_folder}"
    with pytest.raises(ConfigError) as caught:
        sweep([data, "model.quantizer.codebook_dim=8,9", "training.steps=0,5", "data.batch_size=-1"], start)
    assert [sentence.split(" must be ")[0] for sentence in caught.value.args] == [
        "data.batch_size",
        "training.steps",
        "model.encoder.latent_dim, model.quantizer.codebook_dim and model.decoder.latent_dim",
    ]
    with pytest.raises(ConfigError, match=r"simvq-9k.*simvq-7k"):
        sweep([data, "model=simvq-4k,simvq-9k,simvq-7k"], start)
    assert started == []


def test_every_run_takes_over_the_model_it_starts_from(training_folder: Path, tmp_path: Path):
    tuned = [f"data.train={training_folder}", f"training.run={tmp_path}", "training.init=stream"]
    sweep([*tuned, "training.seed=2,3"], start)
    assert [config.training.seed for config in started] == [2, 3]
    for config in started:
        assert config.model == CodecConfig.from_dict(describe("stream").config)


@pytest.mark.skipif(find_spec("submitit") is not None, reason="it is installed")
def test_a_launcher_that_is_not_installed_is_named(training_folder: Path):
    with pytest.raises(ConfigError, match=r"^hydra/launcher: needs .* pip install 'codec\[slurm\]'$"):
        sweep([f"data.train={training_folder}", "hydra/launcher=slurm", "training.seed=2,3"], start)


def test_a_run_that_fails_does_not_stop_the_others(tiny_run: list[str]):
    with pytest.raises(CorpusError, match="seed 1 is not to be had"):
        sweep([*tiny_run, "training.seed=1,2,3"], start)
    assert [config.training.seed for config in started] == [1, 2, 3]


def stopped_command(arguments: list[str]) -> None:
    """What a process of its own does, which gets SIGTERM in its second step."""
    step = Trainer.train_step

    def interrupted(trainer: Trainer, batch: Batch) -> dict[str, torch.Tensor]:
        if trainer.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer, batch)

    Trainer.train_step = interrupted
    sys.exit(run(arguments))


def test_runs_go_on_where_they_were_and_stop_together(
    tiny_run: list[str], tmp_path: Path, processes: ForkServerContext
):
    def reached() -> dict[str, int]:
        folders = (tmp_path / "run").glob("training.seed=*")
        return {path.name[-1]: load_state(path / STATE_NAME)[1]["step"] for path in folders}

    arguments = ["train", "--multirun", *tiny_run, "training.steps=4", "training.seed=0,1"]
    process = processes.Process(target=stopped_command, args=(arguments,))
    process.start()
    process.join(120)
    assert (process.exitcode, reached()) == (130, {"0": 2})
    assert (run(arguments), reached()) == (0, {"0": 4, "1": 4})


def test_a_launcher_may_start_each_run_as_several_processes(tiny_run: list[str], tmp_path: Path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs hydra-submitit-launcher")
    code = f"""
from codec.cli import run
launcher = ["hydra/launcher=submitit_local", "hydra.launcher.tasks_per_node=2"]
raise SystemExit(run(["train", "--multirun", *launcher, *{tiny_run!r}, "training.seed=0,1"]))
"""
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)
    for seed in (0, 1):
        pair = load_state(tmp_path / "run" / f"training.seed={seed}" / STATE_NAME)[0]
        trainer = Trainer(
            compose([*tiny_run, f"training.run={tmp_path / 'alone' / str(seed)}", f"training.seed={seed}"])
        )
        trainer.fit()
        # Sums in another order; twelve steps of Adam carry the rounding on.
        torch.testing.assert_close(pair["codec"], dict(trainer.codec.state_dict()), rtol=1e-3, atol=2e-4)
