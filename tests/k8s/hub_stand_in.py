"""Stands in for the models' hub: any repository, at any revision, holds the same few files."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FILES = {"config.json": b'{"model_type": "qwen2"}', "model.safetensors": b"weights"}


@contextmanager
def hub() -> Iterator[tuple[str, list[str]]]:
    """Serve while the block runs; gives the address, and the paths that are asked for."""
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(asked))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()


def _handler(asked: list[str]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, *, with_body: bool) -> None:
            path = self.path.partition("?")[0]
            asked.append(path)
            words, headers, body = path.split("/"), dict[str, str](), b""
            if "tree" in words:
                body = json.dumps([_entry(name, content) for name, content in FILES.items()]).encode()
            elif "resolve" in words:
                body = FILES[words[-1]]
                commit = words[words.index("resolve") + 1]
                headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": commit}
            self.send_response(200 if body else 404)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body if with_body else b"")

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def _entry(name: str, content: bytes) -> dict[str, str | int]:
    return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
