"""What several test files share: real speech, a tiny model that has learned nothing, and a server."""

import errno
import faulthandler
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from web_server import Server

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: tiny models only lose by threads, and round differently

DATA = Path(__file__).parent / "data"
PATIENCE = 600
"""Seconds that a test may take on a busy machine; the slowest take one tenth."""


@pytest.fixture(autouse=True)
def _deadline() -> Iterator[None]:
    """A test that hangs ends its process, so that it fails by name and says where it hung."""
    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="session")
def speech() -> Path:
    """4.7 s of speech, 24 kHz, mono."""
    return DATA / "speech.flac"


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory of the stream family, tiny and random, but with the rates of the real one."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny", seed=0)


@pytest.fixture(scope="session")
def other_model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with other weights."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "other", seed=1)


@pytest.fixture(scope="module")  # so that others find no processes but their own
def on_far_device() -> Iterator[Callable[..., None]]:
    """Calls a function where there is a device other than the CPU, named far."""
    import far_device
    from torch.utils import backend_registration

    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this version of torch takes no device that is written in Python")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        yield lambda *arguments: process.submit(far_device.call, *arguments).result()


@pytest.fixture
def make_stale(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Lets the system no longer tell whether a file is there, as that of a server may for a while.

    `Path.exists` then denies it, which it does of itself from Python 3.14 on.
    """

    def patch(path: Path) -> None:
        look = os.stat

        def refused(place: object, *arguments: object, **options: object) -> object:
            if place in (path, str(path)):
                raise OSError(errno.ESTALE, "Stale file handle", str(path))
            return look(place, *arguments, **options)

        monkeypatch.setattr(os, "stat", refused)
        monkeypatch.setattr(Path, "exists", os.path.exists)

    return patch


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server on this machine; who downloads does not pause."""
    from codec import download

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "ATTEMPTS", 4)
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    server = Server()
    yield server
    server.close()


def save_tiny_model(directory: Path, seed: int) -> Path:
    """Write a random model of the stream family to `directory`."""
    import torch

    from codec.model import weights
    from codec.model.codec import Codec, CodecConfig
    from codec.model.decoder import SpectralDecoderConfig
    from codec.model.encoder import SpectralEncoderConfig

    torch.manual_seed(seed)
    encoder = SpectralEncoderConfig(width=16, num_blocks=1, lookahead=2)
    decoder = SpectralDecoderConfig(width=24, num_blocks=2, num_attention=1, attention_heads=2)
    codec = Codec(CodecConfig(encoder=encoder, decoder=decoder)).eval()
    torch.nn.init.normal_(codec.quantizer.taps, std=0.1)  # drawn as 0, with which codes do not depend on their past
    weights.save(codec, directory)
    return directory
