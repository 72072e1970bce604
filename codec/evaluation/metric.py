"""What every metric is: named columns and one method, from a pair of waveforms to their values.

A metric that has no value for a pair raises `Undefined` with the reason. It never returns a stand-in, because stand-ins
end up in means.
"""

import importlib.util
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from codec.errors import CodecError
from codec.evaluation.resampling import resample

FILE_COLUMNS = ("id", "speaker", "seconds", "surplus_samples")
"""Of the table of scores, what comes before them."""
LARGEST_SCORE = 1e12
"""In magnitude; sums and squares of what is beyond may be infinite."""


class Undefined(CodecError, ValueError):
    """A metric has no value for this pair; the message is the reason."""


@dataclass(frozen=True)
class Column:
    """One number that a metric gives."""

    name: str  # in files: "pesq_wb"
    label: str  # for people: "PESQ wide band"
    better: Literal["higher", "lower", ""]  # "" where neither is
    unit: str = ""
    digits: int = 3  # behind the point, in tables
    weight: str = ""  # the column by which values are weighted where they are averaged; "" weighs files alike
    is_shown: bool = True  # in tables and reports; weights are not
    at_own_rate: bool = False  # computed at the pair's own sample rate, so that other rates give other values


@dataclass
class Pair:
    """What went into a codec and what came out, as long as each other and at one sample rate.

    Attributes:
        reference: (T,) float32, full scale is 1.
        estimate: (T,) float32.
        sample_rate: Hz.
        id: names the utterance.
        text: what is said, where that is known.
    """

    reference: np.ndarray
    estimate: np.ndarray
    sample_rate: int
    id: str = ""
    text: str | None = None
    _resampled: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.reference.ndim != 1 or self.reference.shape != self.estimate.shape:
            raise ValueError(
                f"a pair is two waveforms (T,) of one length, got {self.reference.shape} and {self.estimate.shape}"
            )

    @property
    def seconds(self) -> float:
        """Duration."""
        return len(self.reference) / self.sample_rate

    def at(self, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
        """Reference and estimate at another rate, by the one resampler of all metrics."""
        if sample_rate not in self._resampled:
            self._resampled[sample_rate] = (
                resample(self.reference, self.sample_rate, sample_rate),
                resample(self.estimate, self.sample_rate, sample_rate),
            )
        return self._resampled[sample_rate]

    def require_seconds(self, seconds: float) -> None:
        """Raise Undefined for a pair that is shorter."""
        if self.seconds < seconds:
            raise Undefined(f"lasts {self.seconds:.3f} s, at least {seconds:g} s are needed")


@dataclass(frozen=True)
class Settings:
    """Where metrics that are models have their weights, and what they run on."""

    device: str = "cpu"
    utmos_weights: Path | None = None
    dnsmos_weights: Path | None = None  # a folder
    asr_model: str | None = None  # a folder or a Hub id
    speaker_model: str | None = None  # a folder or a Hub id
    allow_download: bool = False


class Metric(ABC):
    """From a pair to its values. Made once per process; `score` is called for every pair.

    One that cannot be made here, which a first attempt tells, raises CodecError with the reason.

    Any package can add one, here with a module `loudness.py`:

        import numpy as np
        from codec.evaluation.metric import Column, Metric, Undefined

        class Loudness(Metric):
            name = "loudness"
            columns = (Column("loudness", "louder by", "", "dB"),)

            def score(self, pair):
                energies = [float(np.square(wav).sum()) for wav in (pair.reference, pair.estimate)]
                if not all(energies):
                    raise Undefined("a signal is silent")
                return {"loudness": 10 * np.log10(energies[1] / energies[0])}

    Its pyproject.toml says so, and once it is installed `codec evaluate --metrics loudness` computes it:

        [project.entry-points."codec.metrics"]
        loudness = "loudness:Loudness"
    """

    name: ClassVar[str]
    columns: ClassVar[tuple[Column, ...]]
    packages: ClassVar[tuple[str, ...]] = ()
    """Modules without which it cannot be computed."""
    version: ClassVar[int] = 1
    """Raised whenever a value may change, so that stored scores are computed again."""

    def __init__(self, settings: Settings):
        self.settings = settings

    @abstractmethod
    def score(self, pair: Pair) -> dict[str, float]:
        """The value of every column.

        Raises:
            Undefined: there is none for this pair.
        """

    @classmethod
    def obstacle(cls, settings: Settings) -> tuple[str, str] | None:
        """Why it cannot be computed here, and the command that would change that; None where it can."""
        missing = [name for name in cls.packages if importlib.util.find_spec(name) is None]
        if missing:
            return f"{', '.join(missing)} not installed", "pip install 'codec[eval]'"
        return None

    @classmethod
    def provide(cls, settings: Settings) -> None:
        """Fetch what is missing, where that is allowed. Called once, before `obstacle`.

        Raises:
            ModelError: it cannot be had.
        """
        return None

    @classmethod
    def weights(cls, settings: Settings) -> dict[str, Any]:
        """What its weights are, for the record; empty where it has none."""
        return {}

    @classmethod
    def identity(cls, settings: Settings) -> str:
        """Changes whenever stored scores are no longer valid."""
        return f"{cls.name}/{cls.version}"
