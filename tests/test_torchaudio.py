"""torchaudio can be imported where its native library cannot be loaded."""

import importlib.util
import subprocess
import sys
import textwrap

import pytest
import torch

from codec._torchaudio import import_torchaudio
from codec.errors import ConfigError

STAND_IN = {
    "__init__.py": "from . import _extension\nfrom . import transforms\n",
    "_extension/__init__.py": "from .utils import _load_lib\nHAS_LIBRARY = _load_lib('_torchaudio')\n",
    "_extension/utils.py": "def _load_lib(lib):\n    raise OSError('Could not load this library: ' + lib)\n",
    "transforms.py": "class Resample:\n    pass\n",
}
"""The part of torchaudio's import that matters, failing as it does beside a torch of another build."""


def run_python(code: str, path: str) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.path.insert(0, {path!r})\n" + textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_import_without_its_native_library(tmp_path):
    for name, content in STAND_IN.items():
        path = tmp_path / "torchaudio" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert "OSError" in run_python("import torchaudio", str(tmp_path)).stderr
    done = run_python(
        """
        from codec._torchaudio import import_torchaudio
        assert import_torchaudio() is import_torchaudio()
        import torchaudio
        from torchaudio.transforms import Resample
        print(torchaudio._extension.HAS_LIBRARY)
        """,
        str(tmp_path),
    )
    assert (done.stdout, done.stderr) == ("False\n", "")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("raise ImportError('broken')", "broken"),
        ("import nowhere_at_all", "No module named 'nowhere_at_all'"),
        ("raise AttributeError('made for another torch')", "made for another torch"),
    ],
)
def test_another_failure_is_reported(tmp_path, content, reason):
    (tmp_path / "torchaudio.py").write_text(content)
    done = run_python("from codec._torchaudio import import_torchaudio; import_torchaudio()", str(tmp_path))
    assert f"ConfigError: torchaudio cannot be imported ({reason})" in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("torchaudio") is not None, reason="torchaudio is installed")
def test_missing_torchaudio_is_named():
    with pytest.raises(ConfigError, match=r"codec\[eval\]"):
        import_torchaudio()


@pytest.mark.skipif(importlib.util.find_spec("torchaudio") is None, reason="torchaudio is not installed")
def test_installed_torchaudio_resamples():
    torchaudio = import_torchaudio()
    assert torchaudio.transforms.Resample(24000, 16000)(torch.zeros(1, 2400)).shape == (1, 1600)
    assert torchaudio.transforms.MelSpectrogram(24000, n_mels=20)(torch.zeros(1, 2400)).shape[1] == 20
