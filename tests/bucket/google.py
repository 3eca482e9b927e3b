"""A server that speaks as much of Google Cloud Storage's JSON API as pyarrow and we ask of it. Not the real one: nothing here shows that that one
does the same.
"""

import base64
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Object:
    content: bytes
    metadata: dict[str, str]
    generation: int


@dataclass
class Google:
    """Buckets' objects by `bucket/name`.

    Attributes:
        fails: Statuses that the next requests are answered with.
        loses: Answers that are lost after the request has had its effect.
    """

    objects: dict[str, Object] = field(default_factory=dict)
    sessions: dict[str, tuple[str, dict[str, Any], bytearray]] = field(default_factory=dict)
    fails: list[int] = field(default_factory=list)
    loses: int = 0
    uri_options: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _generation: int = 0

    def put(self, bucket: str, facts: dict[str, Any], content: bytes, condition: str | None) -> tuple[int, Any]:
        path = f"{bucket}/{facts['name']}"
        with self._lock:
            if condition == "0" and path in self.objects:
                return 412, {"error": {"code": 412, "message": "conditionNotMet"}}
            self._generation += 1
            self.objects[path] = Object(content, facts.get("metadata", {}), self._generation)
            return 200, self.described(path)

    def described(self, path: str) -> dict[str, Any]:
        bucket, _, name = path.partition("/")
        found, time = self.objects[path], "2030-01-01T00:00:00Z"
        return {
            "kind": "storage#object", "bucket": bucket, "name": name, "size": str(len(found.content)), "metadata": found.metadata,
            "generation": str(found.generation), "metageneration": "1", "timeCreated": time, "updated": time, "etag": "e",
            "md5Hash": base64.b64encode(hashlib.md5(found.content).digest()).decode(), "storageClass": "STANDARD",
        }  # fmt: skip

    def listed(self, bucket: str, prefix: str, delimiter: str | None) -> dict[str, Any]:
        items, prefixes = list[Any](), set[str]()
        for path in sorted(path for path in self.objects if path.startswith(f"{bucket}/{prefix}")):
            rest = path.removeprefix(f"{bucket}/{prefix}")
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest.partition(delimiter)[0] + delimiter)
            else:
                items.append(self.described(path))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Server"

    def answer(self) -> None:
        google = self.server.google
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if google.fails:
            return self.send(google.fails.pop(0), {"error": {"message": "planted"}})
        status, content = self.served(google, body)
        if google.loses:
            google.loses -= 1
            self.close_connection = True
            return None
        return self.send(status, content)

    do_GET = do_POST = do_PUT = do_DELETE = answer  # noqa: N815

    def served(self, google: Google, body: bytes) -> tuple[int, Any]:
        parts = urlsplit(self.path)
        options = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if parts.path.startswith("/upload/"):
            return self.uploaded(google, parts.path.split("/")[5], options, body)
        if not parts.path.startswith("/storage/v1/b/"):
            return 404, {"error": {"code": 404, "message": f"not spoken: {parts.path}"}}
        bucket, _, name = parts.path.removeprefix("/storage/v1/b/").partition("/o")
        path = f"{bucket}/{unquote(name.removeprefix('/'))}"
        if not name.removeprefix("/"):
            return 200, google.listed(bucket, options.get("prefix", ""), options.get("delimiter"))
        if path not in google.objects:
            return 404, {"error": {"code": 404, "message": "notFound"}}
        if self.command == "DELETE":
            google.objects.pop(path, None)
            return 204, b""
        return (200, google.objects[path].content) if options.get("alt") == "media" else (200, google.described(path))

    def uploaded(self, google: Google, bucket: str, options: dict[str, str], body: bytes) -> tuple[int, Any]:
        kind = options.get("uploadType")
        if kind == "multipart":
            boundary = self.headers["Content-Type"].partition("boundary=")[2].strip("\"'").encode()
            _, head, media, _ = body.split(b"--" + boundary)
            content = media.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
            facts = json.loads(head.partition(b"\r\n\r\n")[2])
            return google.put(bucket, facts, content, options.get("ifGenerationMatch"))
        if "upload_id" not in options:
            number = str(len(google.sessions))
            facts = {"name": options.get("name"), **(json.loads(body) if body else {})}
            google.sessions[number] = (bucket, facts, bytearray())
            return 200, number
        bucket, facts, so_far = google.sessions[options["upload_id"]]
        total = self.headers["Content-Range"].rpartition("/")[2]
        so_far += body
        if total == "*":
            return 308, len(so_far)
        return google.put(bucket, facts, bytes(so_far), None)

    def send(self, status: int, content: Any) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        start, total = 0, len(body)
        if self.headers.get("Range") and isinstance(content, bytes) and status == 200:
            first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
            start, status = int(first), 206
            body = body[start : int(last) + 1 if last else total]
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{total}")
        if isinstance(content, str):
            self.send_header("Location", f"http://{self.headers['Host']}{self.path}&upload_id={content}")
        if status == 308:
            self.send_header("Range", f"bytes=0-{content - 1}")
            body = b""
        self.send_header("Content-Length", str(len(body)))
        self.send_header(
            "Content-Type", "application/octet-stream" if isinstance(content, bytes) else "application/json"
        )
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, google: Google) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.google = google


@contextmanager
def google_stand_in() -> Iterator[Google]:
    google = Google()
    with Server(google) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        google.uri_options = f"?endpoint_override=127.0.0.1:{server.server_address[1]}&scheme=http"
        yield google
        server.shutdown()
