"""How the engines of `benchmarks.gpu` are started and spoken to, and what is said of a run."""

import json
import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.support.gpu_load import MAX_MODEL_LEN, Meter, Run, drive_core, fixed_length, make_load
from benchmarks.support.recorder import forget_prefixes
from generation.engines.config import VllmEngine
from generation.engines.presets import settings_here
from generation.engines.vllm_arguments import engine_arguments
from generation.engines.vllm_core import EngineCore
from generation.roofline import Peaks, shape_of

SHARE = 0.9
"""Of the GPU's memory, for one engine."""


@dataclass(frozen=True, slots=True)
class Place:
    """What all experiments share.

    Attributes:
        models: The folder with a folder for each model.
        peaks: Of the device by its data sheet; None where PSI has none.
        measured: The same, measured.
    """

    models: Path
    peaks: Peaks | None = None
    measured: Peaks | None = None

    def line(self, model: str, arm: str, run: Run, kv_bytes: int = 2) -> dict[str, Any]:
        """An arm's figures, and the fractions of the roofline: of what engines can reach at all, and with prefixes read once."""
        config = json.loads((self.models / model / "config.json").read_text(encoding="utf-8"))
        shape = shape_of(config, kv_bytes=kv_bytes)
        line: dict[str, Any] = {"model": model, "arm": arm, **run.figures()}
        for key, peaks in (("roofline", self.peaks), ("measured_roofline", self.measured)):
            if peaks is not None and shape is not None:
                least = run.least_seconds(shape, peaks)
                line[key] = round(least.achievable / run.seconds, 3)
                line[f"{key}_shared"] = round(least.ideal / run.seconds, 3)
        return line


class Served:
    """A started engine, the way that PSI speaks to it, and its meter."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.meter = Meter(engine.engine_core)
        self.core = EngineCore(engine, fixed_length)

    def run(self, in_flight: int, groups: int = 4, waves: float = 1.5) -> Run:
        """From an empty prefix cache, as PSI drives it."""
        forget_prefixes(self.engine)
        return drive_core(self.core, self.meter, make_load(round(waves * in_flight), groups), in_flight)


def arguments_of(place: Place, model: str, raw: dict[str, Any] | None = None, **recipe: Any) -> dict[str, Any]:
    """PSI's arguments of vLLM, with some fields of the recipe's engine and some of vLLM's own set otherwise."""
    folder = str(place.models / model)
    config = VllmEngine.model_validate(
        {"model": folder, "max_model_len": MAX_MODEL_LEN, "gpu_memory_utilization": SHARE, **recipe}
    )
    return engine_arguments(config, settings_here(config), on_cpu=False) | (raw or {})


@contextmanager
def served(arguments: dict[str, Any], *, multiprocess: bool = True) -> Generator[Served]:
    """An engine, and how long its start took on stderr."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.llm_engine import LLMEngine

    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1" if multiprocess else "0"
    engine = LLMEngine.from_engine_args(
        EngineArgs(**arguments), UsageContext.LLM_CLASS, enable_multiprocessing=multiprocess
    )
    try:
        yield Served(engine)
    finally:
        engine.engine_core.shutdown()
