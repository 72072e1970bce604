"""A quantizer that another package brings is one for all commands."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

import codec

RECIPE = Path(__file__).parents[2] / "recipes" / "own"
TINY = (
    *("model.encoder.width=16", "model.encoder.num_blocks=1", "model.decoder.width=24", "model.decoder.num_blocks=1"),
    *("model.decoder.num_attention=0", "data.batch_size=2", "data.window_seconds=0.5", "training.steps=3"),
    *("training.quantizer_start=1", "training.device=cpu"),
)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder with what `pip install` writes of the entry points in the recipe's pyproject.toml."""
    folder = tmp_path / "packages"
    information = folder / "codec_gumbel-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: codec-gumbel\nVersion: 1.0\n")
    points = re.findall(r'entry-points\."(.+)"\]\n(\w+) = "(.+)"', (RECIPE / "pyproject.toml").read_text())
    ((group, name, value),) = points
    (information / "entry_points.txt").write_text(f"[{group}]\n{name} = {value}\n")
    (folder / "gumbel.py").write_bytes((RECIPE / "gumbel.py").read_bytes())
    return folder


def test_commands_of_the_recipe_train_and_encode_with_it(installed: Path, speech: Path, tmp_path: Path):
    (tmp_path / "FOLDER").mkdir()
    (tmp_path / "FOLDER" / "speech.flac").write_bytes(speech.read_bytes())
    lines = [line for line in (RECIPE / "README.md").read_text().splitlines() if line.startswith("codec ")]
    train, encode = (shlex.split(line)[1:] for line in lines)
    path = os.pathsep.join([str(installed), *filter(None, [os.environ.get("PYTHONPATH")])])
    for words in ([*train, *TINY], [word.replace("in.wav", str(speech)) for word in encode]):
        command = [sys.executable, "-m", "codec", *words]
        subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, check=True)
    codes = codec.read_codes(tmp_path / "out.codes").codes
    assert len(codes) == -(-soundfile.info(speech).frames // 320)
