"""`transformers`, and models of it that a user names: a folder, or an id of the Hugging Face Hub."""

import functools
import hashlib
import importlib.util
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from codec._torchaudio import import_torchaudio
from codec.digests import sha256
from codec.errors import ConfigError, ModelError

PROBE_SECONDS = 10.0


def import_transformers() -> ModuleType:
    """`transformers`, quiet, and beside a torchaudio that may not load.

    Raises:
        ConfigError: it is not installed.
    """
    if importlib.util.find_spec("transformers") is None:
        raise ConfigError("transformers is not installed; install the extra: pip install 'codec[eval]'")
    if importlib.util.find_spec("torchaudio") is not None:
        import_torchaudio()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return transformers


@dataclass(frozen=True)
class Source:
    """Where a model is."""

    name: str
    allow_download: bool


def load_pretrained(kind: Any, source: Source, what: str) -> Any:
    """What `kind.from_pretrained` makes of it.

    Raises:
        ModelError: it is not there, may not be fetched, or is not `what`.
    """
    is_local = os.path.exists(source.name)
    obstacle = None if is_local else _obstacle_to_fetching() if source.allow_download else "allow it with --download"
    try:
        return kind.from_pretrained(source.name, local_files_only=is_local or obstacle is not None)
    except Exception as error:  # of a dozen unrelated types
        advice = f"; it was not fetched: {obstacle}" if obstacle else ""
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines else type(error).__name__
        raise ModelError(f"{source.name}: cannot be loaded as {what} ({reason}){advice}") from error


@functools.lru_cache(maxsize=1)
def _obstacle_to_fetching() -> str | None:
    """Why the Hub cannot be reached: asked once, because its own client takes half a minute over every file."""
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=PROBE_SECONDS):
            return None
    except urllib.error.HTTPError:
        return None  # somebody answers
    except (OSError, ValueError) as error:
        return f"{address} cannot be reached ({getattr(error, 'reason', None) or error})"


def obstacle_of(name: str | None, command: str) -> tuple[str, str] | None:
    """Why a model cannot be loaded, as far as can be seen without trying."""
    return ("no model is named", command) if name is None else None


def describe(name: str | None) -> str:
    """The name, with a sum of the files where it is a folder, so that stored scores of other weights do not pass."""
    if name is None or not os.path.isdir(name):
        return str(name)
    digest = hashlib.sha256()
    for path in sorted(Path(name).iterdir()):
        if path.is_file():
            digest.update(f"{path.name} {sha256(path)}\n".encode())
    return f"{Path(name).resolve().name} ({digest.hexdigest()[:16]})"
