"""Speech beside a damaged copy of itself, as arrays and as folders."""

from pathlib import Path

import numpy as np
import pytest

from codec import audio
from codec.evaluation.metric import Pair


@pytest.fixture(scope="session")
def reference(speech: Path) -> np.ndarray:
    """4.7 s of speech, (T,) at 24 kHz."""
    return audio.read(speech)[0][0]


@pytest.fixture(scope="session")
def estimate(reference: np.ndarray) -> np.ndarray:
    """The same with noise and an echo."""
    noise = np.random.default_rng(0).standard_normal(len(reference)).astype(np.float32)
    return 0.8 * reference + 0.2 * np.roll(reference, 700) + 0.003 * noise


@pytest.fixture
def pair(reference: np.ndarray, estimate: np.ndarray) -> Pair:
    return Pair(reference, estimate, 24000, "talk")


@pytest.fixture
def folders(tmp_path: Path, reference: np.ndarray, estimate: np.ndarray) -> tuple[Path, Path]:
    """Two folders with three utterances of 1.5 s each, in a subfolder."""
    for number in range(3):
        part = slice(number * 36000, (number + 1) * 36000)
        for name, wav in (("reference", reference), ("estimate", estimate)):
            path = tmp_path / name / "speaker" / f"talk{number}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            audio.write(path, wav[part], 24000)
    return tmp_path / "reference", tmp_path / "estimate"
