"""Recorded steps do what steps do."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("hydra", reason="training needs hydra-core")
pytest.importorskip("tensorboard", reason="training needs tensorboard")

from codec.config import compose
from codec.errors import ConfigError
from codec.training.trainer import Trainer


def test_recording_needs_a_gpu(tiny_run: list[str], tmp_path: Path):
    with pytest.raises(ConfigError, match="needs an NVIDIA GPU"):
        Trainer(compose([*tiny_run, "training.record=true"]))
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_recorded_steps_give_the_losses_of_steps_that_are_not(tiny_run: list[str], tmp_path: Path):
    """Through all phases: without quantizer, with it, and with discriminators."""
    losses: list[list[float]] = []
    for record in ("false", "true"):
        overrides = ["training.device=cuda", f"training.record={record}", f"training.run={tmp_path / record}"]
        trainer = Trainer(
            compose([*tiny_run, *overrides, "training.quantizer_start=6", "training.adversarial_start=12"])
        )
        losses.append([])
        with trainer.stream():
            for trainer.step in range(18):
                scalars = trainer.train_step(trainer.sampler.batch(trainer.step).to(trainer.device))
                losses[-1].append(float(scalars["loss/total"]))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-2, atol=0)  # sums in another order from run to run
