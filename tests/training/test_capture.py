"""Recorded steps do what steps do."""

from pathlib import Path

import pytest
import torch

from codec.config import compose
from codec.errors import ConfigError
from codec.training.capture import NUM_WARM_UPS, Recorded
from codec.training.data import Batch
from codec.training.trainer import Trainer


def test_recording_needs_a_gpu(tiny_run: list[str], tmp_path: Path):
    with pytest.raises(ConfigError, match="needs an NVIDIA GPU"):
        Trainer(compose([*tiny_run, "training.record=true"]))
    assert not (tmp_path / "run").exists()


def test_every_batch_comes_in_the_memory_that_is_recorded():
    batches: list[Batch] = []
    recorded = Recorded(lambda batch: batches.append(batch) or {}, highest=12000.0)
    seen = []
    for number, bandwidth in zip(range(NUM_WARM_UPS), (None, torch.tensor([8000.0]), None), strict=True):
        recorded("kind", Batch(torch.full((1, 1, 4), float(number)), bandwidth))
        seen.append((batches[-1].wav.unique().item(), batches[-1].bandwidth.item()))
    # Each kind has warm-ups of its own, or this would be recorded, which needs a GPU.
    recorded("another kind", Batch(torch.zeros(1, 1, 4), None))
    assert seen == [(0.0, 12000.0), (1.0, 8000.0), (2.0, 12000.0)]
    assert len({(batch.wav.data_ptr(), batch.bandwidth.data_ptr()) for batch in batches}) == 1


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
