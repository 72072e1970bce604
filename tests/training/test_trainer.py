"""The loop: it learns, resumes exactly, survives kills; several processes equal one; no step waits for the device."""

import contextlib
import json
import math
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import codec
from codec.cli import run as run_command
from codec.config import compose, restore
from codec.errors import AudioError, CodecError, ConfigError, ModelError
from codec.training.curves import CURVES
from codec.training.data import Batch
from codec.training.interruption import IMPATIENCE, stop_requests
from codec.training.run_files import CONFIG_NAME, PREVIOUS_NAME, STATE_NAME
from codec.training.settings import TrainingConfig
from codec.training.state import flatten_optimizer, load_state, save_state
from codec.training.trainer import Trainer


def standardized(tiny_run: list[str]) -> list[str]:
    """The same run of a small published network, whose encoder is standardized first."""
    model = [
        "model=simvq-4k",
        "model.encoder.num_filters=4",
        "model.encoder.latent_dim=16",
        "model.quantizer.codebook_dim=16",
        "model.quantizer.codebook_size=64",
        "model.decoder.latent_dim=16",
        "model.decoder.width=32",
        "model.decoder.inner_width=48",
        "model.decoder.num_blocks=2",
        "training.standardize_encoder=true",
    ]
    return [*(setting for setting in tiny_run if not setting.startswith("model.")), *model]


def fit(overrides: list[str], *more: str) -> Trainer:
    trainer = Trainer(compose([*overrides, *more]))
    trainer.fit()
    return trainer


def train(overrides: list[str], environment: dict[str, str], weights: Path | None = None) -> None:
    """What a process of its own does; `weights` is where it leaves those it ends with."""
    os.environ.update(environment)
    trainer = fit(overrides)
    if weights is not None:
        save_file(trainer.codec.state_dict() | trainer.adversary.discriminators.state_dict(), weights)


def command(overrides: list[str], environment: dict[str, str], messages: Path) -> None:
    """The command in a process of its own, with what it says."""
    os.environ.update(environment)
    with open(messages, "w") as stream, contextlib.redirect_stderr(stream), contextlib.redirect_stdout(stream):
        sys.exit(run_command(["train", *overrides]))


def stopped_command(overrides: list[str], number: int, messages: Path) -> None:
    """The same, which gets a signal in its second step."""
    step = Trainer.train_step

    def interrupted(trainer: Trainer, batch: Batch) -> dict[str, torch.Tensor]:
        if trainer.step == 1:
            os.kill(os.getpid(), number)
        return step(trainer, batch)

    Trainer.train_step = interrupted
    command(overrides, {}, messages)


