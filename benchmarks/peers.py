"""The whole machine against the whole machine: our generation stage, `LLM.generate` and Ray Data LLM on the same requests.

The model's completions are as long as each prompt says (`benchmarks.support.clockwork`), so every side writes the same number of tokens.
Ours runs first, as users run it: two pinned replicas of one thread on Ray, coordinator, votes, screens, Arrow, commits to files and curation
at the driver. It leaves the texts of its prompts, which the others get, with what the engine has to be told in common (`peer_sides`) and
vLLM's defaults for the rest:

- `LLM.generate`, texts in and out, in the better of two arrangements: two processes of one thread, each pinned to a core and started
  together, or one process of two threads;
- Ray Data LLM, texts in and out, batches of 64, with one replica or two, whichever is faster.

Ours runs as many sequences as its presets say, 1,024 of a model so small; the others vLLM's own 256, which `LLM` takes by itself.

Sides are compared in their steady state, between 15 % and 85 % of the tokens: of a job of millions of rows that is nearly all. What they
made over the whole job, fill and drain included, stands beside it; of Ray Data LLM that is from its first batch, so that its start costs it
nothing.

Each turn is a process of its own; the sides take turns. All arrangements run in the first round, the better ones in the others. Needs
`pip install ".[cpu,peers]"`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.support.clockwork import LLAMA_30M, TINY, Shape, log_normal_lengths
from benchmarks.support.clockwork_recipe import write_recipe

_SHAPES = {"tiny": TINY, "llama30m": LLAMA_30M}
_FIXED = 64
_BARS = {"vs_llm_generate": 1.3, "vs_ray_data_llm": 2.5}


@dataclass(frozen=True)
class Turn:
    """One turn of one side."""

    requests: int
    output_tokens: int
    seconds: float
    tokens_per_second: float
    """In its steady state: what sides are compared by, since requests of two runs differ a little in length."""

    @property
    def requests_per_second(self) -> float:
        """The same in requests, votes included."""
        return self.tokens_per_second * self.requests / self.output_tokens

    @property
    def whole_tokens_per_second(self) -> float:
        """Over the whole job."""
        return self.output_tokens / self.seconds


Arrangement = tuple[str, ...]
"""Arguments of each process of a turn, after the folder."""
_PSI: dict[str, Arrangement] = {"2 replicas of 1 thread": ("psi",)}
_LLM: dict[str, Arrangement] = {
    "2 processes of 1 thread": ("llm 0 2", "llm 1 2"),
    "1 process of 2 threads": ("llm 0 1",),
}
_RAY_DATA: dict[str, Arrangement] = {"1 replica": ("ray-data 1",), "2 replicas": ("ray-data 2",)}
_SIDES = {"psi": _PSI, "llm_generate": _LLM, "ray_data_llm": _RAY_DATA}


def main() -> None:
    """Measure, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4_000, help="rows that ours writes, two requests each")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each side")
    parser.add_argument("--shape", choices=_SHAPES, default="tiny", help="size of the model")
    parser.add_argument(
        "--fixed", action="store_true", help=f"{_FIXED} output tokens for every request, not log-normal lengths"
    )
    parser.add_argument("--likely", action="store_true", help="the first arrangement of each side only")
    parser.add_argument("--sides", nargs="+", choices=_SIDES, default=list(_SIDES), help="psi among them")
    options = parser.parse_args()
    lengths = (_FIXED,) * len(log_normal_lengths()) if options.fixed else log_normal_lengths()
    with tempfile.TemporaryDirectory() as folder:
        write_recipe(Path(folder), _SHAPES[options.shape], lengths, options.rows)
        turns = measure(Path(folder), options.sides, options.rounds, 1 if options.likely else None)
    print(json.dumps(_figures(turns, _SHAPES[options.shape], lengths)))


