"""No run is lost, whatever breaks: batches, readers, disks, states, the process itself."""

import errno
import json
import math
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from codec.config import compose
from codec.errors import CodecError
from codec.model.weights import load
from codec.training import loader, monitor, state
from codec.training.data import Batch, WindowSampler
from codec.training.run_files import PREVIOUS_NAME, STATE_NAME
from codec.training.state import load_latest
from codec.training.trainer import Trainer


def events(run: Path, kind: str) -> list[str]:
    records = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [record["text"] for record in records if record.get("event") == kind]


# -- broken values


@pytest.mark.parametrize("phase", ["training.quantizer_start=0", "training.adversarial_start=0"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_with_a_broken_batch_changes_nothing_and_is_counted(tiny_run: list[str], phase: str, value: float):
    trainer = Trainer(compose([*tiny_run, phase]))
    batch = trainer.sampler.batch(0)
    trainer.train_step(batch)
    before = {name: tensor.clone() for name, tensor in trainer.codec.state_dict().items()}
    discriminators = {name: t.clone() for name, t in trainer.adversary.discriminators.state_dict().items()}
    trainer.train_step(batch._replace(wav=torch.full_like(batch.wav, value)))
    assert int(trainer.broken.skipped) == 1
    assert trainer.broken.explain(trainer.broken.counts).startswith("batch/peak was not finite in 1 step; then loss/")
    for name, tensor in trainer.codec.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    for name, tensor in trainer.adversary.discriminators.state_dict().items():
        assert torch.equal(tensor, discriminators[name]), name
    trainer.train_step(batch)
    assert any(not torch.equal(tensor, before[name]) for name, tensor in trainer.codec.state_dict().items())


def test_a_loss_that_is_not_finite_skips_the_step_even_if_its_gradient_is(
    tiny_run: list[str], monkeypatch: pytest.MonkeyPatch
):
    trainer = Trainer(compose([*tiny_run, "training.adversarial_start=0"]))
    spectral_loss = trainer.spectral_loss.forward

    def broken(*wavs):
        losses = spectral_loss(*wavs)
        return losses._replace(mel=losses.mel + math.inf)

    monkeypatch.setattr(trainer.spectral_loss, "forward", broken)
    before = parameters(trainer)
    scalars = trainer.train_step(trainer.sampler.batch(0))
    assert int(trainer.broken.skipped) == 1
    assert not scalars["gradient_norm/codec"].isfinite()
    assert scalars["gradient_norm/discriminators"].isfinite()
    assert all(map(torch.equal, parameters(trainer), before))


def test_a_broken_gradient_of_the_discriminators_skips_the_step_of_all(tiny_run: list[str]):
    trainer = Trainer(compose([*tiny_run, "training.adversarial_start=0"]))
    next(trainer.adversary.discriminators.parameters()).register_hook(lambda gradient: gradient * math.nan)
    before = parameters(trainer)
    scalars = trainer.train_step(trainer.sampler.batch(0))
    assert scalars["gradient_norm/codec"].isfinite()
    assert int(trainer.broken.skipped) == 1
    assert "gradient_norm/discriminators was not finite in 1 step" in trainer.broken.explain(trainer.broken.counts)
    assert all(map(torch.equal, parameters(trainer), before))


def test_codes_of_a_broken_latent_are_not_counted(tiny_run: list[str]):
    trainer = Trainer(compose([*tiny_run, "training.quantizer_start=0"]))
    batch = trainer.sampler.batch(0)
    trainer.train_step(batch)
    before = trainer.usage.counts.clone()
    trainer.train_step(batch._replace(wav=torch.full_like(batch.wav, math.nan)))
    assert (trainer.usage.counts <= before).all()


def parameters(trainer: Trainer) -> list[Tensor]:
    """Copies of all that is trained."""
    return [p.detach().clone() for p in (*trainer.codec.parameters(), *trainer.adversary.discriminators.parameters())]


class BrokenBatches:
    """In place of a sampler's `batch`: NaN from one step to another, as often as is asked for."""

    def __init__(self, sampler: WindowSampler, first: int, last: int, times: int):
        self.original, self.first, self.last, self.times = sampler.batch, first, last, times

    def __call__(self, step: int, *shares: int) -> Batch:
        batch = self.original(step, *shares)
        if self.times and self.first <= step <= self.last:
            self.times -= step == self.last
            return batch._replace(wav=torch.full_like(batch.wav, math.nan))
        return batch


def test_broken_steps_in_a_row_return_to_the_last_good_state_with_half_the_rate(
    tiny_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loader, "AHEAD", 1)
    trainer = Trainer(compose([*tiny_run, "training.max_skipped_in_a_row=3"]))
    monkeypatch.setattr(trainer.sampler, "batch", BrokenBatches(trainer.sampler, 7, 9, times=1))
    trainer.fit()
    # Step 8 was due to be saved, but in the middle of the burst: the state of step 4 is the last good one.
    assert events(tmp_path / "run", "return") == [
        "3 steps in a row were skipped; back to the state of step 4, with 0.5 of the learning rate"
    ]
    assert len(events(tmp_path / "run", "skipped")) == 3
    assert (trainer.step, trainer.num_returns, int(trainer.broken.skipped)) == (12, 1, 3)
    assert trainer.sampler.seed == 1  # other windows than those that broke
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    last = [line for line in lines if "learning_rate" in line][-1]  # behind it stands a validation
    assert last["learning_rate"] == pytest.approx(0.5 * 12 / 100 * 0.25 * 5e-4)
    assert all(line["steps_per_second"] > 0 for line in lines if "learning_rate" in line)
    resumed = Trainer(compose(tiny_run))
    assert (resumed.num_returns, resumed.sampler.seed) == (1, 1)


def test_a_run_that_ends_with_broken_steps_gives_the_model_of_its_last_good_state(tiny_run: list[str], tmp_path: Path):
    Trainer(compose([*tiny_run, "training.steps=6"])).fit()
    before = load(tmp_path / "run" / "last")
    trainer = Trainer(compose([*tiny_run, "training.steps=9", "training.learning_rate=1e30"]))
    trainer.fit()
    assert trainer.step == 6
    assert "validation failed: the last steps were skipped, and the model" in events(tmp_path / "run", "trouble")[0]
    assert events(tmp_path / "run", "end") == [
        "the last steps were skipped, and their model gives no sound; it is that of step 6"
    ]
    after = load(tmp_path / "run" / "last").state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.state_dict().items())


def test_a_run_whose_last_batch_is_broken_ends_as_any_other(
    tiny_run: list[str], training_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loader, "AHEAD", 1)
    settings = [f"data.validation={training_folder}", "training.save_every=100"]
    trainer = Trainer(compose([*tiny_run, *settings]))
    monkeypatch.setattr(trainer.sampler, "batch", BrokenBatches(trainer.sampler, 11, 11, times=1))
    trainer.fit()
    assert (trainer.step, int(trainer.broken.skipped)) == (12, 1)
    assert events(tmp_path / "run", "end") == events(tmp_path / "run", "trouble") == []
    assert load(tmp_path / "run" / "best").fingerprint == load(tmp_path / "run" / "last").fingerprint


def test_a_run_of_broken_steps_alone_gives_no_model(tiny_run: list[str], tmp_path: Path):
    trainer = Trainer(compose([*tiny_run, "training.steps=3", "training.learning_rate=1e30"]))
    with pytest.raises(CodecError, match=r"the last steps were skipped, .* and no state but the first was good"):
        trainer.fit()
    assert not (tmp_path / "run" / "last").exists()


def test_weights_that_16_bits_cannot_hold_are_stored_in_32(tiny_run: list[str]):
    trainer = Trainer(compose(tiny_run))
    for weights in (trainer.codec.state_dict(), trainer.ema.shadow):
        weights["encoder.input.weight"].fill_(1e5)
    model = load(trainer.save_model("last"))
    assert (model.encoder.input.weight == 1e5).all()
    assert not any(torch.equal(tensor.half().float(), tensor) for tensor in (model.decoder.input.weight,))


def test_the_best_model_stays_the_best_where_training_returns_behind_it(
    tiny_run: list[str], training_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loader, "AHEAD", 1)
    settings = [f"data.validation={training_folder}", "training.validation_clips=1", "training.validate_every=2"]
    settings += ["training.save_every=100", "training.max_skipped_in_a_row=2"]
    Trainer(compose([*tiny_run, *settings])).save()
    trainer = Trainer(compose([*tiny_run, *settings]))
    trainer.best_score = 2.0  # since the state was saved; better than any model is
    monkeypatch.setattr(trainer.sampler, "batch", BrokenBatches(trainer.sampler, 4, 5, times=1))
    trainer.fit()
    assert trainer.num_returns == 1
    assert (trainer.run / "last").exists()
    assert not (trainer.run / "best").exists()
    assert trainer.best_score == 2.0


def test_training_that_keeps_breaking_ends_with_one_sentence_and_a_good_state(
    tiny_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    trainer = Trainer(compose([*tiny_run, "training.max_skipped_in_a_row=2", "training.max_returns=2"]))
    monkeypatch.setattr(trainer.sampler, "batch", BrokenBatches(trainer.sampler, 5, 100, times=1000))
    with pytest.raises(CodecError, match=r"2 steps in a row up to step 7 were skipped, and .* 2 times; codec doctor"):
        trainer.fit()
    assert len(events(tmp_path / "run", "return")) == 2
    latest = load_latest(tmp_path / "run")
    assert latest is not None
    assert latest.counters["step"] == 4


def test_windows_after_a_return_are_all_others(tiny_run: list[str], monkeypatch: pytest.MonkeyPatch):
    """Also those that had been cut ahead when it came."""
    settings = ["training.steps=5", "training.max_skipped_in_a_row=2", "training.save_every=2"]
    trainer = Trainer(compose([*tiny_run, *settings]))
    train_step, seen = trainer.train_step, {}

    def step(batch: Batch) -> dict[str, Tensor]:
        if trainer.num_returns:
            seen[trainer.step] = batch.wav
        elif trainer.step in (2, 3):
            batch = batch._replace(wav=torch.full_like(batch.wav, math.nan))
        return train_step(batch)

    monkeypatch.setattr(trainer, "train_step", step)
    trainer.fit()
    others = WindowSampler(trainer.sampler.cache, trainer.config.data, trainer.settings.seed + 1)
    assert list(seen) == [2, 3, 4]
    assert all(torch.equal(wav, others.batch(step).wav) for step, wav in seen.items())


# -- broken disks and states


def test_a_full_disk_at_a_checkpoint_costs_the_checkpoint_only(
    tiny_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    trainer = Trainer(compose(tiny_run))
    save = trainer.save

    def full_at_8(keep_previous: bool = True) -> None:
        if trainer.step == 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(keep_previous)

    monkeypatch.setattr(trainer, "save", full_at_8)
    trainer.fit()
    (sentence,) = events(tmp_path / "run", "failure")
    assert "saving the state failed: [Errno 28] No space left on device; what was written before stays" in sentence
    assert trainer.step == 12


def test_a_disk_that_is_full_at_the_start_is_refused(tiny_run: list[str], monkeypatch: pytest.MonkeyPatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("codec.training.state.shutil.disk_usage", lambda path: usage)
    with pytest.raises(CodecError, match="0 MiB are free"):
        Trainer(compose(tiny_run)).fit()


def test_a_disk_with_room_for_states_without_moments_only_is_refused(
    tiny_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    Trainer(compose([*tiny_run, "training.run=" + str(tmp_path / "other")])).fit()
    size = (tmp_path / "other" / STATE_NAME).stat().st_size
    free = {"free": 2 * size}
    monkeypatch.setattr("codec.training.state.shutil.disk_usage", lambda path: type("Usage", (), free))
    with pytest.raises(CodecError, match=r"are free, the states to come need"):
        Trainer(compose(tiny_run)).fit()
    free["free"] = 3 * size
    assert Trainer(compose(tiny_run)).fit()


def test_failing_validation_does_not_end_the_run(
    tiny_run: list[str], training_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def broken(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("codec.training.trainer.validate", broken)
    settings = [f"data.validation={training_folder}", "training.validate_every=6", "training.steps=6"]
    Trainer(compose([*tiny_run, *settings])).fit()
    assert "validation failed: out of memory" in events(tmp_path / "run", "trouble")[0]


def test_a_damaged_state_is_replaced_and_never_becomes_the_previous_one(tiny_run: list[str], tmp_path: Path):
    run = tmp_path / "run"
    Trainer(compose([*tiny_run, "training.steps=6"])).fit()  # saved at 4 and 6
    (run / STATE_NAME).write_bytes((run / STATE_NAME).read_bytes()[:-100])
    trainer = Trainer(compose([*tiny_run, "training.steps=5"]))
    assert trainer.step == 4
    trainer.fit()
    (sentence,) = events(run, "resumed")
    assert "is not a whole training state" in sentence
    assert sentence.endswith("; going on from state.previous.safetensors, step 4")
    for name, step in ((STATE_NAME, 5), (PREVIOUS_NAME, 4)):
        assert state.load_state(run / name)[1]["step"] == step


# -- everything


class Killed(BaseException):
    """Ends a run as kill -9 would: nothing catches it, nothing is saved."""


class Faults:
    """Injects faults at random while runs go on, and damages what lies on the disk between them."""

    IN_BATCHES = ("nan batch", "infinite batch", "burst of nan", "failing reader", "killed reader")
    ON_DISK = ("full disk at a state", "full disk at a log", "full disk at a model")
    DEADLY = ("kill", "kill while saving", "kill and cut state", "kill and flip a bit", "kill and leave rubbish")

    def __init__(self, run: Path, number: int, seed: int):
        self.run, self.random = run, random.Random(seed)
        kinds = [*self.IN_BATCHES, *self.ON_DISK, *self.DEADLY]
        self.left = [kinds[index % len(kinds)] for index in range(number)]
        self.random.shuffle(self.left)
        self.burst = 0
        self.saved: list[int] = []  # the step of each state that was written
        self.pending = ""  # damage to be done to the disk at the next kill

    def take(self, *kinds: str) -> str:
        """The next fault if it is one of these and if its time has come, else nothing."""
        if self.left and self.left[-1] in kinds and self.random.random() < 0.7:
            return self.left.pop()
        return ""

    @contextmanager
    def injected(self, trainer: Trainer) -> Iterator[None]:
        batch, train_step = trainer.sampler.batch, trainer.train_step
        with pytest.MonkeyPatch.context() as patch:

            def broken_batch(step: int, *shares: int) -> Batch:
                fault = self.take(*self.IN_BATCHES)
                if fault == "failing reader":
                    raise OSError("Input/output error")
                if fault == "killed reader":
                    raise RuntimeError("the thread was killed")
                self.burst = 4 if fault == "burst of nan" else max(self.burst - 1, 0)
                value = math.inf if fault == "infinite batch" else math.nan
                is_broken = fault or self.burst
                return Batch(torch.full((4, 1, 4800), value), None) if is_broken else batch(step, *shares)

            def deadly_step(batch: Batch) -> dict[str, Tensor]:
                self.pending = self.take("kill", "kill and cut state", "kill and flip a bit", "kill and leave rubbish")
                if self.pending:
                    raise Killed
                return train_step(batch)

            def full(kind: str, original):
                def write(*arguments, **more):
                    if self.take(kind):
                        raise OSError(errno.ENOSPC, "No space left on device")
                    return original(*arguments, **more)

                return write

            write_state = full("full disk at a state", state.save_state)

            def save_state(*arguments, **more) -> None:
                # The first one must be written: a run whose state cannot be is refused.
                (write_state if self.saved else state.save_state)(*arguments, **more)
                self.saved.append(trainer.step)

            def dying_replace(source: Path, target: Path) -> None:
                os.rename(source, target)
                if self.take("kill while saving"):
                    raise Killed

            patch.setattr(loader.time, "sleep", lambda seconds: None)
            patch.setattr(loader, "ATTEMPTS", 100)
            patch.setattr(trainer.sampler, "batch", broken_batch)
            patch.setattr(trainer, "train_step", deadly_step)
            patch.setattr(trainer, "save_model", full("full disk at a model", trainer.save_model))
            patch.setattr(monitor, "append_record", full("full disk at a log", monitor.append_record))
            patch.setattr("codec.training.trainer.save_state", save_state)
            patch.setattr(state.os, "replace", dying_replace)
            yield

    def damage(self) -> int:
        """What the last kill did to the disk, once there are two states: one alone has nothing to fall back on.

        Returns:
            The step from which the run must go on at least.
        """
        path = self.run / STATE_NAME
        if not (path.exists() and (self.run / PREVIOUS_NAME).exists()):
            return 0
        whole = path.read_bytes()
        place = self.random.randrange(8, len(whole))
        if self.pending == "kill and cut state":
            path.write_bytes(whole[:place])
        elif self.pending == "kill and flip a bit":
            path.write_bytes(
                whole[:place] + bytes([whole[place] ^ (1 << self.random.randrange(8))]) + whole[place + 1 :]
            )
        elif self.pending == "kill and leave rubbish":
            (self.run / ".0123456789abcdef.part").write_bytes(whole[:place])
            with open(self.run / "log.jsonl", "a") as log:
                log.write('{"step": 3, "loss/m')
        return min(self.saved[-2:]) if self.pending in ("kill and cut state", "kill and flip a bit") else self.saved[-1]


def survive(tiny_run: list[str], run: Path, number: int) -> None:
    """Train while faults are injected; start again after each death; the run must arrive, with all faults spent."""
    faults = Faults(run, number, seed=number)
    settings = [*tiny_run, "training.max_skipped_in_a_row=3", "training.max_returns=1000", "training.save_every=3"]
    settings += ["training.validate_every=5"]
    num_steps = at_least = 0
    for _ in range(3 * number):
        num_steps += 12
        trainer = Trainer(compose([*settings, f"training.steps={num_steps}"]))
        assert at_least <= trainer.step <= num_steps
        at_least = 0
        try:
            with faults.injected(trainer):
                trainer.fit()
        except Killed:
            at_least = faults.damage()
            num_steps -= 12  # not arrived yet
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            # The disk was full at the very end, where nothing could try again later.
        if not faults.left:
            break
    assert faults.left == []
    final = Trainer(compose([*settings, f"training.steps={num_steps + 4}"]))
    final.fit()
    assert final.step == num_steps + 4
    assert all(tensor.isfinite().all() for tensor in final.codec.state_dict().values())
    assert all(tensor.isfinite().all() for tensor in final.ema.shadow.values())


def test_a_dozen_faults_lose_no_run(tiny_run: list[str], tmp_path: Path):
    survive(tiny_run, tmp_path / "run", 13)


@pytest.mark.slow
def test_two_hundred_faults_lose_no_run(tiny_run: list[str], tmp_path: Path):
    survive(tiny_run, tmp_path / "run", 200)
