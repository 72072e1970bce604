"""What metrics that are networks share: their device, and packages that need care to import."""

import importlib.util
import os
from types import ModuleType
from typing import TYPE_CHECKING

from codec._torchaudio import import_torchaudio
from codec.errors import ConfigError

if TYPE_CHECKING:
    import torch


def choose_device(device: str) -> "torch.device":
    """The named device, or for "auto" the best there is.

    Raises:
        ConfigError: not available here.
    """
    from codec.model.weights import choose_device as choose

    return choose(device)


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