def addresses() -> list[dict[str, str]]:
    """What `torchrun` tells two processes."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": "2"}
    return [address | {"RANK": str(rank)} for rank in range(2)]


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def losses(run: Path) -> dict[int, float]:
    """Total loss by step, the last record of a step counting."""
    return {record["step"]: record["loss/total"] for record in records(run) if "loss/total" in record}


def started_pair(
    processes: ForkServerContext, target: Callable[..., None], settings: list[str], outputs: list[Path]
) -> list[BaseProcess]:
    """Two processes that train together, each with an output of its own."""
    pair = [
        processes.Process(target=target, args=(settings, address, output))
        for address, output in zip(addresses(), outputs, strict=True)
    ]
    for process in pair:
        process.start()
    return pair


def wait_for_step(run: Path, step: int, process: BaseProcess) -> None:
    """Return as soon as the log of a run has reached a step; a process that does not get there is ended."""
    deadline = time.monotonic() + 200
    while process.is_alive() and time.monotonic() < deadline:
        if (run / "log.jsonl").exists() and f'{{"step": {step}, "batch' in (run / "log.jsonl").read_text():
            return
        time.sleep(0.01)
    process.kill()
    raise AssertionError(f"the process did not reach step {step}")


def assert_same_state(first: Path, second: Path) -> None:
    (parts, counters), (other_parts, other_counters) = load_state(first / STATE_NAME), load_state(second / STATE_NAME)
    assert counters == other_counters
    for part, tensors in parts.items():
        assert set(tensors) == set(other_parts[part])
        for name, tensor in tensors.items():
            assert torch.equal(other_parts[part][name], tensor), f"{part}/{name}"


def test_losses_without_a_weight_are_not_computed(tiny_run: list[str]):
    none = [f"training.{name}_weight=0" for name in ("usage", "pitch", "loudness", "convergence", "disturbance")]
    trainer = Trainer(compose([*tiny_run, *none, "training.quantizer_start=-1"]))
    scalars = trainer.train_step(trainer.sampler.batch(0))
    assert {name for name in scalars if name.startswith("loss/")} == {"loss/quantizer", "loss/mel", "loss/total"}


def test_every_loss_that_is_trained_has_a_curve_named_after_its_weight(tiny_run: list[str]):
    settings = ["training.intelligibility_weight=1", "data.window_seconds=0.5", "training.quantizer_start=-1"]
    trainer = Trainer(compose([*tiny_run, *settings, "training.adversarial_start=0"]))
    names = {name for name in trainer.train_step(trainer.sampler.batch(0)) if name.startswith("loss/")}
    assert names - {"loss/total"} == {name for name in CURVES if name.startswith("loss/")}
    weights = {
        f"loss/{field.name.removesuffix('_weight')}" for field in fields(TrainingConfig) if "_weight" in field.name
    }
    assert weights - names == {"loss/commitment"}  # of the quantizer's loss


def test_training_lowers_the_mel_loss_and_writes_a_model(tiny_run: list[str], training_folder: Path, tmp_path: Path):
    steps = ["training.steps=60", "training.adversarial_start=1000", "training.learning_rate=3e-3"]
    validation = [f"data.validation={training_folder}", "training.validate_every=30", "training.validation_clips=2"]
    trainer = fit(tiny_run, *steps, *validation, "training.warmup_steps=5", "training.ema_decay=0.9")
    log = records(tmp_path / "run")
    mel = [record["loss/mel"] for record in log if "loss/mel" in record]
    assert np.mean(mel[-10:]) < 0.7 * np.mean(mel[:10])
    first, second = (record["validation/mel"] for record in log if "validation/mel" in record)
    assert second < first
    assert [record["step"] for record in log if "codes/effective_rank" in record] == [30, 60]
    assert log[-3]["codes/utilisation"] > 0
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    assert codec.load(tmp_path / "run" / "best").codebook_size == 64
    model = codec.load(tmp_path / "run" / "last")
    # The model directory holds the average as it was judged, in 16 bit.
    judged = trainer.averaged_codec().state_dict()
    assert all(torch.equal(tensor, judged[name]) for name, tensor in model.state_dict().items())
    weight = trainer.ema.shadow["encoder.output.weight"]
    torch.testing.assert_close(model.encoder.output.weight.detach(), weight, rtol=1e-3, atol=1e-4)
    trained = [record for record in log if "loss/mel" in record]
    assert ["codes/perplexity" in record for record in trained] == [record["step"] > 3 for record in trained]


def test_logs_hold_means_over_their_steps(tiny_run: list[str], tmp_path: Path):
    for name, every in (("each", 1), ("means", 3)):
        fit(tiny_run, f"training.run={tmp_path / name}", f"training.log_every={every}", "training.steps=6")
    each, means = losses(tmp_path / "each"), losses(tmp_path / "means")
    assert means == pytest.approx(
        {3: (each[1] + each[2] + each[3]) / 3, 6: (each[4] + each[5] + each[6]) / 3}, rel=1e-3
    )


def test_a_run_that_cannot_start_leaves_nothing(tiny_run: list[str], tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.wav").write_bytes(b"no sound")
    with pytest.raises(AudioError, match=r"a\.wav"):
        Trainer(compose([*tiny_run, f"data.train={tmp_path / 'data'}", f"data.cache={tmp_path / 'cache'}"]))
    assert not (tmp_path / "run").exists()


def test_a_run_says_what_trains_it(tiny_run: list[str], tmp_path: Path):
    fit(tiny_run, "training.steps=1")
    (started,) = (record["text"] for record in records(tmp_path / "run") if record.get("event") == "started")
    assert started.startswith(f"codec {codec.__version__}, torch {torch.__version__}, Python ")
    assert started.endswith(", processes: 1, device: cpu, threads: 1")


def test_held_out_speech_is_first_judged_when_codes_mean_something(
    tiny_run: list[str], training_folder: Path, tmp_path: Path
):
    validation = [f"data.validation={training_folder}", "training.validate_every=1", "training.validation_clips=1"]
    fit(tiny_run, *validation, "training.quantizer_start=2", "training.steps=4")
    assert [r["step"] for r in records(tmp_path / "run") if "validation/mel" in r] == [3, 4]


def test_the_last_step_is_validated_once(tiny_run: list[str], training_folder: Path, tmp_path: Path):
    validation = [f"data.validation={training_folder}", "training.validate_every=2", "training.validation_clips=1"]
    settings = [*validation, "training.quantizer_start=-1", "training.steps=3"]
    fit(tiny_run, *settings)
    trainer = fit(tiny_run, *settings)  # goes on with a run that is over
    scored = [record for record in records(tmp_path / "run") if "validation/mel" in record]
    assert [record["step"] for record in scored] == [2, 3]
    best = max(record.get("validation/stoi", -record["validation/mel"]) for record in scored)
    assert trainer.best_score == pytest.approx(best, rel=1e-3)  # the log is rounded
    state = tmp_path / "run" / STATE_NAME
    parts, counters = load_state(state)
    del counters["best"]
    save_state(state, parts, counters | {"best_score": 2.1})  # as up to 0.16, where it was a PESQ
    assert Trainer(compose([*tiny_run, *settings])).best_score == -math.inf


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_run_that_was_asked_to_stop_says_so(
    tiny_run: list[str], tmp_path: Path, processes: ForkServerContext, name: str
):
    """By an exit code too: what follows it in a script must not start."""
    said = tmp_path / "said.txt"
    process = processes.Process(target=stopped_command, args=(tiny_run, signal.Signals[name], said))
    process.start()
    process.join(120)
    assert process.exitcode == 130
    assert said.read_text().splitlines()[-1] == f"codec: {tmp_path / 'run'}: stopped at step 2 of 12 and saved"
    assert str(tmp_path / "run" / "last") not in said.read_text()  # which a run that is over prints
    assert load_state(tmp_path / "run" / STATE_NAME)[1]["step"] == 2


def test_discriminators_of_the_start_that_are_damaged_are_named(tiny_run: list[str], tmp_path: Path):
    fit(tiny_run, "training.steps=8")
    path = tmp_path / "run" / "last" / "discriminators.json"
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"discriminators.json: does not describe discriminators .*; remove it"):
        compose([*(setting for setting in tiny_run if "adversary" not in setting), f"training.init={path.parent}"])


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


def test_the_first_batch_standardizes_the_encoder(tiny_run: list[str], tmp_path: Path):
    settings = [*standardized(tiny_run), "training.learning_rate=1e-9"]
    trainer = Trainer(compose(settings))
    batch = trainer.sampler.batch(0)
    for step in range(2):
        trainer.train_step(batch)
        trainer.step += 1
        deviation, mean = torch.std_mean(trainer.codec.encoder(batch.wav), dim=(0, 2), correction=0)
        torch.testing.assert_close(deviation, torch.ones_like(deviation), rtol=1e-3, atol=0, msg=f"step {step}")
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-3)
    trainer.save_model("last")
    start = [f"training.run={tmp_path / 'tuned'}", f"training.init={trainer.run / 'last'}"]
    second = Trainer(compose([*settings, *start]))
    before = second.codec.encoder.first.bias.clone()
    second.train_step(Batch(3 * batch.wav, batch.bandwidth))
    torch.testing.assert_close(second.codec.encoder.first.bias, before)


@pytest.mark.parametrize("kind", ["stream", "standardized", "lfq"])
def test_two_processes_equal_one_with_the_joint_batch(
    kind: str, tiny_run: list[str], tmp_path: Path, processes: ForkServerContext
):
    if kind == "lfq":  # whose loss asks how even the codes of all processes are
        pytest.importorskip("vector_quantize_pytorch")
        tiny_run = [*tiny_run, "model/quantizer=lfq", "training.quantizer_start=-1", "training.steps=2"]
    tiny_run = standardized(tiny_run) if kind == "standardized" else tiny_run
    tiny_run = [*tiny_run, "training.quantizer_rate=1"]  # one step length, so that one tolerance fits all parameters
    settings = [*tiny_run, f"training.run={tmp_path / 'two'}"]
    places = [tmp_path / f"{rank}.safetensors" for rank in range(2)]
    pair = started_pair(processes, train, settings, places)
    alone = fit(tiny_run, f"training.run={tmp_path / 'one'}")
    for process in pair:
        process.join(300)
        assert process.exitcode == 0
    ours, theirs = map(load_file, places)
    assert all(torch.equal(theirs[name], tensor) for name, tensor in ours.items())
    # Sums in another order; twelve steps of Adam carry the rounding on.
    joint = alone.codec.state_dict() | alone.adversary.discriminators.state_dict()
    for name, tensor in joint.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=2e-4, msg=name)
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "two"), rel=1e-4)


@pytest.mark.parametrize(
    ("signals", "codes", "sentence"),
    [
        ((signal.SIGTERM, signal.SIGTERM), [130, 130], "run: stopped at step "),
        ((None, signal.SIGKILL), [2, -9], "codec: another process of this run has died ("),
    ],
    ids=["stopped", "killed"],
)
def test_of_two_processes_that_end_early_one_says_so(
    signals: tuple, codes: list[int], sentence: str, tiny_run: list[str], tmp_path: Path, processes: ForkServerContext
):
    settings = [*tiny_run, "training.steps=100000", "training.save_every=100000"]
    said = [tmp_path / f"{rank}.txt" for rank in range(2)]
    pair = started_pair(processes, command, settings, said)
    wait_for_step(tmp_path / "run", 3, pair[0])
    for process, number in zip(pair, signals, strict=True):
        if number is not None:
            os.kill(process.pid, number)
    for process in pair:
        process.join(120)
    assert [process.exitcode for process in pair] == codes
    first, second = (messages.read_text() for messages in said)
    assert sentence in first.splitlines()[-1]
    assert "Traceback" not in first
    assert "codec: " not in second


def test_one_request_to_stop_may_come_twice():
    """To all processes of a job, and once more from the one that started them."""
    with stop_requests() as stop:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGINT, signal.SIGUSR1):
            os.kill(os.getpid(), number)
        assert stop.is_made
    with pytest.raises(KeyboardInterrupt), stop_requests() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        stop.made_at -= 2 * IMPATIENCE  # by now it is not the same one any more
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)


def test_what_a_kill_has_left_half_written_is_removed(tiny_run: list[str]):
    run = fit(tiny_run, "training.steps=2").run
    left = [folder / ".0123456789abcdef.part" for folder in (run, run / "last")]
    for path in left:
        path.write_bytes(bytes(100))
    assert Trainer(compose([*tiny_run, "training.steps=3"])).step == 2
    assert not any(path.exists() for path in left)


def test_a_portable_state_that_cannot_be_written_is_refused_before_training(tiny_run: list[str], tmp_path: Path):
    settings = ["training.portable=true", "model/quantizer=simvq", "model.quantizer.codebook_size=1100000"]
    for _ in range(2):
        with pytest.raises(ModelError, match=r"codec/quantizer\.codebook: \d+ bytes do not fit into a portable file"):
            Trainer(compose([*tiny_run, *settings]))
    assert not (tmp_path / "run").exists()


def test_kill_9_loses_at_most_the_last_interval(tiny_run: list[str], tmp_path: Path, processes: ForkServerContext):
    run = tmp_path / "run"
    for step in (3, 10):
        process = processes.Process(target=train, args=(tiny_run, {}))
        process.start()
        wait_for_step(run, step, process)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert load_state(run / STATE_NAME)[1]["step"] in (step // 4 * 4, step // 4 * 4 + 4)
    fit(tiny_run)
    fit(tiny_run, f"training.run={tmp_path / 'uninterrupted'}")
    assert losses(run) == losses(tmp_path / "uninterrupted")
    assert_same_state(run, tmp_path / "uninterrupted")


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
    assert second.step == second.optimizer_start == 12
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
    assert Trainer(compose(settings)).optimizer_start == 12  # the warm-up is not begun anew
    for name in (STATE_NAME, PREVIOUS_NAME, f"portable/{files[1].name}"):
        (tmp_path / "elsewhere" / name).unlink(missing_ok=True)
    with pytest.raises(ModelError, match="not a whole training state"):
        Trainer(compose(settings))


def test_a_portable_state_can_hold_the_optimizers(tiny_run: list[str], tmp_path: Path):
    first = fit(tiny_run, "training.portable=true", "training.portable_optimizers=true")
    shutil.copytree(tmp_path / "run" / "portable", tmp_path / "elsewhere" / "portable")
    second = Trainer(compose([*tiny_run, f"training.run={tmp_path / 'elsewhere'}"]))
    assert second.optimizer_start == 0
    theirs = flatten_optimizer(second.optimizer)
    for name, tensor in flatten_optimizer(first.optimizer).items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-2, atol=0, msg=name)  # bfloat16 keeps 8 bits


@pytest.mark.parametrize(("size", "reason"), [("abc", "'abc'"), ("2", "environment variable RANK expected")])
def test_an_environment_that_does_not_tell_processes_of_each_other_is_refused_in_a_sentence(
    size: str, reason: str, tiny_run: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError, match=rf"^WORLD_SIZE and the like in the environment, .*{reason}.*torchrun"):
        Trainer(compose(tiny_run))


def test_a_state_of_other_settings_is_refused_by_name(tiny_run: list[str], tmp_path: Path):
    fit(tiny_run, "training.steps=1")
    Trainer(compose([*tiny_run, "training.steps=99", "training.learning_rate=1e-4", "data.batch_size=2"]))
    with pytest.raises(ConfigError, match=r"model\.decoder\.width was 24 and is 48; .*\.period\.periods was \[2, 3\]"):
        Trainer(compose([*tiny_run, "model.decoder.width=48", "adversary.discriminators.period.periods=[5,7]"]))


def test_a_state_of_foreign_tensors_or_without_counters_is_refused_in_a_sentence(tiny_run: list[str], tmp_path: Path):
    fit(tiny_run, "training.steps=1")
    path = tmp_path / "run" / STATE_NAME
    parts, counters = load_state(path)
    name, tensor = next(iter(parts["ema"].items()))
    no_steps = {key: value for key, value in counters.items() if key != "step"}
    moments = parts["optimizer"]
    for changed, values, foreign in (
        (parts | {"ema": parts["ema"] | {name: tensor[..., :1]}}, counters, f"has another shape for ema/{name}"),
        (parts | {"codec": parts["codec"] | {"another": torch.zeros(3)}}, counters, "has unknown codec/another"),
        ({"codec": parts["codec"], "ema": parts["ema"]}, counters, "lacks discriminators/groups.*"),
        (parts | {"optimizer": moments | {"abc": torch.zeros(3)}}, counters, "has unknown optimizer/abc"),
        (
            parts | {"optimizer": moments | {"0.exp_avg": moments["0.exp_avg"][..., :1]}},
            counters,
            r"has another shape for optimizer/0\.exp_avg",
        ),
        (parts, no_steps, "lacks step"),
        (parts, counters | {"ema_updates": "many"}, "lacks ema_updates"),
    ):
        save_state(path, changed, values)
        sentence = rf"run/{STATE_NAME}: is not a state of this run \(delete it, or choose .*run\): {foreign}$"
        with pytest.raises(ModelError, match=sentence):
            Trainer(compose(tiny_run))


def test_changed_settings_are_noted(tiny_run: list[str], tmp_path: Path):
    fit(tiny_run, "training.steps=1")
    fit(tiny_run, "training.steps=2")
    events = [(record["event"], record["text"]) for record in records(tmp_path / "run") if "event" in record]
    assert ("resumed", "going on from state.safetensors, step 1") in events
    assert ("settings", "training.steps was 1 and is 2") in events


@pytest.mark.parametrize(("relative", "weight"), [("true", 20), ("false", 1000)])
def test_the_settings_of_a_run_say_the_weight_that_null_stands_for(
    tiny_run: list[str], tmp_path: Path, relative: str, weight: float
):
    fit(tiny_run, "training.steps=1", f"model.quantizer.relative_loss={relative}")
    assert json.loads((tmp_path / "run" / CONFIG_NAME).read_text())["training"]["commitment_weight"] == weight


def test_a_run_whose_settings_name_some_that_are_gone_goes_on(tiny_run: list[str], tmp_path: Path):
    fit(tiny_run, "training.steps=1")
    path = tmp_path / "run" / CONFIG_NAME
    settings = json.loads(path.read_text())
    settings["training"]["compile"], settings["adversary"]["relative_features"] = False, False
    path.write_text(json.dumps(settings))
    assert fit(tiny_run, "training.steps=2").step == 2
    assert not [record for record in records(tmp_path / "run") if "compile" in record.get("text", "")]
    assert restore(settings, {"training": {"steps": 7}}).training.steps == 7
    tuned = [f"training.init={tmp_path / 'run' / 'last'}", f"training.run={tmp_path / 'tuned'}", "training.steps=1"]
    assert fit([setting for setting in tiny_run if not setting.startswith("model.")], *tuned).step == 1


def test_a_run_too_short_to_quantize_says_so(tiny_run: list[str], tmp_path: Path):
    fit(tiny_run, "training.steps=3")
    (said,) = (record["text"] for record in records(tmp_path / "run") if record.get("event") == "quantizer")
    assert said.startswith("training.steps 3 end before training.quantizer_start 3: nothing was quantized")


def test_a_folder_without_audio_is_refused(tiny_run: list[str], tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CodecError, match="no sound files"):
        Trainer(compose([*tiny_run, f"data.train={tmp_path / 'empty'}", f"data.cache={tmp_path / 'cache'}"]))


def test_audio_that_can_never_be_read_ends_the_run_in_a_sentence(tiny_run: list[str], monkeypatch: pytest.MonkeyPatch):
    def broken(*_: int) -> None:
        raise OSError("Input/output error")

    trainer = Trainer(compose(tiny_run))
    monkeypatch.setattr(trainer.sampler, "batch", broken)
    monkeypatch.setattr("codec.training.loader.time.sleep", lambda seconds: None)
    with pytest.raises(AudioError, match="step 0 cannot be read: Input/output error"):
        trainer.fit()


class Uploads(TorchDispatchMode):
    """Lists the operations that bring a tensor from the CPU into the world of another device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, arguments=(), more=None):
        result = function(*arguments, **(more or {}))
        devices = [{leaf.device.type for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)}
                   for tree in ((arguments, more), result)]  # fmt: skip
        if "cpu" in devices[0] and {"meta"} & (devices[0] | devices[1]):
            self.found.append(str(function))
        return result


