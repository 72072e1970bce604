"""`transformers`, and models of it that a user names: a folder, or an id of the Hugging Face Hub."""

import functools
import hashlib
import http.client
import importlib.util
import os
import urllib.error
import urllib.request
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from codec._torchaudio import import_torchaudio
from codec.digests import sha256
from codec.errors import ConfigError, ModelError, first_line
from codec.evaluation.metric import Metric, Settings

PROBE_SECONDS = 10.0


def import_transformers() -> ModuleType:
    """`transformers`, quiet, and beside a torchaudio that may not load.

    Raises:
        ConfigError: it is not installed, or cannot be imported.
    """
    if importlib.util.find_spec("transformers") is None:
        raise ConfigError("transformers is not installed; install the extra: pip install 'codec[eval]'")
    if importlib.util.find_spec("torchaudio") is not None:
        import_torchaudio()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        import transformers
    except Exception as error:  # of whatever it imports
        raise ConfigError(f"transformers cannot be imported ({first_line(error)})") from error
    transformers.utils.logging.disable_progress_bar()
    return transformers


class HubMetric(Metric):
    """A metric by a model of `transformers` that the user names."""

    packages = ("torch", "transformers")
    setting: ClassVar[str]
    """Which of the `Settings` names the model."""
    example: ClassVar[str]
    """Id of a model that will do."""

    def __init__(self, settings: Settings):
        super().__init__(settings)
        from codec.model.weights import choose_device

        self.device = choose_device(settings.device)

    def load(self, kind: str, what: str) -> Any:
        """What `from_pretrained` of a class of `transformers` makes of the model that is named.

        Raises:
            ConfigError: see `import_transformers`.
            ModelError: it is not there, may not be fetched, or is not `what`.
        """
        transformers = import_transformers()
        name = self._named(self.settings)
        is_local = os.path.exists(name)
        obstacle = None
        if not is_local:
            hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
            obstacle = _obstacle_to_fetching(hub) if self.settings.allow_download else "allow it with --download"
        try:
            return getattr(transformers, kind).from_pretrained(name, local_files_only=is_local or obstacle is not None)
        except Exception as error:  # of a dozen unrelated types
            advice = f"; it was not fetched: {obstacle}" if obstacle else ""
            raise ModelError(f"{name}: cannot be loaded as {what} ({first_line(error)}){advice}") from error

    def check_rate(self, rate: int | None, expected: int) -> None:
        """Raise ModelError for a model that takes another sample rate, Hz."""
        if rate != expected:
            raise ModelError(f"{self._named(self.settings)}: takes {rate} Hz, a model at {expected} Hz is needed")

    @classmethod
    def obstacle(cls, settings: Settings) -> tuple[str, str] | None:
        if found := super().obstacle(settings):
            return found
        if getattr(settings, cls.setting) is None:
            option = f"--{cls.setting.replace('_', '-')}"
            return "no model is named", f"--metrics {cls.name} {option} {cls.example} --download"
        return None

    @classmethod
    def identity(cls, settings: Settings) -> str:
        name = cls._named(settings)
        return f"{super().identity(settings)}/{_sum(name) if os.path.isdir(name) else name}"

    @classmethod
    def weights(cls, settings: Settings) -> dict[str, Any]:
        name = cls._named(settings)
        return {"model": f"{Path(name).resolve().name} ({_sum(name)})" if os.path.isdir(name) else name}

    @classmethod
    def _named(cls, settings: Settings) -> str:
        return str(getattr(settings, cls.setting))


@functools.lru_cache(maxsize=1)
def _obstacle_to_fetching(address: str) -> str | None:
    """Why the Hub cannot be reached: asked once, because its own client takes half a minute over every file."""
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=PROBE_SECONDS):
            return None
    except urllib.error.HTTPError:
        return None  # somebody answers
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"{address} cannot be reached ({getattr(error, 'reason', None) or error})"


def _sum(folder: str) -> str:
    """Of the files in it, so that scores of other weights do not pass for those of these, wherever they lie."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).iterdir()):
        if path.is_file():
            digest.update(f"{path.name} {sha256(path)}\n".encode())
    return digest.hexdigest()[:16]
