"""Weights of metrics: read without running anything, fetched only whole and as published."""

import hashlib
import os
import struct
import zipfile

import pytest
import torch

from codec.errors import ModelError
from codec.evaluation.checkpoint import follow, read_tensors
from codec.evaluation.weights import Artefact, cache_folder, check, fetch


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CODEC_CACHE", str(tmp_path / "cache"))


def artefact(server, manner: str = "good") -> Artefact:
    return Artefact("weights.bin", server.url(manner), len(server.data), server.sha256, "MIT")


def test_download_is_kept_and_not_repeated(server):
    path = fetch(artefact(server))
    assert path.read_bytes() == server.data
    assert path.parent == cache_folder()
    assert fetch(artefact(server, "missing")) == path


def test_interrupted_download_goes_on(server):
    server.cut_after = 1000
    with pytest.raises(ModelError, match="cuts the connection"):
        fetch(artefact(server, "cut-rangeless"))
    assert fetch(artefact(server)).read_bytes() == server.data
    assert server.requests[-1] == ("/good", "bytes=1000-")


@pytest.mark.parametrize(
    ("manner", "what"),
    [("wrong", "serves a file with the sum"), ("short", "are published"), ("missing", "answers 404 Not Found")],
)
def test_download_of_something_else_is_refused_and_not_kept(server, manner, what):
    with pytest.raises(
        ModelError, match=rf"^weights\.bin could not be .*{what}.*; fetch it by other means and name it$"
    ):
        fetch(artefact(server, manner))
    assert list(cache_folder().iterdir()) == []


def test_no_network_is_one_sentence(server):
    server.close()
    with pytest.raises(ModelError, match=r"cannot be reached .* fetch it by other means"):
        fetch(artefact(server))


def test_without_a_home_folder_nothing_is_there_and_a_download_says_what_to_set(server, monkeypatch):
    for variable in ("CODEC_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 9)  # of no user in the table, as in a container
    assert not artefact(server).cached.is_file()
    with pytest.raises(ModelError, match=r"no home folder to keep weights\.bin in; name a folder in CODEC_CACHE"):
        fetch(artefact(server))


def test_folder_that_cannot_be_made_is_one_sentence(server, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CODEC_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelError, match=r"file/cache: Not a directory; fetch it by other means"):
        fetch(artefact(server))


def test_changed_file_in_the_cache_is_refused(server):
    path = fetch(artefact(server))
    path.write_bytes(server.data[::-1])
    with pytest.raises(ModelError, match="delete it and try again"):
        fetch(artefact(server))


def test_only_a_file_of_the_published_length_is_held_against_its_sum(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"damaged")
    published = Artefact("weights.bin", "https://example.org", 7, hashlib.sha256(b"weights").hexdigest(), "MIT")
    with pytest.raises(ModelError, match="another SHA-256"):
        check(published, path)
    path.write_bytes(b"other weights")
    check(published, path)


# -- checkpoints


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_tensors_are_read_as_torch_reads_them(tmp_path, dtype):
    whole = torch.arange(24, dtype=dtype).reshape(4, 6)
    state = {"whole": whole, "turned": whole.T, "part": whole[1:3, ::2], "parameter": torch.nn.Parameter(whole.clone())}
    torch.save(state | {"text": "x", "counts": torch.arange(3)}, tmp_path / "state.pt")
    found = read_tensors(tmp_path / "state.pt")
    assert set(found) == set(state)
    assert all(torch.equal(found[name], state[name].detach()) and found[name].dtype == dtype for name in state)


def test_module_state_dict_and_choice_of_names(tmp_path):
    torch.save({"state_dict": torch.nn.Linear(2, 3).state_dict()}, tmp_path / "state.pt")
    assert set(read_tensors(tmp_path / "state.pt")) == {"weight", "bias"}
    assert set(read_tensors(tmp_path / "state.pt", lambda name: name == "bias")) == {"bias"}


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol_of_pickle_is_followed(protocol):
    import pickle
    from collections import OrderedDict, deque

    value = {"a": [1, 2.5, None, True], "b": (1, "x"), "c": {"d": -(2**70)}}
    assert follow(pickle.dumps(value, protocol)) == value
    assert follow(pickle.dumps(OrderedDict(a=1), protocol)) == {"a": 1}
    assert set(follow(pickle.dumps({"q": deque([1, 2]), "s": {1, 2}, "f": frozenset({3})}, protocol))) == {
        "q",
        "s",
        "f",
    }


def broken(path, kind):
    if kind == "text":
        path.write_text("x")
    elif kind == "list":
        torch.save([1], path)
    elif kind == "no tensors":
        torch.save({"a": 1}, path)
    elif kind == "cut":
        torch.save({"a": torch.ones(1000)}, path)
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "script":
        torch.jit.script(torch.nn.Linear(1, 1)).save(path)
    elif kind == "other archive":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.txt", "x")
    elif kind == "bad pickle":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02}q")
    elif kind in ("too long", "not compressed"):
        torch.save({"a": torch.ones(10)}, path)
        data = bytearray(path.read_bytes())
        entry = data.index(b"PK\1\2")  # of data.pkl in the table at the end
        place, value = (20, struct.pack("<LL", 10**6, 10**6)) if kind == "too long" else (10, struct.pack("<H", 8))
        data[entry + place : entry + place + len(value)] = value
        path.write_bytes(data)
    elif kind == "safetensors":
        path.write_bytes(b"x" * 100)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("absent", "no such file"),
        ("text", "is damaged, or not a checkpoint"),
        ("list", "is not a state dict, but a list"),
        ("no tensors", "holds none of the weights"),
        ("cut", "is damaged"),
        ("script", "TorchScript"),
        ("other archive", "another archive"),
        ("bad pickle", "is damaged"),
        ("too long", "is damaged"),
        ("not compressed", "is damaged"),
        ("safetensors", "is not a whole safetensors file"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, kind, what):
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pt")
    broken(path, kind)
    with pytest.raises(ModelError, match=what) as caught:
        read_tensors(path)
    assert str(path) in str(caught.value)
