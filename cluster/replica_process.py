"""A replica's process: told when it is to end, and leaving nothing behind when it does."""

import ctypes
import multiprocessing
import os
import signal
import subprocess
import threading
from collections.abc import Callable

_EXIT_SECONDS = 1.0
"""How long a process lives on, so that the answer that it gives last can travel."""

_PR_SET_PDEATHSIG = 1
_WATCHER = 'trap "" TERM INT HUP; read -r _; kill -KILL 0'
"""Waits for the end of its input, which is the end of the process that holds the other side, and kills the group of both."""


def in_actor() -> bool:
    """Whether this is a process of Ray that holds an actor, and nothing else."""
    import ray

    return ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None


def node_id() -> str:
    """Ray's id of this node."""
    import ray

    return ray.get_runtime_context().get_node_id()


def die_together() -> None:
    """From now on this process dies with its parent, and all of its children die with it, whatever kills it. On the main thread.

    A Ray actor whose raylet is gone lives on while a method runs, and nobody else ends vLLM's processes when their parent was killed:
    both would hold the GPU against their own replacement.
    """
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
    _watchers.append(subprocess.Popen(["/bin/sh", "-c", _WATCHER], stdin=subprocess.PIPE))


def on_term(action: Callable[[], None]) -> None:
    """Run `action` in a thread when this process gets SIGTERM, which a Ray actor ignores while a method runs. On the main thread."""
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=action, name="psi-term", daemon=True).start())


def exit_soon(code: int) -> None:
    """End this process in a moment, its children at once."""
    for child in multiprocessing.active_children():
        child.kill()
    threading.Timer(_EXIT_SECONDS, os._exit, (code,)).start()


_watchers: list["subprocess.Popen[bytes]"] = []
"""Kept, since their input ends when they are collected."""
