"""What is fetched of a model on the Hugging Face Hub, by its own client, from a server on this machine."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from codec.model.catalogue import fingerprint

pytest.importorskip("huggingface_hub", reason="needs huggingface_hub")

COMMIT = "0123456789abcdef" * 2 + "01234567"
MODEL = {"config.json", "model.safetensors", "README.md"}
DISCRIMINATORS = {"discriminators.json", "discriminators.safetensors"}
FILES = {name: name.encode() for name in (*MODEL, *DISCRIMINATORS, "notes.txt")}


class Hub(BaseHTTPRequestHandler):
    """One repository, someone/mine."""

    server: "HubServer"

    def do_GET(self) -> None:
        name = self.path.rsplit("/", 1)[-1]
        if self.path == f"/someone/mine/resolve/{COMMIT}/{name}":
            self.answer(self.server.files[name])
        elif self.path == "/api/models/someone/mine/revision/main":
            self.server.times_asked += 1
            self.answer(json.dumps({"id": "someone/mine", "sha": COMMIT}).encode())
        elif self.path.startswith(f"/api/models/someone/mine/tree/{COMMIT}"):
            files = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in self.server.files.items()
            ]
            self.answer(json.dumps(files).encode())
        else:
            self.send_error(404)

    do_HEAD = do_GET

    def answer(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


class HubServer(ThreadingHTTPServer):
    files = FILES
    times_asked = 0  # which commit is the newest

    def run(self, program: str, folder: Path) -> str:
        """What a program prints whose Hub this is."""
        endpoint = f"http://127.0.0.1:{self.server_port}"
        done = subprocess.run(
            [sys.executable, "-c", program],  # the client reads where the Hub is when it is imported
            env=os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder), "HF_HUB_OFFLINE": "0"},
            cwd=folder,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


def test_discriminators_are_fetched_for_training_alone(hub: HubServer, tmp_path: Path):
    program = """if True:
        import os
        from codec.model.catalogue import resolve
        for with_discriminators in (False, True):
            directory = resolve("someone/mine", with_discriminators=with_discriminators)
            print(*os.listdir(directory))
    """
    printed = hub.run(program, tmp_path)
    assert [set(line.split()) for line in printed.splitlines()] == [MODEL, MODEL | DISCRIMINATORS]


def test_training_asks_the_hub_once_so_that_all_it_starts_from_is_of_one_commit(
    hub: HubServer, model_directory: Path, tmp_path: Path
):
    hub.files = {path.name: path.read_bytes() for path in model_directory.iterdir()}
    program = """if True:
        from codec.config import compose
        from codec.training.start import adversarial_start, initial_codec, surprises
        config = compose(["training.init=someone/mine"])
        print(initial_codec(config).fingerprint, adversarial_start(config), len(surprises(config)))
    """
    assert hub.run(program, tmp_path).split() == [fingerprint(model_directory), "20000", "0"]
    assert hub.times_asked == 1
