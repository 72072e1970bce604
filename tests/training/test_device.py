"""Training computes where the model is, and comes to the same."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from codec.config import compose
from codec.training.trainer import Trainer


def train(overrides: list[str], folder: Path) -> None:
    logs = []
    for device in ("cpu", "far"):
        for steps in (2, 3):  # it goes on from a state
            run = [f"training.run={folder / device}", f"training.device={device}", f"training.steps={steps}"]
            trainer = Trainer(compose([*overrides, *run]))
            trainer.fit()
        assert {parameter.device.type for parameter in trainer.codec.parameters()} == {device}
        records = [json.loads(line) for line in (folder / device / "log.jsonl").read_text().splitlines()]
        logs.append([{"step": record["step"], **losses} for record in records if (losses := losses_of(record))])
    assert len(logs[0]) == 3
    for near, far in zip(*logs, strict=True):
        assert far == pytest.approx(near, rel=1e-5)


def losses_of(record: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in record.items() if name.startswith("loss/")}


def test_a_run_is_the_same_on_another_device(
    on_far_device: Callable[..., None], tiny_settings: list[str], tmp_path: Path
):
    phases = ["training.quantizer_start=0", "training.adversarial_start=1", "training.decay_steps=1"]
    on_far_device(train, [*tiny_settings, *phases, "data.batch_size=2"], tmp_path)
