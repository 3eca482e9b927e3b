"""What the generation stage costs over vLLM itself, and what it gains over `LLM.generate`: `eta_best` and `eta_default`.

One side runs units as a replica does: prompts, flows, votes, screens, Arrow and commits to real files. It remembers each request that it
made and the length of each output. The other sides answer exactly those again with `ignore_eos`: bare vLLM in its best form on the same
engine object, and `LLM.generate` with texts in and out in an engine of its own, with vLLM's own 256 sequences. They take turns, each from an
empty prefix cache; the ratios are of turns beside each other. Where the first two do not take the same number of tokens from the prefix cache, `eta_best` is
void: the exit status is 1.
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.support.llama30m_stage import DrawnLengths, llama30m_engine, llama30m_stage
from benchmarks.support.miniature import miniature_stage
from benchmarks.support.recorder import Made, Recorder, Turn, forget_prefixes, generate_texts, replay
from benchmarks.support.stage import Stage
from generation.engines.config import VllmEngine
from generation.engines.vllm import VllmModel
from generation.pump import Pump

_EQUAL = ("model", "dtype", "kv_cache_bytes", "enforce_eager", "threads: 1", "engine core in this process")
_BOOTSTRAPS = 10_000
_PAIRS = {"miniature": 8, "llama30m": 4}
"""The miniature's turns take ten seconds, the other's a minute: on a shared machine the speed of either side wanders by 5 % between turns."""


@dataclass(slots=True)
class Sides:
    """The turns of each side, in order; those of one place stood beside each other."""

    psi: list[Turn] = field(default_factory=list[Turn])
    best: list[Turn] = field(default_factory=list[Turn])
    default: list[Turn] = field(default_factory=list[Turn])
    rows: dict[str, int] = field(default_factory=dict[str, int])


def main() -> None:
    """Measure, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=tuple(_PAIRS), action="append", help="default: both")
    parser.add_argument("--pairs", type=int, help=f"turns of each side, beside a warm-up; default: {_PAIRS}")
    parser.add_argument("--units", type=int, default=0, help="units of a turn (64 flows; the 30M model 8)")
    parser.add_argument("--without-default", action="store_true", help="leave `LLM.generate` out")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # read once, when torch loads its OpenMP
    models: list[str] = options.model or list(_PAIRS)
    figures: dict[str, Any] = {"benchmark": "overhead"}
    for name in models:
        pairs: int = options.pairs or _PAIRS[name]
        sides = measure(name, pairs, options.units, with_default=not options.without_default)
        figures[name] = figures_of(sides)
        print(json.dumps({name: figures[name]}))
    main_model = figures[models[-1]]
    figures |= {key: main_model[key] for key in ("eta_best", "eta_default") if key in main_model}
    figures |= {"equal_for_llm_generate": _EQUAL, "ratio": figures["eta_best"]["median"]}
    figures["ratio_to"] = "requests a second of bare vLLM: same requests, same engine object, token ids, FINAL_ONLY"
    print(json.dumps(figures))
    void = [name for name in models if not figures[name]["cached_tokens_equal"]]
    if void:
        sys.exit(f"cached prefill tokens differ, so the ratio is void: {', '.join(void)}")


def measure(name: str, pairs: int, units: int, *, with_default: bool) -> Sides:
    """All sides in turns, with one of the small models."""
    with tempfile.TemporaryDirectory() as folder:
        config, stage, recorder, usual = _workload(name, Path(folder))
        llm = partial(_llm, config) if with_default else None
        return in_turns(stage, recorder, llm, pairs, units or usual)


