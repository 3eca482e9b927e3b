"""Asks a task's program whether an answer is right, in a process of its own."""

import json
import os
import select
import signal
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from generation.answers import answers_equal
from generation.config import AnswerConfig
from generation.errors import RecipeError

CPU_SECONDS = 5.0
_WALL_SECONDS = 4.0
"""For each second of CPU."""
_START_SECONDS = 60.0
_MEMORY_MEGABYTES = 2048
_MAX_REMEMBERED = 1 << 16
_WORKER = Path(__file__).with_name("verifier_worker.py")
_TIMED_OUT = "timed out"
_CRASHED = "crashed"
_WORKERS = min(4, os.cpu_count() or 1)


class Verifier:
    """Runs `file.py:function` on (input, answer) in worker processes that live as long as this object and are replaced when they die.

    A call has 5 seconds of CPU, so that a slow machine gives the verdict of a fast one as far as that can be had, and 20 seconds in all
    for one that sleeps. A call that ended its worker, or ran out of memory, is made once more in a fresh one before that is its verdict,
    so that a verdict does not depend on what else the machine was doing. A worker has 2 GiB of memory, no environment but PATH, writes no file and opens no connection or process. That
    holds off accidents. It is no wall against code that is meant to do harm: files can be read, and Python cannot confine Python.

    Answers are remembered (up to 65,536 pairs), so that a pair is judged once. A verdict depends on the pair alone when the function
    does.

    Args:
        spec: `file.py:function`, the file with its full path.
        answer: The task's answer section: how a right answer is compared with the row's.
        cpu_seconds: For a call.
    """

    def __init__(self, spec: str, answer: AnswerConfig, cpu_seconds: float = CPU_SECONDS) -> None:
        self._spec = spec
        self._answer = answer
        self._cpu_seconds = cpu_seconds
        self._known: dict[tuple[str, str], str] = {}
        self._idle: deque[_Worker] = deque()

    def reasons(self, pairs: Sequence[tuple[str, str]]) -> list[str]:
        """Why each (input, answer) is not confirmed; empty for those that are.

        Raises:
            RecipeError: The file cannot be loaded.
        """
        fresh = list(dict.fromkeys(pair for pair in pairs if pair not in self._known))
        if len(self._known) + len(fresh) > _MAX_REMEMBERED:
            self._known.clear()
            fresh = list(dict.fromkeys(pairs))
        if fresh:
            with ThreadPoolExecutor(min(_WORKERS, len(fresh))) as threads:
                self._known.update(zip(fresh, threads.map(self._asked, fresh), strict=True))
        return [self._known[pair] for pair in pairs]

    def _asked(self, pair: tuple[str, str]) -> str:
        try:
            worker = self._idle.pop()
        except IndexError:
            worker = _Worker(self._spec, self._cpu_seconds)
        said = worker.call(*pair)
        if _may_pass(said):
            worker = _Worker(self._spec, self._cpu_seconds)
            said = worker.call(*pair)
        if "ended" in said:
            return f"verifier {said['ended']}"
        self._idle.append(worker)
        if "raised" in said:
            return f"verifier {said['raised']}"
        right = said["right"] if "right" in said else answers_equal(self._answer, said["answer"], pair[1])
        return "" if right else "wrong answer"


def _may_pass(said: Mapping[str, Any]) -> bool:
    """Whether the machine's load may have caused it, or what earlier calls left in the worker."""
    return "ended" in said or said.get("raised") == "raised MemoryError"


class _Worker:
    """One process and what it is asked."""

    def __init__(self, spec: str, cpu_seconds: float) -> None:
        file, _, name = spec.rpartition(":")
        self._seconds = cpu_seconds * _WALL_SECONDS
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-B", str(_WORKER), file, name, str(cpu_seconds), str(_MEMORY_MEGABYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.environ.get("PATH", os.defpath)},
            cwd="/",
            start_new_session=True,  # or Ctrl-C would end it in the middle of a row, and the row be called its fault
        )
        weakref.finalize(self, _end, self._process)
        said = self._read(_START_SECONDS)
        if "ready" not in said:
            raise RecipeError(
                f"verifier {spec}: cannot be loaded: {said.get('error') or said['ended']}; correct the file"
            )

    def call(self, text: str, answer: str) -> dict[str, Any]:
        """What the function said, or `{"ended": why}` where the process did not survive it."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([text, answer]).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return self._ended(_CRASHED)
        return self._read(self._seconds)

    def _read(self, seconds: float) -> dict[str, Any]:
        """The next line. The worker says nothing unasked, so nothing follows it."""
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        parts: list[bytes] = []
        while not parts or not parts[-1].endswith(b"\n"):
            ready, _, _ = select.select([pipe], [], [], seconds)
            part = os.read(pipe, 1 << 16) if ready else b""
            if not part:
                return self._ended(_CRASHED if ready else _TIMED_OUT)
            parts.append(part)
        return json.loads(b"".join(parts))

    def _ended(self, why: str) -> dict[str, Any]:
        if why == _TIMED_OUT:
            self._process.kill()
        code = self._process.wait()
        return {"ended": _TIMED_OUT if code == -signal.SIGPROF else why}


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.communicate()
