"""Verifiers that go wrong, each in its way."""

import ctypes
import os
import socket
import subprocess
import sys
import time
from pathlib import Path


def even(text: str, answer: str) -> bool:
    """What a good one does."""
    return int(answer) % 2 == 0


def by_input(text: str, answer: str) -> object:
    """The input says what goes wrong."""
    return _FAULTS[text]()


def once(text: str, answer: str) -> bool:
    """Goes wrong as the answer says unless the input is the path of a file; makes it."""
    place = Path(text)
    if not place.exists():
        place.touch()
        _FAULTS[answer]()
    return True


def _loop() -> None:
    while True:
        pass


def _print() -> bool:
    sys.stdout.write('{"right": false}\n')
    os.write(1, b'{"right": false}\n')
    return True


_FAULTS = {
    "loop": _loop,
    "sleep": lambda: time.sleep(60),
    "crash": lambda: ctypes.string_at(0),
    "exit": lambda: sys.exit(0),
    "memory": lambda: bytearray(8 << 30),
    "number": lambda: 3,
    "write": lambda: Path("written-by-verifier").write_text("x", encoding="utf-8"),
    "network": lambda: socket.create_connection(("127.0.0.1", 9)),
    "process": lambda: subprocess.run(["true"], check=True),
    "print": _print,
    "secret": lambda: "PSI_TEST_SECRET" not in os.environ,
}
