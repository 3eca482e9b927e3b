"""Meters: what a process has used so far, by the counters of the operating system and of its GPUs. Knows no run."""

import contextlib
import importlib
import os
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from cluster.repeating import repeating
from generation.energy import Method, counter_gain
from generation.storage import Store, json_bytes

READING_SECONDS = 10.0
"""Between readings: so much is lost with a killed process. GPU counters are renewed every 0.1 s, so that is 1 % at most."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a process has used since it began.

    Attributes:
        process: Host, process id and start: no two processes share it.
        wall_ms: Age of the meter.
        core_ms: CPU time, user and system, of the process and of those that it started.
        measured_mj: Energy of its GPUs by their counters.
        estimated_mj: By power over time, or by its share of a GPU that others use too.
        unmetered: Why the energy of its GPUs is not known, or empty.
        idle_mw: What its GPUs drew before it had work.
        tokens: Tokens of finished requests by request stage (`EngineStats.by_stage`).
        unfinished: Requests under way.
    """

    process: str
    wall_ms: int
    core_ms: int
    measured_mj: int = 0
    estimated_mj: int = 0
    unmetered: str = ""
    idle_mw: int = 0
    tokens: Mapping[str, Mapping[str, int]] = field(default_factory=dict[str, dict[str, int]])
    unfinished: int = 0


class GpuMeter:
    """Energy of some GPUs since the meter was made. A GPU without energy counter is read by its power instead.

    Args:
        nvml: The module `pynvml`, or what looks like it.
        devices: Index or UUID of each GPU.
        share: How much of them this process has; the counters are of whole devices.
    """

    def __init__(self, nvml: Any, devices: Sequence[str], share: float = 1.0) -> None:
        self._nvml = nvml
        self._share = min(share, 1.0)
        nvml.nvmlInit()
        self._handles = [_handle(nvml, device) for device in devices]
        self._counters = [self._counter(handle) for handle in self._handles]
        self._read_at = time.monotonic()
        self._totals: dict[Method, float] = {"measured": 0.0, "estimated": 0.0}
        self.idle_mw = int(self._share * sum(self._power(handle) for handle in self._handles))

    def read(self, now: float) -> tuple[int, int]:
        """(measured, estimated) millijoules up to a time on the monotonic clock.

        Raises:
            NVMLError: A device has neither counter nor power reading, or is gone.
        """
        milliseconds = int(1000 * (now - self._read_at))
        for place, handle in enumerate(self._handles):
            before, after = self._counters[place], self._counter(handle)
            method: Method = "estimated"
            if before is None or after is None:
                gain = self._power(handle) * milliseconds // 1000
            else:
                gain, method = counter_gain(before, after, milliseconds)
            self._counters[place] = after
            self._totals["estimated" if self._share < 1 else method] += gain * self._share
        self._read_at = now
        return int(self._totals["measured"]), int(self._totals["estimated"])

    def _counter(self, handle: Any) -> int | None:
        try:
            return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle))
        except self._nvml.NVMLError:
            return None

    def _power(self, handle: Any) -> int:
        return int(self._nvml.nvmlDeviceGetPowerUsage(handle))


def _handle(nvml: Any, device: str) -> Any:
    if device.isdigit():
        return nvml.nvmlDeviceGetHandleByIndex(int(device))
    return nvml.nvmlDeviceGetHandleByUUID(device)


class ProcessMeter:
    """Reads this process. Its methods may be called on any thread.

    Args:
        children: Whether processes that it started belong to it, also those that have ended.
        gpu_share: GPUs that it has; a fraction of one that it shares.
        nvml: Gives the module `pynvml`.
    """

    def __init__(
        self, *, children: bool = False, gpu_share: float = 0.0, nvml: Callable[[], Any] = lambda: _pynvml()
    ) -> None:
        self._lock = threading.Lock()
        self._own = psutil.Process()
        self._name = f"{os.uname().nodename}:{self._own.pid}:{self._own.create_time():.2f}"
        self._children = children
        self._began = time.monotonic()
        self._cores_at, self._core_seconds = 0.0, 0.0
        self._gpu: GpuMeter | None = None
        self._unmetered = ""
        if gpu_share:
            try:
                self._gpu = GpuMeter(nvml(), _assigned_gpus(), gpu_share)
            except Exception as error:  # noqa: BLE001 - a GPU that cannot be metered is used all the same, and reported so
                self._unmetered = f"{type(error).__name__}: {error}"

    def read(self, tokens: Mapping[str, Mapping[str, int]] | None = None, unfinished: int = 0) -> Reading:
        """All that was used so far, with the token counts that it was used for."""
        with self._lock:
            now, cores = time.monotonic(), self._tree_seconds()
            # Less than before: a child went whose parent did not wait for it. What it used is counted already.
            self._core_seconds += max(0.0, cores - self._cores_at)
            self._cores_at = cores
            gpu = self._read_gpu(now)
            return Reading(
                process=self._name,
                wall_ms=int(1000 * (now - self._began)),
                core_ms=int(1000 * self._core_seconds),
                measured_mj=gpu[0],
                estimated_mj=gpu[1],
                unmetered=self._unmetered,
                idle_mw=self._gpu.idle_mw if self._gpu else 0,
                tokens=tokens or {},
                unfinished=unfinished,
            )

    def _tree_seconds(self) -> float:
        own = self._own.cpu_times()
        if not self._children:
            return own.user + own.system
        seconds = sum(own[:4])  # user, system and the same of children that have ended
        for child in self._own.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                seconds += sum(child.cpu_times()[:4])
        return seconds

    def _read_gpu(self, now: float) -> tuple[int, int]:
        if self._gpu is None or self._unmetered:
            return 0, 0
        try:
            return self._gpu.read(now)
        except Exception as error:  # noqa: BLE001 - as above
            self._unmetered = f"{type(error).__name__}: {error}"
            return 0, 0


def _pynvml() -> Any:
    return importlib.import_module("pynvml")  # comes with vLLM on GPU machines only


def _assigned_gpus() -> list[str]:
    """The GPUs that Ray gave this worker, as NVML numbers or names them."""
    import ray

    ids: list[str] = ray.get_runtime_context().get_accelerator_ids()["GPU"]
    if not ids:
        raise LookupError("Ray gave this process no GPU")
    return ids


@contextlib.contextmanager
def metered(folder: Path, gpu_share: float) -> Generator[None]:
    """Keep the last reading of this process in a file of its own in `folder` while the block runs, for `read_folder`."""
    meter = ProcessMeter(children=True, gpu_share=gpu_share)
    store, name = Store(str(folder)), meter.read().process.replace(":", "-")

    def write() -> None:
        store.replace(f"{name}.json", json_bytes(asdict(meter.read())))

    try:
        with repeating(write, READING_SECONDS, "energy"):
            yield
    finally:
        write()


def read_folder(folder: Path) -> list[Reading]:
    """The last reading of every process that was metered there."""
    store = Store(str(folder))
    return [Reading(**store.read_json(name)) for name in store.names("")]
