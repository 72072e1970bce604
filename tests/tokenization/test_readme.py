"""What README says of tokens works as it stands there."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import codec
from codec.cli import run

README = (Path(__file__).parents[2] / "README.md").read_text()
SECTION = re.search(r"^## Tokens for a language model\n(.*?)^## ", README, re.MULTILINE | re.DOTALL)[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, speech: Path, model_directory: Path) -> Path:
    """`recordings` of two speakers, their `lists` and `tokens`."""
    folder = tmp_path_factory.mktemp("corpus")
    for speaker in ("anna", "ben"):
        (folder / "recordings" / speaker).mkdir(parents=True)
        shutil.copy(speech, folder / "recordings" / speaker / "1.flac")
    assert run(["prepare", "folder", str(folder / "recordings"), "--out", str(folder / "lists"), "--jobs", "1"]) == 0
    arguments = ["tokenize", str(folder / "lists" / "all.tsv"), str(folder / "tokens"), "--jobs", "1"]
    assert run([*arguments, "--model", str(model_directory)]) == 0
    return folder


@pytest.fixture
def names(folder: Path, speech: Path, model_directory: Path, monkeypatch) -> dict[str, object]:
    """What there is after all Python of the section was run."""
    monkeypatch.chdir(folder)
    names = {"codec": codec, "torch": torch, "np": np, "model": codec.load(model_directory), "code": 3, "play": len}
    for block in re.findall(r"^```python\n(.*?)^```", SECTION, re.MULTILINE | re.DOTALL):
        exec(block, names)
    return names


def test_codes_become_the_sound_of_the_utterance(names, speech):
    wav = torch.from_numpy(codec.audio.read(speech)[0])[None]
    assert names["codes"].dtype == torch.int64
    assert names["codes"].tolist() == names["model"].encode(wav)[0].tolist()
    assert names["wav"].shape == wav.shape
    assert names["lengths"].tolist() == [len(names["codes"])] * 2
