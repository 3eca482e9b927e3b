"""Writes to Google Cloud Storage through its JSON API: pyarrow 26 puts no object conditionally.

Knows its credentials from where Google's tools look (GOOGLE_APPLICATION_CREDENTIALS, gcloud's own, the service account of the pod or
machine), as pyarrow does.
"""

import errno
import json
import os
import secrets
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from generation.errors import StorageError

_SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
_TIMEOUT_SECONDS = (5, 30)
"""To connect, and between any two bytes of an answer."""
_WRITER = "psi-writer"


@lru_cache(maxsize=16)
def open_gcs(anonymous: bool, options: tuple[tuple[str, str], ...], process: int) -> "GcsObjects":
    """The client for the options of an URI; one for a process, as a forked one must not use the connections of its parent.

    Raises:
        StorageError: A package is missing.
        OSError: There are no credentials.
    """
    del process
    try:
        from google.auth import default
        from google.auth.exceptions import DefaultCredentialsError
        from google.auth.transport.requests import AuthorizedSession
        from requests import Session
    except ImportError as error:
        raise StorageError("gs://: writing to a bucket needs google-auth and requests; install psi[gcs]") from error
    given = dict(options)
    endpoint = f"{given.get('scheme', 'https')}://{given.get('endpoint_override', 'storage.googleapis.com')}"
    if anonymous:
        return GcsObjects(Session(), endpoint)
    try:
        credentials, _ = default(scopes=[_SCOPE])
    except DefaultCredentialsError as error:
        raise OSError(str(error)) from error
    return GcsObjects(AuthorizedSession(credentials), endpoint)


class GcsObjects:
    """`Objects` of Google Cloud Storage.

    Args:
        session: A `requests` session that signs what it sends.
        endpoint: URL of the service.
    """

    def __init__(self, session: Any, endpoint: str) -> None:
        self._session = session
        self._endpoint = endpoint
        self.is_exclusive = False

    def put_new(self, path: str, content: bytes, writer: str) -> None:
        """As in `Objects`."""
        self._upload(path, content, {"metadata": {_WRITER: writer}}, "&ifGenerationMatch=0")

    def put(self, path: str, content: bytes) -> None:
        """As in `Objects`."""
        self._upload(path, content, {}, "")

    def writer_of(self, path: str) -> str | None:
        """As in `Objects`."""
        try:
            answer = self._call("GET", f"/storage/v1/{_place(path)}?fields=metadata", path)
        except FileNotFoundError:
            return None
        return answer.json().get("metadata", {}).get(_WRITER)

    def delete(self, path: str) -> None:
        """As in `Objects`."""
        self._call("DELETE", f"/storage/v1/{_place(path)}", path)

    def _upload(self, path: str, content: bytes, facts: dict[str, Any], condition: str) -> None:
        bucket, _, key = path.partition("/")
        boundary = secrets.token_hex(16)
        head = json.dumps({"name": key, "contentType": "application/octet-stream", **facts})
        parts = (
            f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{head}\r\n",
            f"--{boundary}\r\nContent-Type: application/octet-stream\r\n\r\n",
        )
        body = "".join(parts).encode() + content + f"\r\n--{boundary}--".encode()
        where = f"/upload/storage/v1/b/{quote(bucket, safe='')}/o?uploadType=multipart{condition}"
        self._call("POST", where, path, data=body, headers={"Content-Type": f"multipart/related; boundary={boundary}"})

    def _call(self, method: str, where: str, path: str, **arguments: Any) -> Any:
        """One request; its failure as an OSError of the kind that pyarrow raises."""
        from google.auth.exceptions import GoogleAuthError, TransportError
        from requests import RequestException
        from requests.exceptions import SSLError

        try:
            answer = self._session.request(method, f"{self._endpoint}{where}", timeout=_TIMEOUT_SECONDS, **arguments)
        except SSLError as error:
            raise OSError(str(error)) from error
        except (RequestException, TransportError) as error:
            raise OSError(errno.ECONNRESET, str(error)) from error
        except GoogleAuthError as error:
            raise OSError(str(error)) from error
        if answer.status_code in _ANSWERS:
            number = _ANSWERS[answer.status_code]
            raise OSError(number, os.strerror(number), path)  # Python makes it the FileExistsError or FileNotFoundError
        if not answer.ok:
            raise OSError(f"{method} {path} (HTTP status {answer.status_code}): {answer.text[:500]}")
        return answer


_ANSWERS = {404: errno.ENOENT, 412: errno.EEXIST}


def _place(path: str) -> str:
    bucket, _, key = path.partition("/")
    return f"b/{quote(bucket, safe='')}/o/{quote(key, safe='')}"
