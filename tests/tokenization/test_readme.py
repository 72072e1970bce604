"""What README says of tokens works as it stands there."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import codec
from codec.audio import read
from codec.cli import run

README = (Path(__file__).parents[2] / "README.md").read_text()
SECTION = re.search(r"^## Tokens for a language model\n(.*?)^## ", README, re.MULTILINE | re.DOTALL)[1]

TEXTS = ['"Yes', "Nö, "]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, speech: Path, model_directory: Path) -> Path:
    """`recordings` of two speakers, their `lists`, with a column of texts, and `tokens`."""
    folder = tmp_path_factory.mktemp("corpus")
    wav, sample_rate = soundfile.read(speech)
    for speaker, start in (("anna", 0), ("ben", 48000)):
        (folder / "recordings" / speaker).mkdir(parents=True)
        soundfile.write(folder / "recordings" / speaker / "1.flac", wav[start:], sample_rate)
    assert run(["prepare", "folder", str(folder / "recordings"), "--out", str(folder / "lists"), "--jobs", "0"]) == 0
    header, *lines = (folder / "lists" / "all.tsv").read_text().splitlines()
    rows = [f"{header}\ttext", *(f"{line}\t{text}" for line, text in zip(lines, TEXTS, strict=True))]
    (folder / "lists" / "all.tsv").write_text("\n".join(rows) + "\n")
    arguments = ["tokenize", str(folder / "lists" / "all.tsv"), str(folder / "tokens"), "--jobs", "0"]
    assert run([*arguments, "--model", str(model_directory)]) == 0
    return folder


@pytest.fixture
def names(folder: Path, speech: Path, model_directory: Path, monkeypatch) -> dict[str, object]:
    """What there is after all Python of the section was run."""
    monkeypatch.chdir(folder)
    names = {"codec": codec, "csv": csv, "np": np, "torch": torch}
    names |= {"model": codec.load(model_directory), "code": 3, "play": len}
    names["others"] = [codec.StreamDecoder(names["model"]) for _ in range(2)]
    for other in names["others"]:
        other.push(torch.tensor([5, 6]))
    for block in re.findall(r"^```python\n(.*?)^```", SECTION, re.MULTILINE | re.DOTALL):
        exec(block, names)
    return names


def codes_of(wav: torch.Tensor, model: codec.Codec) -> list[int]:
    return model.encode(wav[None])[0].tolist()


def test_codes_become_the_sound_of_the_utterance(names, speech):
    wav = torch.from_numpy(read(speech)[0])
    assert names["codes"].dtype == torch.int64
    assert names["codes"].tolist() == codes_of(wav, names["model"])
    assert names["wav"].shape == (1, *wav.shape)
    assert names["lengths"].tolist() == [-(-wav.shape[1] // 320), -(-(wav.shape[1] - 48000) // 320)]


def test_data_set_of_torch_loads_every_utterance_and_its_speaker(names, speech):
    wav = torch.from_numpy(read(speech)[0])
    loader = torch.utils.data.DataLoader(names["Utterances"]("tokens"), batch_size=None)
    loaded = {names["tokens"].places.speakers[speaker]: codes.tolist() for codes, speaker in loader}
    model = names["model"]
    assert loaded == {"anna": codes_of(wav, model), "ben": codes_of(wav[:, 48000:], model)}


def test_texts_are_joined_by_id(names):
    tokens = names["tokens"]
    assert [(text, codes.tolist()) for text, codes in names["pairs"]] == [
        (TEXTS[0], tokens["anna/1"].tolist()),
        (TEXTS[1], tokens["ben/1"].tolist()),
    ]
