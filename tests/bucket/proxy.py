"""A proxy before an object store that plants faults, and keeps a record of what was asked."""

import http.client
import http.server
import os
import random
import socket
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
FAILED = b"<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>"
FAULTS = ("slow down", "failed", "reset", "lost answer", "truncated", "slow")
SLOW_SECONDS = 0.2


@dataclass(frozen=True)
class Asked:
    """A request and what was answered; status 0: nothing was."""

    method: str
    path: str
    query: str
    status: int
    sent_bytes: int

    @property
    def kind(self) -> str:
        """A listing is told from a read."""
        return "LIST" if "list-type" in self.query else self.method


@dataclass
class Proxy:
    """Forwards to a store.

    Attributes:
        port: Of the store, on this machine.
        faults: For the next requests, in order; None lets one pass.
        draw: Where `faults` is empty, the fault of a request.
        asked: All requests so far.
    """

    port: int
    faults: deque[str | None] = field(default_factory=deque)
    draw: Callable[[], str | None] = lambda: None
    asked: list[Asked] = field(default_factory=list)
    uri_options: str = ""
    _conditional: threading.Lock = field(default_factory=threading.Lock)

    def kinds(self) -> Counter[str]:
        """Requests by kind."""
        return Counter(asked.kind for asked in self.asked)

    def forward(self, handler: http.server.BaseHTTPRequestHandler, body: bytes) -> http.client.HTTPResponse:
        """Ask the store. moto looks for an object and then puts it, with no lock: conditional puts are its one by one."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {
            name: value
            for name, value in handler.headers.items()
            if name.lower() not in {"connection", "expect", "transfer-encoding"}
        }
        conditional = "If-None-Match" in handler.headers
        if conditional:
            self._conditional.acquire()
        try:
            connection.request(handler.command, handler.path, body, headers)
            answer = connection.getresponse()
            answer.content = b"" if handler.command == "HEAD" else answer.read()  # type: ignore[attr-defined]
            return answer
        finally:
            if conditional:
                self._conditional.release()
            connection.close()

    def next_fault(self) -> str | None:
        try:
            return self.faults.popleft()
        except IndexError:
            return self.draw()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Server"

    def answer(self) -> None:
        chunked = "chunked" in self.headers.get("Transfer-Encoding", "")
        body = b"".join(self.chunks()) if chunked else self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.serve(self.server.proxy.next_fault(), body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

    def chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass

    def serve(self, fault: str | None, body: bytes) -> None:
        if fault in {"slow down", "failed"}:
            status, content = (503, SLOW_DOWN) if fault == "slow down" else (500, FAILED)
            return self.send(status, [("Content-Type", "application/xml")], content, len(content))
        if fault == "reset":
            self.note(0)
            return self.hang_up()
        if fault == "slow":
            time.sleep(SLOW_SECONDS)
        answer = self.server.proxy.forward(self, body)
        content: bytes = answer.content  # type: ignore[attr-defined]
        if fault == "lost answer":
            self.note(0)
            return self.hang_up()
        kept = ("connection", "content-length", "transfer-encoding", "date", "server")
        headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in kept]
        size = int(answer.headers.get("Content-Length", len(content))) if self.command == "HEAD" else len(content)
        if fault == "truncated" and content:
            self.send(answer.status, headers, content[: len(content) // 2], size)
            return self.hang_up()
        return self.send(answer.status, headers, content, size)

    def note(self, status: int) -> None:
        parts, sent = urlsplit(self.path), int(self.headers.get("Content-Length", 0))
        self.server.proxy.asked.append(Asked(self.command, parts.path, parts.query, status, sent))

    def send(self, status: int, headers: list[tuple[str, str]], content: bytes, size: int) -> None:
        self.note(status)
        self.send_response(status)
        for name, value in [*headers, ("Content-Length", str(size))]:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def hang_up(self) -> None:
        """Reset the connection, as a machine does that is taken away."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())
        self.close_connection = True

    def log_message(self, *arguments: Any) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, proxy: Proxy) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.proxy = proxy

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that a fault was planted for hang up."""


@contextmanager
def faulty(port: int) -> Iterator[Proxy]:
    """A proxy before the store on a port."""
    proxy = Proxy(port)
    with Server(proxy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        proxy.uri_options = f"?endpoint_override=127.0.0.1:{server.server_address[1]}&scheme=http&region=us-east-1"
        yield proxy
        server.shutdown()


def every(share: float, seed: int) -> Callable[[], str | None]:
    """A share of requests that fail, in any of the ways."""
    chance, lock = random.Random(seed), threading.Lock()

    def draw() -> str | None:
        with lock:
            return chance.choice(FAULTS) if chance.random() < share else None

    return draw
