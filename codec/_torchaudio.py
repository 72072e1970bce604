"""`torchaudio`, and what imports it, beside a torch whose native libraries it does not fit.

Recent torchaudio wheels carry a native library built for CUDA, so on a machine with the CPU build of torch
`import torchaudio` stops with OSError, and so does any model of `transformers`, which imports torchaudio wherever it is
installed. Resampling, mel spectrograms and data sets are pure Python and do not need that library. Metrics that are
models call `import_torchaudio` before anything else that may import it; encoding and decoding never come here.
"""

import importlib
import sys
from types import ModuleType

from codec.errors import ConfigError


def import_torchaudio() -> ModuleType:
    """The module torchaudio, without its native library where that cannot be loaded.

    A torchaudio that loads by itself is left as it is. After this call `import torchaudio` works everywhere in the
    process; only functions that live in the native library (forced alignment, RNN-T loss) raise when called.

    Raises:
        ConfigError: torchaudio is not installed, or cannot be imported even so.
    """
    try:
        return importlib.import_module("torchaudio")
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "torchaudio":
            raise ConfigError("torchaudio is not installed; install the extra: pip install 'codec[eval]'") from error
        failed = error
    # The first attempt has left this module behind. It tells a missing library (which torchaudio can do without) from
    # one that cannot be loaded; for the second attempt both are the same.
    loader = sys.modules.get("torchaudio._extension.utils")
    if not hasattr(loader, "_load_lib"):
        raise ConfigError(f"torchaudio cannot be imported ({failed}); install the one made for your torch") from failed
    setattr(loader, "_load_lib", lambda lib: False)  # noqa: B010
    try:
        return importlib.import_module("torchaudio")
    except Exception as error:
        raise ConfigError(f"torchaudio cannot be imported ({error}); install the one made for your torch") from error
