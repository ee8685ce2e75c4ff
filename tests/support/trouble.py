"""A proxy in front of an S3 server that injects faults on demand: real HTTP, real clients, real retries."""

from __future__ import annotations

import contextlib
import http.client
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

#: busy: 503 SlowDown, not executed. slow: the response is delayed. short: the response body is cut off in the middle.
#: lie: executed, but answered with 500. silent: executed, and the connection closed without a response. forbidden: 403.
#: blind: executed without its conditions (If-Match, If-None-Match).
Kind = Literal["busy", "slow", "short", "lie", "silent", "forbidden", "blind"]
_CONDITIONS = ("if-match", "if-none-match")


@dataclass
class Fault:
    """One kind of fault, and the requests that it applies to.

    Attributes:
        kind: what happens.
        times: number of requests that fail.
        method: HTTP method of the requests; any if empty.
        path: regular expression that matches their path and query.
        seconds: delay of ``slow``.
        every: of the matching requests, every n-th one fails.
        matched: number of matching requests so far.
    """

    kind: Kind
    times: int = 1
    method: str = ""
    path: str = ""
    seconds: float = 1.0
    every: int = 1
    matched: int = 0


@dataclass
class Proxy:
    """The proxy's URL, the faults to inject, and the injected ones."""

    url: str
    faults: list[Fault] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(
        self,
        kind: Kind,
        times: int = 1,
        method: str = "",
        path: str = "",
        seconds: float = 1.0,
        every: int = 1,
    ) -> None:
        """Inject a fault into the next matching requests."""
        self.faults.append(Fault(kind, times, method, path, seconds, every))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Inject nothing in the block."""
        with self.lock:
            faults, self.faults = self.faults, []
        try:
            yield
        finally:
            with self.lock:
                self.faults = faults

    def take(self, method: str, path: str) -> Fault | None:
        """The fault to inject into a request, if any."""
        with self.lock:
            for fault in self.faults:
                if fault.times < 1 or fault.method not in ("", method) or not re.search(fault.path, path):
                    continue
                fault.matched += 1
                if fault.matched % fault.every == 0:
                    fault.times -= 1
                    self.done.append(f"{fault.kind} {method} {path}")
                    return fault
        return None


class Handler(BaseHTTPRequestHandler):
    """Forwards a request, or injects a fault."""

    protocol_version = "HTTP/1.1"
    server: Any

    def _handle(self) -> None:
        body = self._body()
        fault = self.server.proxy.take(self.command, self.path)
        kind = fault.kind if fault else None
        if kind == "busy":
            return self._fail(503, "SlowDown")
        if kind == "forbidden":
            return self._fail(403, "AccessDenied")
        if fault and kind == "slow":
            time.sleep(fault.seconds)
        status, headers, content = self._forward(body, blind=kind == "blind")
        if kind == "lie":
            return self._fail(500, "InternalError")
        if kind == "silent":
            self.close_connection = True
            return None
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "content-length", "connection", "server", "date"):
                self.send_header(name, value)
        length = next((v for n, v in headers if n.lower() == "content-length"), str(len(content)))
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            if kind == "short":
                self.wfile.write(content[: len(content) // 2])
                self.close_connection = True
            else:
                self.wfile.write(content)
        return None

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _forward(self, body: bytes, *, blind: bool) -> tuple[int, list[tuple[str, str]], bytes]:
        there = urlsplit(self.server.target)
        connection = http.client.HTTPConnection(there.hostname or "", there.port, timeout=60)
        skip = (
            "transfer-encoding",
            "content-length",
            "expect",
            "connection",
            *(_CONDITIONS if blind else ()),
        )
        headers = {n: v for n, v in self.headers.items() if n.lower() not in skip}
        try:
            connection.request(
                self.command, self.path, body or None, headers | {"Content-Length": str(len(body))}
            )
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def _fail(self, status: int, code: str) -> None:
        content = (
            f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>made by the test</Message></Error>"
        )
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content.encode())

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    proxy: Proxy
    target: str

    def handle_error(self, *_: object) -> None:
        """Ignore clients that disconnect."""


@contextlib.contextmanager
def between(target: str) -> Iterator[Proxy]:
    """Run a proxy in front of ``target``, without faults at first."""
    with _Server(("127.0.0.1", 0), Handler) as server:
        server.target = target
        server.proxy = Proxy(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server.proxy
        finally:
            server.shutdown()
            thread.join(5)
