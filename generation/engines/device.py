"""What an engine runs on. Starts no CUDA."""

import importlib
import os
from dataclasses import dataclass
from typing import Any, Literal

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU, or the processors of a machine.

    Attributes:
        kind: Whose presets apply.
        name: For people.
        memory_bytes: Of one GPU, or of the machine.
    """

    kind: Literal["gpu", "cpu"]
    name: str
    memory_bytes: int


H100 = Device("gpu", "H100", 80 * GIB)
H200 = Device("gpu", "H200", 141 * GIB)


def this_machine() -> Device:
    """The processors here."""
    return Device("cpu", "CPU", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def detect_device() -> Device:
    """The first GPU that this process may use, or else the processors."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    try:
        nvml: Any = importlib.import_module("pynvml")  # comes with vLLM on GPU machines only
        nvml.nvmlInit()
        find = nvml.nvmlDeviceGetHandleByIndex if visible.isdigit() else nvml.nvmlDeviceGetHandleByUUID
        handle = find(int(visible) if visible.isdigit() else visible)
        return Device("gpu", str(nvml.nvmlDeviceGetName(handle)), int(nvml.nvmlDeviceGetMemoryInfo(handle).total))
    except Exception:  # noqa: BLE001 - without NVML or a GPU of its own; whatever is wrong with a GPU, vLLM says it better
        return this_machine()
