"""What the short loops of `generation.engines.vllm_scheduler` gain over vLLM's own, and what a larger batch gains, on one core.

A Llama of 2.5 M parameters answers the same prompts again and again: 272 tokens, in 64 groups that share 240; log-normal lengths. On each
engine, turns with the short loops and with vLLM's own alternate. Speeds are those between 15 % and 85 % of the tokens.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.support.clockwork import LONGEST, NUM_LENGTHS, PROMPT_WORDS, TINY, log_normal_lengths, write_model
from benchmarks.support.peer_sides import Mark, figures_of
from generation.engines.base import Request, Sampling
from generation.engines.config import VllmEngine
from generation.engines.vllm import VllmModel

_BATCHES = (256, 512, 1024)
_GROUPS, _PREFIX_WORDS, _OWN_WORDS = 64, 238, 31
"""With `<bos>` and `<|user|>` 240 tokens of prefix, and with the length 32 of its own."""


def main() -> None:
    """Measure, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=2, help="turns of each side and batch, beside a warm-up")
    parser.add_argument("--requests", type=int, default=2_500, help="of a turn")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # read once, when torch loads its OpenMP
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), TINY, log_normal_lengths())
        speeds = {batch: measure(folder, batch, options.pairs, options.requests) for batch in _BATCHES}
    largest = speeds[_BATCHES[-1]]
    figures: dict[str, Any] = {"benchmark": "scheduler", "parameters": TINY.parameters(), "tokens_per_second": speeds}
    figures["gain_of_1024_over_256"] = round(largest["lean"] / speeds[256]["lean"], 3)
    figures["ratio"] = round(largest["lean"] / largest["vllm"], 3)
    figures["ratio_to"] = f"tokens/s with vLLM's own loops, {_BATCHES[-1]} sequences"
    print(json.dumps(figures))


def measure(folder: str, batch: int, pairs: int, requests: int) -> dict[str, int]:
    """Median tokens/s of each side with so many sequences."""
    config = VllmEngine(
        model=folder,
        max_model_len=704,
        max_num_seqs=batch,
        max_num_batched_tokens=8192,
        kv_cache_bytes=2**30,
        gpu_memory_utilization=0.2,
        threads=1,
    )
    model = VllmModel(config)
    model.start()
    prompts = _prompts(requests)
    found: dict[str, list[float]] = {"lean": [], "vllm": []}
    for pair in range(pairs + 1):
        for side in found:
            _use(model.engine.engine_core.engine_core.scheduler, lean=side == "lean")
            speed = _turn(model, prompts)
            if pair:  # the first is a warm-up
                found[side].append(speed)
    model.close()
    return {side: round(statistics.median(speeds)) for side, speeds in found.items()}


def _use(scheduler: Any, *, lean: bool) -> None:
    from generation.engines.vllm_scheduler import LeanLoops

    for owner in (scheduler, scheduler.kv_cache_manager):
        for name, value in list(vars(owner).items()):
            if isinstance(getattr(value, "__self__", None), LeanLoops):
                delattr(owner, name)
    if lean:
        LeanLoops(scheduler)


def _turn(model: VllmModel, prompts: list[Request]) -> float:
    model.engine.reset_prefix_cache()
    waiting = [(number, model.prepare(prompt)) for number, prompt in enumerate(prompts)][::-1]
    in_flight, tokens, marks = 0, 0, [Mark(0.0, 0)]
    began = time.perf_counter()
    while waiting or in_flight:
        while waiting and in_flight < model.max_in_flight + 32:
            model.add(*waiting.pop())
            in_flight += 1
        finished = model.step()
        in_flight -= len(finished)
        tokens += sum(answer.output_tokens for answer in model.decode(finished))
        marks.append(Mark(time.perf_counter() - began, tokens))
    return figures_of(marks, len(prompts))["steady_tokens_per_second"]


def _prompts(count: int) -> list[Request]:
    draw, sampling = random.Random(0), Sampling(LONGEST)
    groups = [" ".join(draw.choices(PROMPT_WORDS, k=_PREFIX_WORDS)) for _ in range(_GROUPS)]
    per_group = count // _GROUPS + 1
    return [
        Request(
            groups[number // per_group],
            f" {' '.join(draw.choices(PROMPT_WORDS, k=_OWN_WORDS))} length{draw.randrange(NUM_LENGTHS)}",
            sampling,
            "draft",
        )
        for number in range(count)
    ]


if __name__ == "__main__":
    main()
