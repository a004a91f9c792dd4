"""A local web server that can simulate failures of a download."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ANSWERS = (
    "",  # supports range requests
    "no ranges",  # ignores Range, sends the whole body
    "careless",  # ignores If-Range: sends a part of another version
    "parts only",  # status 206, though the whole was requested
    "breaks off",  # closes the connection after half of the body
    "no length",
    "silent about length",  # no Content-Range in the answer 416
    "missing",
    "redirect",  # to `location`
    "mute",  # no answer for a second
)


class Server(ThreadingHTTPServer):
    """Serves `body` under every path; `mode`, one of ANSWERS, selects the failure."""

    body = b""
    mode = ""
    etag = '"one"'
    location = ""
    asked: list[tuple[str | None, str | None]]  # Range and If-Range of each request
    scheme = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        body, mode, etag = self.server.body, self.server.mode, self.server.etag
        assert mode in ANSWERS
        asked, only_if = self.headers["Range"], self.headers["If-Range"]
        self.server.asked.append((asked, only_if))
        if mode == "redirect":
            self.send_response(302)
            self.send_header("Location", self.server.location)
            self.end_headers()
            return
        if mode == "missing":
            self.send_error(404)
            return
        if mode == "mute":
            threading.Event().wait(1)
            return
        start = int(re.findall(r"\d+", asked)[0]) if asked and mode != "no ranges" else 0
        if only_if not in (None, etag) and mode != "careless":
            start = 0
        if start and start >= len(body):
            self.send_response(416)
            if mode != "silent about length":
                self.send_header("Content-Range", f"bytes */{len(body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start or mode == "parts only" else 200)
        if start or mode == "parts only":
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if etag:
            self.send_header("ETag", etag)
        if mode != "no length":
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        end = len(body) // 2 if mode == "breaks off" else len(body)
        self.wfile.write(body[start:end])

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def serving() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        server.asked = []
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()
