"""A web server that commits faults, and what the tests of sets behind URLs look at."""

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cadiff.shards.remote import Remote

CAP = 10**9
DATA = bytes(range(256)) * 40  # 10,240 bytes


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def get(remote: Remote, name: str, data: bytes) -> bytes:
    return remote.file(name, len(data), digest(data)).read_bytes()


def wait_until(true) -> None:
    limit = time.monotonic() + 20
    while not true():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.01)


def kept(cache: Path) -> set[str]:
    return {path.name for path in cache.glob("*/[a-z]*")}


def temporary(cache: Path) -> list[Path]:
    return list(cache.glob("*/.*.tmp"))


class Site:
    """A web server with files, faults to commit in turn, and a note of each request and its end."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: list[str] = []
        self.events: list[str] = []
        self.pause_s = 0.0  # between the tenths of a file
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                site.answer(self)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/set"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def answer(self, request) -> None:
        name = request.path.removeprefix("/set/")
        self.events.append(f"get {name}")
        body, fault = self.files.get(name), self.faults.pop(0) if self.faults else ""
        status = 404 if body is None else 503 if fault == "busy" else 200
        request.send_response(status)
        if status != 200:
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        flipped = body[:-1] + bytes([body[-1] ^ 1])
        sent = {"flip": flipped, "cut": body[:-200], "more": body * 3}.get(fault, body)
        request.send_header("Content-Length", str(len(body) if fault == "cut" else len(sent)))
        request.end_headers()
        tenth = -(-len(sent) // 10)
        for begin in range(0, len(sent), tenth):
            time.sleep(self.pause_s)
            if begin + tenth >= len(sent):
                self.events.append(f"end {name}")
            try:
                request.wfile.write(sent[begin : begin + tenth])
            except OSError:
                return  # the reader is gone
        request.close_connection = True


@contextmanager
def served() -> Iterator[Site]:
    """A server that holds a.tar."""
    site = Site()
    site.files["a.tar"] = DATA
    yield site
    site.server.shutdown()
    site.server.server_close()
