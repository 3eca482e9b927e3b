"""moto's server, which speaks S3, as a process of its own."""

import http.client
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

START_SECONDS = 60.0
BUCKET = "bucket"


@contextmanager
def object_store() -> Iterator[int]:
    """A store with an empty bucket; its port on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        make_bucket(port, server)
        yield port
    finally:
        server.kill()
        server.wait()


def make_bucket(port: int, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_SECONDS
    while True:
        assert server.poll() is None, f"moto's server has ended with {server.returncode}"
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_SECONDS)
        try:
            connection.request("PUT", f"/{BUCKET}")
            assert connection.getresponse().status == 200
            return
        except OSError:
            assert time.monotonic() < until, "moto's server does not start"
            time.sleep(0.1)
        finally:
            connection.close()