@pytest.mark.skipif(torch.__version__ < "2.10", reason="the meta device has no backward pass of weight norm")
def test_no_step_waits_for_the_device(tiny_run: list[str], monkeypatch: pytest.MonkeyPatch):
    """On the meta device, whose tensors have no values, whatever reads a value back fails."""
    clip, adamw = torch.nn.utils.clip_grad_norm_, torch.optim.AdamW

    def clipped(parameters, norm, foreach):
        return clip(parameters, norm)

    def chosen(vectors, paths, tables, largest_gain):
        codes = torch.zeros(vectors.shape[:2], dtype=torch.int64, device=vectors.device)
        return paths, codes, codes[..., None].expand(-1, -1, paths.undecided.shape[1])

    # What the meta device lacks: autocast, fused updates, norms of many tensors at once, the kernel that chooses codes.
    monkeypatch.setattr("codec.model.beam.follow", chosen)
    monkeypatch.setattr(torch, "autocast", lambda *args, **more: contextlib.nullcontext())
    monkeypatch.setattr(torch.optim, "AdamW", lambda *args, fused, **more: adamw(*args, **more))
    monkeypatch.setattr(adamw, "step", lambda self: None)
    monkeypatch.setattr("codec.training.adversary.clip_grad_norm_", clipped)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clipped)
    monkeypatch.setattr("codec.model.weights.choose_device", lambda device: torch.device("meta"))
    trainer = Trainer(compose([*tiny_run, "training.quantizer_start=-1", "training.adversarial_start=0"]))
    wav = trainer.sampler.batch(0).to("meta")
    with Uploads() as uploads:
        for trainer.step in range(2):
            scalars = trainer.train_step(wav)
            assert {value.device.type for value in scalars.values()} == {"meta"}
    assert uploads.found == []
    with pytest.raises(RuntimeError, match="meta"):
        float(scalars["loss/total"])


def test_a_state_of_a_version_with_fewer_settings_is_taken_for_what_it_is(tiny_run: list[str], tmp_path: Path):
    """Settings that came later had the value that models without them have."""
    same = ["model.encoder.lookahead=0", "model.decoder.input_kernel_size=7"]
    fit([*tiny_run, *same], "training.steps=2")
    for name in (STATE_NAME, PREVIOUS_NAME):
        parts, counters = load_state(tmp_path / "run" / name)
        for part, setting in (("encoder", "lookahead"), ("decoder", "input_kernel_size")):
            del counters["settings"]["model"][part][setting]
        save_state(tmp_path / "run" / name, parts, counters)
    with pytest.raises(ConfigError, match=r"lookahead was 0 and is 3; model\.decoder\.input_kernel_size was 7"):
        Trainer(compose([*tiny_run, "training.steps=3"]))
    assert fit([*tiny_run, *same], "training.steps=3").step == 3
