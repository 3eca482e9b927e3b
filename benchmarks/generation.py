"""What the replica's path costs over vLLM itself: flows, voting, parsing, shards and commits against a bare `LLMEngine`.

One side runs units of the miniature through a pump and a `UnitWork`, as a replica does, and remembers every prompt and the length of
every completion. The other side replays exactly those in its own engine of the same settings, all at once and with `ignore_eos`: it
waits for no draft, reads no text and writes no row. Both stand in one process and take turns.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.support.miniature import Clock, Miniature, Recorder
from cluster.recipe import load_recipe, load_tasks
from generation.arms import arm_spec
from generation.engines.base import Completion, Prepared
from generation.engines.config import VllmEngine
from generation.engines.presets import settings_here
from generation.engines.vllm import VllmModel
from generation.engines.vllm_arguments import engine_arguments
from generation.prompts.prompt_set import load_prompt_set
from generation.pump import Pump

_RECIPE = Path(__file__).parents[1] / "recipes/miniature/recipe.toml"


@dataclass(slots=True)
class Side:
    """Sums over the turns of one side."""

    requests: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    by_turn: list[float] = field(default_factory=list[float])

    def add(self, clock: Clock, completions: Sequence[Completion]) -> None:
        """One more turn."""
        self.requests += len(completions)
        self.seconds += clock.seconds
        self.cpu_seconds += clock.cpu_seconds
        self.prompt_tokens += sum(completion.prompt_tokens for completion in completions)
        self.cached_tokens += sum(completion.cached_tokens for completion in completions)
        self.by_turn.append(round(len(completions) / clock.seconds, 1))


def main() -> None:
    """Measure, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, default=8, help="units of a turn, 64 flows each")
    parser.add_argument("--rounds", type=int, default=2, help="how often both sides take their turn, beside a warm-up")
    parser.add_argument(
        "--arm", choices=("direct", "psi"), default="direct", help="direct prompts share a longer prefix"
    )
    options = parser.parse_args()
    ours, bare = measure(options.arm, options.units, options.rounds)
    figures = {
        "benchmark": "generation",
        "arm": options.arm,
        "requests": ours.requests,
        "requests_per_second": round(ours.requests / ours.seconds, 1),
        "requests_per_second_bare": round(bare.requests / bare.seconds, 1),
        "cpu_ms_per_request": round(1000 * ours.cpu_seconds / ours.requests, 3),
        "cpu_ms_per_request_bare": round(1000 * bare.cpu_seconds / bare.requests, 3),
        "by_turn": ours.by_turn,
        "by_turn_bare": bare.by_turn,
        "prompt_tokens": ours.prompt_tokens,
        "cached_tokens": ours.cached_tokens,
        "cached_tokens_bare": bare.cached_tokens,
        "ratio": round(bare.seconds / ours.seconds, 3),
        "ratio_to": "requests per second of a bare LLMEngine that replays the same token ids and lengths with ignore_eos",
    }
    print(json.dumps(figures))


def measure(arm: str, units: int, rounds: int) -> tuple[Side, Side]:
    """Both sides in turns: ours, bare, ours, bare, ..."""
    loaded = load_recipe(_RECIPE)
    config = loaded.recipe.pools.small.engine
    assert isinstance(config, VllmEngine)
    prompts = load_prompt_set(loaded.recipe.prompts, loaded.folder)
    miniature = Miniature(loaded.recipe, load_tasks(loaded), prompts, arm_spec(arm))
    recorder = Recorder(VllmModel(config))
    pump = Pump(recorder)
    pump.start()
    pump.wait_ready()
    engine = start_bare(config)
    ours, bare = Side(), Side()
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds + 1):
            clock = miniature.run(pump, recorder.max_in_flight, folder, units if turn else 1)
            taken = recorder.take()
            replayed = replay(engine, taken)
            if turn:
                ours.add(clock, [completion for _, completion in taken])
                bare.add(*replayed)
    pump.stop()
    engine.engine_core.shutdown()
    return ours, bare


def start_bare(config: VllmEngine) -> Any:
    """A bare engine with the settings of ours; `VllmModel` has set the environment up."""
    import torch
    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.llm_engine import LLMEngine

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    arguments = EngineArgs(**engine_arguments(config, settings_here(config), on_cpu=current_platform.is_cpu()))
    return LLMEngine.from_engine_args(arguments, UsageContext.LLM_CLASS, enable_multiprocessing=False)


def replay(engine: Any, taken: Sequence[tuple[Prepared, Completion]]) -> tuple[Clock, list[Completion]]:
    """Let the bare engine answer the same prompts at the same lengths; what it took, and what it counted."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    parameters = [
        SamplingParams(
            max_tokens=completion.output_tokens,
            temperature=prepared.request.sampling.temperature,
            top_p=prepared.request.sampling.top_p,
            ignore_eos=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
            detokenize=False,
        )
        for prepared, completion in taken
    ]
    done: list[Completion] = []
    with Clock() as clock:
        for number, ((prepared, _), sampling) in enumerate(zip(taken, parameters, strict=True)):
            engine.add_request(str(number), {"type": "token", "prompt_token_ids": prepared.payload}, sampling)
        while engine.has_unfinished_requests():
            for output in engine.step():
                counted = len(output.prompt_token_ids), output.num_cached_tokens or 0, len(output.outputs[0].token_ids)
                done.append(Completion("", "length", *counted))
    return clock, done


if __name__ == "__main__":
    main()
