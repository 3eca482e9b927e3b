"""A way to a server that is cut again and again."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.jobs.job_cluster import free_port


class CuttingProxy:
    """Forwards connections to a port of this machine; each of them is cut when it is `lives_seconds` old.

    Attributes:
        address: Where it listens.
        cuts: Connections that were cut while they were open.
    """

    def __init__(self, port: int, lives_seconds: float) -> None:
        self._port = port
        self._lives = lives_seconds
        self._listener = socket.create_server(("127.0.0.1", free_port()))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                here, _ = self._listener.accept()
                there = socket.create_connection(("127.0.0.1", self._port))
                ended = threading.Event()
                for source, target in ((here, there), (there, here)):
                    threading.Thread(target=self._forward, args=(source, target, ended), daemon=True).start()
                threading.Thread(target=self._cut, args=((here, there), ended), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket, ended: threading.Event) -> None:
        with suppress(OSError):
            while block := source.recv(1 << 16):
                target.sendall(block)
        ended.set()

    def _cut(self, pair: tuple[socket.socket, socket.socket], ended: threading.Event) -> None:
        self.cuts += not ended.wait(self._lives)
        for one in pair:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


@contextmanager
def cutting_proxy(address: str, lives_seconds: float) -> Iterator[CuttingProxy]:
    proxy = CuttingProxy(int(address.rpartition(":")[2]), lives_seconds)
    try:
        yield proxy
    finally:
        proxy.close()
