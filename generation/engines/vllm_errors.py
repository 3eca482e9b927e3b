"""Why vLLM failed: what its processes logged, whether memory was short, and what to lower. Imports no vLLM."""

import functools
import json
import os
import re
from typing import Any

from generation.engines.config import VllmEngine
from generation.engines.presets import MAX_RUNG, EngineSettings
from generation.errors import EngineDeadError, EngineError, EngineMemoryError

_MEMORY_SIGNS = (
    "out of memory",
    "no available memory",
    "available kv cache memory",
    "free memory",
    "available memory",
    "not enough memory",
    "kv cache is needed",
    "cannot allocate memory",
)
_RAISED = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception)\b.*", re.MULTILINE)


class ErrorLog:
    """What the engines of this process log as errors, kept in memory: an engine core in its own process says only that it failed."""

    def __init__(self) -> None:
        self._file = os.memfd_create("psi-vllm-errors")
        self._settings = os.memfd_create("psi-vllm-logging")
        os.write(self._settings, json.dumps(_logging(_path(self._file))).encode())

    @property
    def variables(self) -> dict[str, str]:
        """Environment in which vLLM's processes, of this machine, write to it."""
        return {"VLLM_LOGGING_CONFIG_PATH": _path(self._settings)}

    def end(self) -> int:
        """Up to where it is written."""
        return os.fstat(self._file).st_size

    def root_cause(self, since: int) -> str:
        """The first exception that was logged after `since`, one of memory before others; else empty."""
        logged = os.pread(self._file, self.end() - since, since).decode(errors="replace")
        raised = _RAISED.findall(logged)
        return next((line for line in raised if _is_memory(line)), raised[0] if raised else "")


@functools.cache
def error_log() -> ErrorLog:
    """The one of this process: vLLM reads its logging settings once."""
    return ErrorLog()


def death(config: VllmEngine, error: Exception, logged: str = "") -> EngineDeadError:
    """An error for an engine that cannot go on."""
    message = f"model {config.model}: {_cause(error, logged)}"
    return EngineMemoryError(message) if _is_memory(message) else EngineDeadError(message)


def load_failure(
    config: VllmEngine, settings: EngineSettings, error: Exception, logged: str = "", rung: int = 0
) -> EngineError:
    """An error for an engine that did not start. On the last rung it says what only the user can change."""
    cause = _cause(error, logged)
    message = f"model {config.model} cannot be loaded: {cause}"
    if not _is_memory(cause):
        return EngineError(message)
    used = (
        f"max_num_seqs {settings.max_num_seqs}, max_num_batched_tokens {settings.max_num_batched_tokens}, "
        f"gpu_memory_utilization {settings.memory_share:g}, kv_cache_bytes {settings.kv_cache_bytes or 'what is left'}"
    )
    if rung < MAX_RUNG:
        return EngineMemoryError(f"{message}\nIt was started with {used}")
    return EngineMemoryError(
        f"{message}\nEven with {used}. Lower max_model_len ({config.max_model_len}), take a smaller model, more GPUs "
        "(tensor_parallel) or fewer replicas on each, or free the memory that others use"
    )


def _cause(error: Exception, logged: str) -> str:
    said = f"{type(error).__name__}: {error}"
    return f"{logged} ({said})" if logged and logged not in said else said


def _is_memory(text: str) -> bool:
    return any(sign in text.lower() for sign in _MEMORY_SIGNS)


def _path(descriptor: int) -> str:
    """A name for a file without one, for this process and those that it starts."""
    return f"/proc/{os.getpid()}/fd/{descriptor}"


def _logging(errors: str) -> dict[str, Any]:
    handlers = {
        "errors": {"class": "logging.FileHandler", "filename": errors, "formatter": "plain", "level": "ERROR"},
        "console": {"class": "logging.StreamHandler", "formatter": "plain"},
    }
    level = os.environ.get("VLLM_LOGGING_LEVEL", "ERROR")
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"plain": {"format": "%(levelname)s %(asctime)s [%(name)s] %(message)s"}},
        "handlers": handlers,
        "loggers": {"vllm": {"handlers": list(handlers), "level": level, "propagate": False}},
    }
