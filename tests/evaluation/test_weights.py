"""Weights of metrics: read without running anything, fetched only whole and as published."""

import hashlib
import http.server
import threading
import zipfile

import pytest
import torch

from codec.errors import ModelError
from codec.evaluation.checkpoint import follow, read_tensors
from codec.evaluation.weights import Artefact, cache_folder, check, download

CONTENT = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CODEC_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def server(tmp_path):
    """Serves `CONTENT` under any name; `cut` sends half of it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if "missing" in self.path:
                self.send_error(404)
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(CONTENT[: len(CONTENT) // 2] if "cut" in self.path else CONTENT)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def artefact(url: str, content: bytes = CONTENT) -> Artefact:
    return Artefact("weights.bin", url, len(CONTENT), hashlib.sha256(content).hexdigest(), "MIT")


def test_download_is_kept_and_not_repeated(server):
    path = download(artefact(f"{server}/good"))
    assert path.read_bytes() == CONTENT
    assert path.parent == cache_folder()
    assert download(artefact(f"{server}/missing")) == path


@pytest.mark.parametrize(
    ("place", "content", "what"),
    [
        ("cut", CONTENT, f"sent {len(CONTENT) // 2} bytes"),
        ("good", CONTENT[::-1], "with SHA-256"),
        ("missing", CONTENT, "cannot be had"),
    ],
)
def test_download_of_something_else_is_refused_and_not_kept(server, place, content, what):
    with pytest.raises(ModelError, match=what):
        download(artefact(f"{server}/{place}", content))
    assert list(cache_folder().iterdir()) == []


def test_no_network_is_one_sentence():
    with pytest.raises(ModelError, match=r"cannot be had .* fetch it by other means"):
        download(artefact("http://127.0.0.1:9/weights"))


def test_changed_file_in_the_cache_is_refused(server):
    path = download(artefact(f"{server}/good"))
    path.write_bytes(CONTENT[::-1])
    with pytest.raises(ModelError, match="delete it and try again"):
        download(artefact(f"{server}/good"))


def test_only_a_file_of_the_published_length_is_held_against_its_sum(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(CONTENT[::-1])
    with pytest.raises(ModelError, match="another SHA-256"):
        check(artefact("here"), path)
    path.write_bytes(b"other weights")
    check(artefact("here"), path)


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


@pytest.mark.parametrize("protocol", [2, 4, 5])
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
        ("safetensors", "is not a whole safetensors file"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, kind, what):
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pt")
    broken(path, kind)
    with pytest.raises(ModelError, match=what) as caught:
        read_tensors(path)
    assert str(path) in str(caught.value)
