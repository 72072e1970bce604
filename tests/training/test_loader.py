"""Any step's batch can be had at any time, and a failing read is tried again."""

import numpy as np
import pytest
import torch

from codec.errors import AudioError
from codec.training.data import Batch
from codec.training.distributed import Ranks
from codec.training.loader import ATTEMPTS, Loader


class Steps:
    """In place of a sampler: the batch of a step is its number; reading fails as often as is asked for."""

    def __init__(self, failures: int = 0):
        self.failures = failures

    def batch(self, step: int, rank: int, num_ranks: int) -> Batch:
        if self.failures and step == 2:
            self.failures -= 1
            raise OSError("the disk does not answer")
        return Batch(torch.full((2, 1, 3), float(step)), None)


def loader(sampler: Steps, warnings: list[str]) -> Loader:
    return Loader(sampler, Ranks(), torch.device("cpu"), warnings.append, pause=0.01)  # type: ignore[arg-type]


def test_batches_are_those_of_their_steps_in_any_order():
    with loader(Steps(), []) as batches:
        for step in (0, 1, 2, 7, 3, 4):
            assert batches.batch(step).wav.unique().item() == step


def test_a_changed_sampler_is_asked_anew():
    sampler = Steps()
    with loader(sampler, []) as batches:
        batches.batch(0)
        sampler.batch = lambda *_: Batch(torch.full((2, 1, 3), -1.0), None)  # type: ignore[method-assign]
        batches.restart()
        assert batches.batch(1).wav.unique().item() == -1


def test_a_failed_read_is_repeated_and_reported():
    warnings: list[str] = []
    with loader(Steps(failures=ATTEMPTS - 1), warnings) as batches:
        assert [batches.batch(step).wav[0, 0, 0].item() for step in range(4)] == [0, 1, 2, 3]
    assert warnings == ["the audio of step 2 could not be read, trying again: the disk does not answer"] * 2


def test_a_lasting_failure_is_one_sentence():
    with loader(Steps(failures=100), []) as batches, pytest.raises(AudioError, match="step 2 cannot be read: the disk"):
        for step in range(4):
            batches.batch(step)


def test_waiting_is_a_share_of_the_time():
    with loader(Steps(), []) as batches:
        batches.batch(0)
        assert 0 <= batches.waiting() <= 1
        assert np.isfinite(batches.waiting())
