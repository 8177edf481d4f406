"""A server of one file on this machine, which breaks off, caps and refuses as it is told to."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from utils.transfer import Patience

ONCE, TWICE = (Patience(attempts=attempts, pause_s=0, timeout_s=10) for attempts in (1, 2))


class FileServer(ThreadingHTTPServer):
    """Serves `content` at `path`, and sends /moved on to it.

    Attributes:
        status: what every request is answered with, unless it is 200.
        state: headers that name the state of the file.
        cuts: it hangs up after `cuts.pop(0)` bytes of an answer.
        most: bytes that a part of the file has, however many were asked for.
        ranges: whether it can send a part of the file.
        knows_if_range: whether it compares the state before it does so.
        says_length: whether answers say how long they are.
        asked: Range and If-Range of each request for the file.
    """

    def __init__(self, content: bytes, path: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content, self.path, self.status = content, path, 200
        self.state, self.cuts = dict[str, str](), list[int]()
        self.most: int | None = None
        self.ranges, self.knows_if_range, self.says_length = True, True, True
        self.asked: list[tuple[str | None, str | None]] = []

    @property
    def root(self) -> str:
        """The address of the server."""
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def url(self) -> str:
        """The address of the file."""
        return self.root + self.path

    @property
    def spans(self) -> list[str | None]:
        """What was asked for of the file."""
        return [span for span, _ in self.asked]


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        server, total = self.server, len(self.server.content)
        if self.path == "/moved":
            self._head(302, {"Location": server.url, "Content-Length": "0"})
            return
        span, condition = self.headers.get("Range"), self.headers.get("If-Range")
        server.asked.append((span, condition))
        if server.status != 200 or self.path != server.path:
            self._head(404 if server.status == 200 else server.status, {"Content-Length": "0"})
            return
        holds = condition is None or not server.knows_if_range or condition in server.state.values()
        start = int(span[6:-1]) if span and holds and server.ranges else 0
        if start >= total:
            self._head(416, {"Content-Range": f"bytes */{total}", "Content-Length": "0", **server.state})
            return
        end = min(total, start + server.most) if start and server.most else total
        length = {"Content-Length": str(end - start)} if server.says_length else {}
        place = {"Content-Range": f"bytes {start}-{end - 1}/{total}"} if start else {}
        self._head(206 if start else 200, {**length, **place, **server.state})
        self.wfile.write(server.content[start : start + server.cuts.pop(0) if server.cuts else end])

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextlib.contextmanager
def serving(content: bytes, path: str) -> Iterator[FileServer]:
    """A server that runs inside the block."""
    with FileServer(content, path) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
