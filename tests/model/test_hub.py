"""What is fetched of a model on the Hugging Face Hub, by its own client, from a server on this machine."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

pytest.importorskip("huggingface_hub", reason="needs huggingface_hub")

COMMIT = "0123456789abcdef" * 2 + "01234567"
MODEL = {"config.json", "model.safetensors", "README.md"}
DISCRIMINATORS = {"discriminators.json", "discriminators.safetensors"}
FILES = {name: name.encode() for name in (*MODEL, *DISCRIMINATORS, "notes.txt")}


class Hub(BaseHTTPRequestHandler):
    """One repository, someone/mine."""

    def do_GET(self) -> None:
        name = self.path.rsplit("/", 1)[-1]
        if self.path == f"/someone/mine/resolve/{COMMIT}/{name}":
            self.answer(FILES[name])
        elif self.path == "/api/models/someone/mine/revision/main":
            self.answer(json.dumps({"id": "someone/mine", "sha": COMMIT}).encode())
        elif self.path.startswith(f"/api/models/someone/mine/tree/{COMMIT}"):
            files = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in FILES.items()
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


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_discriminators_are_fetched_for_training_alone(endpoint, tmp_path):
    program = """if True:
        import os
        from codec.model.catalogue import resolve
        for with_discriminators in (False, True):
            directory = resolve("someone/mine", with_discriminators=with_discriminators)
            print(*os.listdir(directory))
    """
    done = subprocess.run(
        [sys.executable, "-c", program],  # the client reads where the Hub is when it is imported
        env=os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert [set(line.split()) for line in done.stdout.splitlines()] == [MODEL, MODEL | DISCRIMINATORS]
