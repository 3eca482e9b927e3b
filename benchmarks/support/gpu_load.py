"""Requests of the kind that PSI makes, given to vLLM in the ways that people do, and how fast they go while it is full."""

import asyncio
import random
import time
from bisect import bisect
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from generation.engines.base import Sampling
from generation.engines.vllm_core import EngineCore
from generation.roofline import Bounds, Peaks, Shape, Work, bound

PREFIX_TOKENS, SUFFIX_TOKENS, MEAN_OUTPUT_TOKENS = 1536, 96, 128
"""The prefix is whole blocks of 16, 32, 64 and 128 tokens."""
MAX_MODEL_LEN = 2048
_SPREAD_TOKENS = 64
_VOCABULARY = 16_384


@dataclass(frozen=True, slots=True)
class Load:
    """Prompts, and how long the output of each is."""

    prompts: list[list[int]]
    lengths: list[int]
    groups: int


def make_load(count: int, groups: int = 4, seed: int = 0) -> Load:
    """Prompts of `groups` prefixes in turn, all of which are in use all the time; output lengths around the mean."""
    draw = random.Random(seed)
    prefixes = [_tokens(draw, PREFIX_TOKENS) for _ in range(groups)]
    prompts = [prefixes[number % groups] + _tokens(draw, SUFFIX_TOKENS) for number in range(count)]
    low, high = MEAN_OUTPUT_TOKENS - _SPREAD_TOKENS, MEAN_OUTPUT_TOKENS + _SPREAD_TOKENS
    return Load(prompts, [draw.randint(low, high) for _ in range(count)], groups)


class Meter:
    """When an engine had given how many tokens in how many steps: all that comes out of its core passes here."""

    def __init__(self, client: Any) -> None:
        self.marks: list[tuple[float, int]] = []
        self.tokens = 0
        self._get, self._get_async = client.get_output, client.get_output_async
        client.get_output, client.get_output_async = self._output, self._output_async

    def forget(self) -> None:
        """Begin again."""
        self.marks, self.tokens = [], 0

    def _output(self) -> Any:
        return self._count(self._get())

    async def _output_async(self) -> Any:
        return self._count(await self._get_async())

    def _count(self, outputs: Any) -> Any:
        count = sum(len(output.new_token_ids) for output in outputs.outputs)
        if count:
            self.tokens += count
            self.marks.append((time.perf_counter(), self.tokens))
        return outputs


@dataclass(frozen=True, slots=True)
class Run:
    """What went through an engine while it was full: after the prompts of the first `in_flight`, until the last one was started.

    Attributes:
        tokens_per_second: Generated.
        batch: Tokens of a step.
        steps: Of that time.
        seconds: Of that time.
        all_seconds: From the first request to the last token.
        prefixes: In use.
    """

    tokens_per_second: float
    batch: float
    steps: int
    seconds: float
    all_seconds: float
    prefixes: int

    def figures(self) -> dict[str, float]:
        """For people."""
        return {
            "tokens_per_second": round(self.tokens_per_second),
            "batch": round(self.batch),
            "step_ms": round(1000 * self.seconds / self.steps, 2),
            "seconds": round(self.seconds, 2),
            "all_seconds": round(self.all_seconds, 2),
        }

    def least_seconds(self, shape: Shape, peaks: Peaks) -> Bounds:
        """The least time for the same work."""
        tokens = round(self.tokens_per_second * self.seconds)
        requests = max(1, tokens // MEAN_OUTPUT_TOKENS)
        prompts, cached = requests * (PREFIX_TOKENS + SUFFIX_TOKENS), requests * PREFIX_TOKENS
        bounds = bound(shape, peaks, Work(self.steps, requests, prompts, cached, tokens, self.prefixes))
        assert bounds is not None
        return bounds


class Watch:
    """Tells the time in which an engine was full.

    Args:
        meter: Of its core.
        in_flight: Requests at a time.
        load: What is given to it.
    """

    def __init__(self, meter: Meter, in_flight: int, load: Load) -> None:
        meter.forget()
        self._meter, self._in_flight, self._load = meter, in_flight, load
        self._started = time.perf_counter()
        self._fed = 0.0

    def fed(self) -> None:
        """The last request was just started."""
        self._fed = time.perf_counter()

    def run(self) -> Run:
        """All that is left."""
        marks = self._meter.marks
        sizes = [after - before for (_, before), (_, after) in pairwise([(0.0, 0), *marks])]
        begin = next((number for number, size in enumerate(sizes) if size >= 0.8 * self._in_flight), 0)
        end = max(begin + 1, bisect(marks, (self._fed, 0)) - 1)
        (started, before), (ended, after) = marks[begin], marks[end]
        tokens, seconds, steps = after - before, ended - started, end - begin
        return Run(tokens / seconds, tokens / steps, steps, seconds, marks[-1][0] - self._started, self._load.groups)


def drive_core(core: EngineCore, meter: Meter, load: Load, in_flight: int) -> Run:
    """As PSI does: ids in and out, requests refilled as others end."""
    watch, waiting, running = Watch(meter, in_flight, load), 0, 0
    count = len(load.prompts)
    while waiting < count or running:
        while running < in_flight and waiting < count:
            core.add(waiting, load.prompts[waiting], Sampling(load.lengths[waiting]))
            waiting, running = waiting + 1, running + 1
            if waiting == count:
                watch.fed()
        running -= len(core.step())
    return watch.run()


def drive_engine(engine: Any, meter: Meter, load: Load, in_flight: int, **settings: Any) -> Run:
    """`LLMEngine.add_request` and `step`, as `LLM.generate` does, but for the refilling."""
    parameters = [sampling(length, **settings) for length in load.lengths]
    watch, waiting, running = Watch(meter, in_flight, load), 0, 0
    count = len(load.prompts)
    while waiting < count or running:
        while running < in_flight and waiting < count:
            prompt = {"type": "token", "prompt_token_ids": load.prompts[waiting]}
            engine.add_request(str(waiting), prompt, parameters[waiting])
            waiting, running = waiting + 1, running + 1
            if waiting == count:
                watch.fed()
        running -= sum(output.finished for output in engine.step())
    return watch.run()


async def drive_async(engine: Any, meter: Meter, load: Load, in_flight: int, **settings: Any) -> Run:
    """`AsyncLLM.generate`, a task for each request, as servers and Ray Data LLM do."""
    room, started = asyncio.Semaphore(in_flight), 0
    watch = Watch(meter, in_flight, load)

    async def one(number: int) -> None:
        nonlocal started
        async with room:
            started += 1
            if started == len(load.prompts):
                watch.fed()
            prompt = {"prompt_token_ids": load.prompts[number]}
            async for _ in engine.generate(prompt, sampling(load.lengths[number], **settings), str(number)):
                pass

    await asyncio.gather(*(one(number) for number in range(len(load.prompts))))
    return watch.run()


def sampling(tokens: int, **settings: Any) -> Any:
    """Parameters of vLLM for an output of exactly so many tokens."""
    from vllm.sampling_params import SamplingParams

    return SamplingParams(max_tokens=tokens, temperature=1.0, ignore_eos=True, **settings)


def fixed_length(one: Sampling) -> Any:
    """What `EngineCore` takes as `parameters`."""
    from vllm.sampling_params import RequestOutputKind

    return sampling(one.max_output_tokens, output_kind=RequestOutputKind.FINAL_ONLY, detokenize=False)


def _tokens(draw: random.Random, count: int) -> list[int]:
    return [draw.randrange(_VOCABULARY) for _ in range(count)]
