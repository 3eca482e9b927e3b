"""What PSI's settings of vLLM on a GPU rest on, measured on the GPU of this machine: about 25 minutes, with models of random weights.

Needs one GPU that nothing else uses, the extra `gpu` (or any vLLM that serves on it) and 8 GB of disk; downloads nothing. Each experiment
runs in a process of its own, in the order below, until the seconds are used up. A line of JSON tells of each arm as soon as it is there,
and the last line holds all of them. To keep them in benchmarks/RESULTS.md:

    python -m benchmarks.gpu | tee gpu.jsonl
    python -m benchmarks.results --gpu gpu.jsonl
"""

import argparse
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.support import gpu_experiments
from benchmarks.support.gpu_engines import Place
from benchmarks.support.gpu_models import LARGE, SMALL, make_model
from generation.engines.device import Device, detect_device
from generation.engines.vllm_errors import error_log
from generation.roofline import PEAKS, Peaks

SECONDS = {
    "peaks": 15,
    "outputs": 95,
    "groups": 110,
    "stage": 140,
    "graphs": 120,
    "defaults": 120,
    "kv_fp8": 70,
    "in_process": 65,
    "replicas": 90,
    "async_engine": 130,
    "stage_default": 180,
    "large_batch": 75,
    "blocks": 140,
}
"""The experiments, by what they tell for their time, and about how long each takes on an H200: an engine starts in 50 s."""


@dataclass(slots=True)
class Bench:
    """The lines so far, and until when there may be more.

    Attributes:
        lines: Of all arms.
        deadline: By `time.monotonic`.
        file: Where each line is added at once.
    """

    lines: list[dict[str, Any]]
    deadline: float
    file: Path | None

    def tell(self, line: dict[str, Any]) -> None:
        """One more line."""
        self.lines.append(line)
        text = json.dumps(line)
        print(text, flush=True)
        if self.file is not None:
            with self.file.open("a", encoding="utf-8") as stream:
                stream.write(text + "\n")


def main() -> None:
    """Measure, and print one line of JSON last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"experiments; default: all of {', '.join(SECONDS)}")
    parser.add_argument("--seconds", type=float, default=1800.0, help="in all; what does not fit is left out")
    parser.add_argument("--file", type=Path, help="add each line to this file too")
    options = parser.parse_args()
    names: list[str] = options.names or list(SECONDS)
    if unknown := set(names) - SECONDS.keys():
        parser.error(f"no experiment is called {', '.join(sorted(unknown))}; there are {', '.join(SECONDS)}")
    device = detect_device()
    if device.kind != "gpu":
        sys.exit("benchmarks.gpu needs a GPU, and NVML shows none here: see `nvidia-smi` and `pip show nvidia-ml-py`")
    bench = Bench([], time.monotonic() + options.seconds, options.file)
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder), _data_sheet(device))
        _prepare(place)
        _measure(bench, place, names)
    print(json.dumps(_facts(device) | {"benchmark": "gpu", "lines": bench.lines}))


def _prepare(place: Place) -> None:
    """Models in processes of their own; beside them, what is then forked with vLLM imported and no CUDA started."""
    os.environ |= {"VLLM_WORKER_MULTIPROCESSING_METHOD": "fork", "VLLM_NO_USAGE_STATS": "1"}
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    context = multiprocessing.get_context("spawn")
    made = [context.Process(target=make_model, args=(place.models / name, name)) for name in (SMALL, LARGE)]
    for process in made:
        process.start()
    import vllm.v1.engine.async_llm  # pyright: ignore[reportMissingImports, reportUnusedImport]
    import vllm.v1.engine.llm_engine  # noqa: F401  # pyright: ignore[reportUnusedImport]

    for process in made:
        process.join()
        if process.exitcode:
            sys.exit("the models could not be made")


def _measure(bench: Bench, place: Place, names: Sequence[str]) -> None:
    for name in names:
        left = bench.deadline - time.monotonic()
        if left < SECONDS[name]:
            bench.tell({"experiment": name, "left_out": f"{left:.0f} s were left of about {SECONDS[name]}"})
            continue
        begin = time.monotonic()
        for line in _in_a_process(name, place, left):
            bench.tell({"experiment": name, **line})
            if name == "peaks" and "flops" in line:
                place = replace(place, measured=Peaks(line["flops"], line["bytes_per_second"]))
        bench.tell({"experiment": name, "took_seconds": round(time.monotonic() - begin, 1)})


def _in_a_process(name: str, place: Place, seconds: float) -> Any:
    """The lines of an experiment as they come; whatever it started ends with it."""
    context = multiprocessing.get_context("fork")
    ours, its = context.Pipe(duplex=False)
    process = context.Process(target=_experiment, args=(getattr(gpu_experiments, name), place, its))
    process.start()
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            if not ours.poll(1.0):
                if not process.is_alive():
                    yield {"error": f"its process ended with {process.exitcode}"}
                    return
                continue
            line = ours.recv()
            if line is None:
                return
            yield line
        yield {"error": f"not done after {seconds:.0f} s"}
    finally:
        process.join(5)
        _end_group(process.pid)


def _experiment(measure: Callable[[Place], gpu_experiments.Lines], place: Place, lines: Any) -> None:
    os.setsid()
    begin = error_log().end()
    try:
        for line in measure(place):
            lines.send(line)
    except Exception as error:  # noqa: BLE001 - whatever it is, the other experiments go on
        traceback.print_exc()
        lines.send({"error": f"{error}"[-500:], "logged": error_log().root_cause(begin)})
    lines.send(None)


def _end_group(leader: int | None) -> None:
    """Engine cores outlive the process that started them."""
    try:
        os.killpg(leader or 0, signal.SIGKILL) if leader else None
    except ProcessLookupError:
        return


def _data_sheet(device: Device) -> Peaks | None:
    return next((peaks for name, peaks in PEAKS.items() if name in device.name), None)


def _facts(device: Device) -> dict[str, Any]:
    facts: dict[str, Any] = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "device": device.name, "cores": os.cpu_count()}
    for name in ("vllm", "torch"):
        try:
            facts[name] = version(name)
        except PackageNotFoundError:
            facts[name] = "unknown"
    return facts


if __name__ == "__main__":
    main()
