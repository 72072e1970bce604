"""The loop: it learns, resumes exactly, survives broken batches and kills, and several processes equal one."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("hydra", reason="training needs hydra-core")
pytest.importorskip("tensorboard", reason="training needs tensorboard")

import codec
from codec.config import compose
from codec.errors import CodecError, ConfigError, ModelError
from codec.training.state import load_state
from codec.training.trainer import STATE_NAME, Trainer


def fit(overrides: list[str], *more: str) -> Trainer:
    trainer = Trainer(compose([*overrides, *more]))
    trainer.fit()
    return trainer


def losses(run: Path) -> dict[int, float]:
    """Total loss by step, the last record of a step counting."""
    records = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return {record["step"]: record["loss/total"] for record in records if "loss/total" in record}


def assert_same_state(first: Path, second: Path, **tolerance: float) -> None:
    (parts, counters), (other_parts, other_counters) = load_state(first / STATE_NAME), load_state(second / STATE_NAME)
    assert counters == other_counters
    for part, tensors in parts.items():
        assert set(tensors) == set(other_parts[part])
        for name, tensor in tensors.items():
            torch.testing.assert_close(
                other_parts[part][name], tensor, **(tolerance or {"rtol": 0, "atol": 0}), msg=f"{part}/{name}"
            )


def test_training_lowers_the_mel_loss_and_writes_a_model(tiny_run: list[str], tmp_path: Path):
    steps = ["training.steps=60", "training.adversarial_start=1000", "training.learning_rate=3e-3"]
    trainer = fit(tiny_run, *steps, "training.warmup_steps=5", "training.ema_decay=0.9")
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    mel = [record["loss/mel"] for record in records]
    assert np.mean(mel[-10:]) < 0.7 * np.mean(mel[:10])
    assert records[-1]["codes/utilisation"] > 0
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    model = codec.load(tmp_path / "run" / "last")
    # The model directory holds the average in 16 bit.
    expected = trainer.averaged_codec().encoder.output.weight.detach()
    torch.testing.assert_close(model.encoder.output.weight.detach(), expected, rtol=1e-3, atol=1e-4)
    assert (tmp_path / "run" / "last" / "discriminators.safetensors").exists()


def test_a_resumed_run_is_bit_equal_to_an_uninterrupted_one(tiny_run: list[str], tmp_path: Path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit(tiny_run, f"training.run={whole}")
    for stop in (2, 5, 8, 12):  # before, within and after each change of phase
        trainer = Trainer(compose([*tiny_run, f"training.run={parts}"]))
        while trainer.step < stop:
            trainer.train_step(trainer.sampler.batch(trainer.step))
            trainer.step += 1
        trainer.save()
    assert_same_state(whole, parts)


def test_two_processes_equal_one_with_the_joint_batch(tiny_run: list[str], tmp_path: Path):
    fit(tiny_run, f"training.run={tmp_path / 'one'}")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "codec"]
    subprocess.run([*command, "train", *tiny_run, f"training.run={tmp_path / 'two'}"], check=True, timeout=300)
    # Sums in another order; twelve steps of Adam carry the rounding on.
    assert_same_state(tmp_path / "one", tmp_path / "two", rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("phase", ["training.quantizer_start=0", "training.adversarial_start=0"])
def test_a_step_with_a_broken_batch_changes_nothing_and_is_counted(tiny_run: list[str], phase: str):
    trainer = Trainer(compose([*tiny_run, phase]))
    wav = trainer.sampler.batch(0)
    trainer.train_step(wav)
    before = {name: value.clone() for name, value in trainer.codec.state_dict().items()}
    trainer.train_step(torch.full_like(wav, float("nan")))
    assert int(trainer.skipped_steps) == 1
    for name, value in trainer.codec.state_dict().items():
        assert torch.equal(value, before[name]), name
    trainer.train_step(wav)
    assert any(not torch.equal(value, before[name]) for name, value in trainer.codec.state_dict().items())


def test_sigterm_saves_the_state(tiny_run: list[str], tmp_path: Path):
    settings = [*tiny_run, "training.steps=100000", "training.save_every=100000"]
    with subprocess.Popen(
        [sys.executable, "-m", "codec", "train", *settings], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("step 3/"):
                process.send_signal(signal.SIGTERM)
                break
        process.stderr.read()
        assert process.wait(120) == 0
    assert load_state(tmp_path / "run" / STATE_NAME)[1]["step"] >= 3


def test_kill_9_loses_at_most_the_last_interval(tiny_run: list[str], tmp_path: Path):
    command = [sys.executable, "-m", "codec", "train", *tiny_run]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("step 10/"):
                os.kill(process.pid, signal.SIGKILL)
                break
        process.stderr.read()
    assert load_state(tmp_path / "run" / STATE_NAME)[1]["step"] in (8, 12)
    subprocess.run(command, check=True, timeout=300)
    fit(tiny_run, f"training.run={tmp_path / 'uninterrupted'}")
    assert losses(tmp_path / "run") == losses(tmp_path / "uninterrupted")


def test_a_cut_state_is_refused_by_name(tiny_run: list[str], tmp_path: Path):
    fit(tiny_run, "training.steps=1")
    path = tmp_path / "run" / STATE_NAME
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"state\.safetensors: is not a whole training state"):
        Trainer(compose(tiny_run))


def test_a_run_goes_on_elsewhere_from_its_portable_state(
    tiny_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("codec.training.state.PORTABLE_BYTES", 200_000)
    first = fit(tiny_run, "training.portable=true")
    files = sorted((tmp_path / "run" / "portable").iterdir())
    assert len(files) > 2
    assert all(file.stat().st_size <= 200_000 for file in files)
    shutil.copytree(tmp_path / "run" / "portable", tmp_path / "elsewhere" / "portable")
    settings = [*tiny_run, f"training.run={tmp_path / 'elsewhere'}", "training.steps=14"]
    second = Trainer(compose(settings))
    assert second.step == 12
    for module, other in (
        (first.codec, second.codec),
        (first.adversary.discriminators, second.adversary.discriminators),
    ):
        for name, weight in module.state_dict().items():
            torch.testing.assert_close(other.state_dict()[name], weight, rtol=1e-3, atol=1e-5, msg=name)
    for name, weight in first.ema.shadow.items():
        torch.testing.assert_close(second.ema.shadow[name], weight, rtol=1e-3, atol=1e-5, msg=name)
    second.fit()
    assert second.step == 14
    (tmp_path / "elsewhere" / "state.safetensors").unlink()
    (tmp_path / "elsewhere" / "portable" / files[1].name).unlink()
    with pytest.raises(ModelError, match="not a whole training state"):
        Trainer(compose(settings))


def test_training_goes_on_from_a_model_directory_with_its_discriminators(tiny_run: list[str], tmp_path: Path):
    first = fit(tiny_run)
    second = Trainer(compose([*tiny_run, f"training.run={tmp_path / 'tuned'}", f"training.init={tmp_path}/run/last"]))
    for name, weight in first.averaged_codec().state_dict().items():
        torch.testing.assert_close(second.codec.state_dict()[name], weight, rtol=1e-3, atol=1e-4)
    for name, weight in first.adversary.discriminators.state_dict().items():
        torch.testing.assert_close(second.adversary.discriminators.state_dict()[name], weight, rtol=1e-3, atol=1e-4)
    with pytest.raises(ConfigError, match="another configuration"):
        Trainer(compose([*tiny_run, f"training.init={tmp_path}/run/last", "model.decoder.width=12"]))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.stepz=1", "training.stepz"),
        ("training.steps=many", "training.steps"),
        ("training.steps=0", "at least 1"),
        ("training.precision=fp16", "bf16 or float32"),
        ("model.encoder.colour=1", "colour"),
        ("model=nothing", "nothing"),
        ("+colour=1", "colour"),
        ("data.window_seconds=0", "positive"),
    ],
)
def test_mistakes_in_settings_are_named(override: str, message: str):
    with pytest.raises(ConfigError, match=message) as caught:
        compose([override])
    assert "\n" not in str(caught.value)


def test_a_folder_without_audio_is_refused(tiny_run: list[str], tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CodecError, match="no sound files"):
        Trainer(compose([*tiny_run, f"data.train={tmp_path / 'empty'}"]))
