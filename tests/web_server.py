"""A server on this machine that misbehaves in one of the ways servers do."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """Serves `data` under any name; how is told by the first part of the path, for example /cut/archive.tar.gz."""

    def __init__(self) -> None:
        self.data = bytes(range(256)) * 1200
        self.requests: list[tuple[str, str | None]] = []  # path and range
        self.cut_after = 100_000  # bytes per connection under /cut and /cut-rangeless
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"

            def do_GET(self) -> None:
                wanted = self.headers.get("Range")
                server.requests.append((self.path, wanted))
                server.answer(self, self.path.split("/")[1], wanted)

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler, manner: str, wanted: str | None) -> None:
        if manner == "missing" or (manner == "busy" and len(self.requests) < 3):
            handler.send_error(404 if manner == "missing" else 503)
            return
        data = {"wrong": self.data[::-1], "short": self.data[:-1]}.get(manner, self.data)
        start = 0
        if wanted and manner not in ("rangeless", "cut-rangeless"):
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(data):
                handler.send_response(416)
                handler.send_header("Content-Range", f"bytes */{len(data)}")
                handler.end_headers()
                return
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            handler.send_response(200)
        if manner != "lengthless":
            handler.send_header("Content-Length", str(len(data) - start))
        handler.end_headers()
        end = start + self.cut_after if manner.startswith("cut") else len(data)
        handler.wfile.write(data[start:end])

    def url(self, manner: str) -> str:
        return f"http://127.0.0.1:{self._http.server_port}/{manner}"

    @property
    def md5(self) -> str:
        return hashlib.md5(self.data, usedforsecurity=False).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
