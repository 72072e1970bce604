"""A training set of seconds, a model that trains in seconds, and processes that start at once."""

import multiprocessing
from collections.abc import Mapping
from multiprocessing.context import ForkServerContext
from pathlib import Path

import numpy as np
import pytest
import soundfile
from parity import PARITY


@pytest.fixture(scope="session")
def training_folder(tmp_path_factory: pytest.TempPathFactory, speech: Path) -> Path:
    """Real speech cut into clips of three "speakers", one of them unknown."""
    folder = tmp_path_factory.mktemp("clips")
    wav, sample_rate = soundfile.read(speech, dtype="float32")
    for index, piece in enumerate(np.array_split(wav, 9)):
        path = folder / ("first", "second", "some_unknown")[index % 3] / f"{index}.flac"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, piece, sample_rate)
    return folder


@pytest.fixture(scope="session")
def wav(speech: Path) -> np.ndarray:
    """Two seconds of speech, (T,) float32 at 24 kHz."""
    return soundfile.read(speech, frames=48000, dtype="float32")[0]


@pytest.fixture(scope="session")
def parity() -> Mapping[str, np.ndarray]:
    """Losses and gradients that the published code gives, by name."""
    if not (PARITY / "losses.npz").exists():
        pytest.skip("needs ../shared/parity/losses.npz")
    return np.load(PARITY / "losses.npz")


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the decoded training set is kept for all tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def tiny_run(tiny_settings: list[str], tmp_path: Path) -> list[str]:
    """Overrides of a run that passes through all phases in twelve steps, in exact arithmetic."""
    return [*tiny_settings, f"training.run={tmp_path / 'run'}"]


@pytest.fixture(scope="session")
def tiny_settings(training_folder: Path, cache_folder: Path) -> list[str]:
    """The same wherever it is."""
    return [
        f"data.train={training_folder}",
        f"data.cache={cache_folder}",
        "adversary=small",
        "adversary.discriminators.period.periods=[2,3]",
        "adversary.discriminators.period.channels=[4,8,8,8,8]",
        "adversary.discriminators.scale.factors=[1,2]",
        "adversary.discriminators.scale.channels=[4,8,8,8]",
        "adversary.discriminators.spectrum.n_ffts=[512]",
        "adversary.discriminators.spectrum.overlap=[4]",
        "adversary.discriminators.spectrum.channels=[4,4,4,4]",
        "model.encoder.width=16",
        "model.encoder.num_blocks=1",
        "model.decoder.width=24",
        "model.decoder.num_blocks=2",
        "model.decoder.num_attention=1",
        "model.quantizer.codebook_size=64",
        "data.batch_size=4",
        "data.window_seconds=0.2",
        "mel.resolutions=[[256,64,20],[1024,256,40]]",
        "training.device=cpu",
        "training.precision=float32",
        "training.steps=12",
        "training.decay_steps=4",
        "training.quantizer_start=3",
        "training.adversarial_start=6",
        "training.adversarial_seconds=0.1",
        "training.intelligibility_weight=0",
        "training.log_every=1",
        "training.save_every=4",
    ]


@pytest.fixture(scope="session")
def processes() -> ForkServerContext:
    """Starts processes that have torch and the trainer loaded already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["codec.config", "codec.training.trainer"])
    return context