def measure(folder: Path, sides: Sequence[str], rounds: int, tried: int | None) -> dict[str, dict[str, list[Turn]]]:
    """Turns by side and arrangement, of which the first `tried` of each side are tried, or all."""
    turns: dict[str, dict[str, list[Turn]]] = {side: defaultdict(list) for side in sides}
    for _ in range(rounds):
        for side in sides:
            first = not turns[side]
            for name in list(_SIDES[side])[:tried] if first else [_best(turns[side])]:
                turn = take_turn(folder, _SIDES[side][name])
                turns[side][name].append(turn)
                print(
                    f"{side}, {name}: {turn.requests_per_second:.1f} requests/s, {turn.tokens_per_second:.0f} tokens/s",
                    flush=True,
                )
    return turns


def take_turn(folder: Path, arrangement: Arrangement) -> Turn:
    """Run the processes of a turn together; those that wait for each other start at once when all are ready."""
    processes = [_start(folder, arguments) for arguments in arrangement]
    waits = arrangement[0].startswith("llm")
    try:
        if waits:
            for process in processes:
                _line(process, "ready")
        for process in processes if waits else ():
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        figures: list[dict[str, Any]] = [json.loads(_line(process, "{")) for process in processes]
        for process in processes:
            process.wait()
    finally:
        for process in processes:
            process.kill()
    requests, tokens, speed = (
        sum(one[name] for one in figures) for name in ("requests", "output_tokens", "steady_tokens_per_second")
    )
    return Turn(requests, tokens, max(one["seconds"] for one in figures), speed)


def _start(folder: Path, arguments: str) -> "subprocess.Popen[str]":
    side, *numbers = arguments.split()
    command = [sys.executable, "-m", "benchmarks.support.peer_sides", side, str(folder), *numbers]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _line(process: "subprocess.Popen[str]", start: str) -> str:
    """The next line of a process that starts so; libraries print others."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(start):
            return line
    raise SystemExit(f"{process.args}: ended with {process.wait()}, see above")


def _best(arrangements: dict[str, list[Turn]]) -> str:
    return max(arrangements, key=lambda name: _median(arrangements[name]))


def _median(turns: Sequence[Turn]) -> float:
    return statistics.median(turn.tokens_per_second for turn in turns)


def _figures(turns: dict[str, dict[str, list[Turn]]], shape: Shape, lengths: Sequence[int]) -> dict[str, Any]:
    best = {side: arrangements[_best(arrangements)] for side, arrangements in turns.items()}
    figures: dict[str, Any] = {
        "benchmark": "peers",
        "parameters": shape.parameters(),
        "mean_output_tokens": round(statistics.mean(lengths), 1),
        "longest_output_tokens": max(lengths),
        "sides": {side: _of_side(arrangements) for side, arrangements in turns.items()},
    }
    for peer in ("llm_generate", "ray_data_llm"):
        if peer in best:
            figures[f"vs_{peer}"] = round(_median(best["psi"]) / _median(best[peer]), 3)
    ratios = {name: figures[name] / bar for name, bar in _BARS.items() if name in figures}
    nearest = min(ratios, key=lambda name: ratios[name], default=None)
    figures["ratio"] = figures[nearest] if nearest else 1.0
    figures["ratio_to"] = "emitted tokens a second of " + {
        "vs_llm_generate": "LLM.generate, texts in and out, in its best arrangement",
        "vs_ray_data_llm": "Ray Data LLM in its best arrangement",
    }.get(nearest or "", "itself")
    return figures


def _of_side(arrangements: dict[str, list[Turn]]) -> dict[str, Any]:
    chosen = _best(arrangements)
    return {
        "arrangement": chosen,
        "requests_per_second": round(statistics.median(turn.requests_per_second for turn in arrangements[chosen]), 1),
        "tokens_per_second": round(_median(arrangements[chosen])),
        "whole_job_tokens_per_second": round(
            statistics.median(turn.whole_tokens_per_second for turn in arrangements[chosen])
        ),
        "by_turn": {name: [round(turn.tokens_per_second) for turn in turns] for name, turns in arrangements.items()},
        "requests": arrangements[chosen][-1].requests,
    }


if __name__ == "__main__":
    main()
