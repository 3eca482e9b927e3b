"""Calls a verifier, one JSON line in, one out. A script of the standard library alone: `verifier` starts it, nobody imports it.

Arguments: the file, the function, CPU seconds a call, megabytes of memory.
"""

import importlib.util
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

_FORBIDDEN = ("socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.kill", "ctypes.dlopen")


def main() -> None:
    """Load the function, say so, and answer until the input ends."""
    file, name, seconds, megabytes = sys.argv[1:]
    # What the verifier prints must not be read as an answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    try:
        verifier = _load(Path(file), name)
    except Exception as error:  # noqa: BLE001 - whatever the user's file raises is for the user to read
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answers, flush=True)
        return
    _confine(int(megabytes))
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, float(seconds))
        answer = _call(verifier, *json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(answer), file=answers, flush=True)


def _load(file: Path, name: str) -> Any:
    sys.path.insert(0, str(file.parent))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return getattr(module, name)


def _confine(megabytes: int) -> None:
    for limit, value in (
        (resource.RLIMIT_AS, megabytes << 20),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    sys.addaudithook(_refuse)


def _refuse(event: str, _: Any) -> None:
    if event.startswith(_FORBIDDEN):
        raise PermissionError(f"{event} is not for verifiers")


def _call(verifier: Any, text: str, answer: str) -> dict[str, Any]:
    try:
        said = verifier(text, answer)
    except Exception as error:  # noqa: BLE001 - one row's trouble, named in its rejection
        return {"raised": f"raised {type(error).__name__}"}
    if isinstance(said, bool):
        return {"right": said}
    if isinstance(said, str):
        return {"answer": said}
    return {"raised": f"returned {type(said).__name__}"}


if __name__ == "__main__":
    main()