def in_turns(stage: Stage, recorder: Recorder, make_llm: Callable[[], Any] | None, pairs: int, units: int) -> Sides:
    """psi, bare vLLM, `LLM.generate`, psi, ..."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        pump = Pump(recorder)
        pump.start()
        stack.callback(pump.stop)
        pump.wait_ready()
        llm = make_llm() if make_llm else None
        sides = Sides()
        for pair in range(pairs + 1):
            turns = _round(stage, pump, recorder, llm, folder, units)
            if pair:  # the first is a warm-up
                _keep(sides, *turns)
    return sides


def _workload(name: str, folder: Path) -> tuple[VllmEngine, Stage, Recorder, int]:
    """Engine section, stage, engine, and units of a turn."""
    if name == "miniature":
        config, stage = miniature_stage()
        return config, stage, Recorder(VllmModel(config)), 64
    config = llama30m_engine(folder)
    return config, llama30m_stage(folder, flows_per_unit=8), Recorder(VllmModel(config), DrawnLengths()), 64


def _round(
    stage: Stage, pump: Pump, recorder: Recorder, llm: Any, folder: str, units: int
) -> tuple[Turn, Turn, Turn | None, dict[str, int]]:
    recorder.on_engine(pump, forget_prefixes)
    clock, rows = stage.run(pump, recorder.max_in_flight, folder, units)
    made, psi = recorder.take(clock)
    recorder.on_engine(pump, forget_prefixes)
    best: Turn = recorder.on_engine(pump, partial(replay, made=made, clear=psi.clear_requests))
    if llm is None:
        return psi, best, None, rows
    llm.reset_prefix_cache()
    return psi, best, generate_texts(llm, _texts(llm, made), made, psi.clear_requests), rows


def _keep(sides: Sides, psi: Turn, best: Turn, default: Turn | None, rows: dict[str, int]) -> None:
    sides.psi.append(psi)
    sides.best.append(best)
    if default is not None:
        sides.default.append(default)
    for status, count in rows.items():
        sides.rows[status] = sides.rows.get(status, 0) + count


def _texts(llm: Any, made: Sequence[Made]) -> list[str]:
    return llm.get_tokenizer().batch_decode([one.prompt for one in made])


def _llm(config: VllmEngine) -> Any:
    """`LLM` with vLLM's defaults, but for `_EQUAL` and the bound on memory without which it does not start beside another engine."""
    import torch
    from vllm import LLM

    torch.set_num_threads(1)
    return LLM(
        config.model,
        dtype=config.dtype,
        kv_cache_memory_bytes=config.kv_cache_bytes,
        enforce_eager=config.enforce_eager,
        gpu_memory_utilization=config.gpu_memory_utilization or 0.2,
    )


def figures_of(sides: Sides) -> dict[str, Any]:
    """Ratios, and what each side did."""
    cached = [(one.cached_tokens, other.cached_tokens) for one, other in zip(sides.psi, sides.best, strict=True)]
    figures: dict[str, Any] = {
        "eta_best": _eta(sides.psi, sides.best),
        "cached_tokens_equal": all(one == other for one, other in cached),
        "cached_tokens_by_pair": cached,
        "rows": sides.rows,
        "psi": _speeds(sides.psi),
        "best": _speeds(sides.best),
    }
    if sides.default:
        figures["eta_default"] = _eta(sides.psi, sides.default)
        figures["default"] = _speeds(sides.default)
    return figures


def _speeds(turns: Sequence[Turn]) -> dict[str, Any]:
    requests = sum(turn.requests for turn in turns)
    return {
        "requests": requests,
        "requests_per_second": [round(turn.requests_per_second, 1) for turn in turns],
        "seconds": [round(turn.seconds, 2) for turn in turns],
        "steps": [turn.steps for turn in turns],
        "cpu_ms_per_request": round(1000 * sum(turn.cpu_seconds for turn in turns) / requests, 3),
        "prompt_tokens": sum(turn.prompt_tokens for turn in turns),
        "cached_tokens": sum(turn.cached_tokens for turn in turns),
        "output_tokens": sum(turn.output_tokens for turn in turns),
    }


def _eta(ours: Sequence[Turn], others: Sequence[Turn]) -> dict[str, Any]:
    """Median of the paired ratios of speed, and the 95 % interval of that median by bootstrap."""
    ratios = [one.requests_per_second / other.requests_per_second for one, other in zip(ours, others, strict=True)]
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(_BOOTSTRAPS))
    low, high = medians[int(0.025 * _BOOTSTRAPS)], medians[int(0.975 * _BOOTSTRAPS)]
    return {
        "median": round(statistics.median(ratios), 4),
        "ci95": [round(low, 4), round(high, 4)],
        "by_pair": [round(ratio, 4) for ratio in ratios],
    }


if __name__ == "__main__":
    main()
