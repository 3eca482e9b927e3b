"""An engine that remembers what it was asked, and bare vLLM answering exactly that again, on the same engine object and thread."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.support.stage import Clock
from generation.engines.base import Completion, EngineStats, Finished, Prepared, Request, Sampling
from generation.engines.vllm import VllmModel
from generation.flows import Flow, FlowCall
from generation.pump import Pump

_HERE = "on the engine's thread"


@dataclass(frozen=True, slots=True)
class Made:
    """A request as it was made, and how long its output was."""

    prompt: list[int]
    sampling: Sampling
    output_tokens: int


class Pace:
    """How many requests had ended when."""

    def __init__(self) -> None:
        self.count = 0
        self._marks: list[tuple[int, float]] = []

    def ended(self, count: int) -> None:
        """So many more ended right now."""
        if count:
            self.count += count
            self._marks.append((self.count, time.perf_counter()))

    def when(self, count: int) -> float:
        """When `count` had ended."""
        return next(at for ended, at in self._marks if ended >= count)


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side did in one turn.

    Attributes:
        seconds: All of it.
        cpu_seconds: Of all threads of this process.
        clear_seconds: Until so many requests had ended as had on the psi side when it ran out of flows to start: a long run is that all
            the way, and drains but once.
        clear_requests: How many.
        steps: Steps of the engine.
        requests: All requests.
        prompt_tokens: Of them.
        cached_tokens: Of them.
        output_tokens: Of them.
    """

    seconds: float
    cpu_seconds: float
    clear_seconds: float
    clear_requests: int
    steps: int
    requests: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int

    @property
    def requests_per_second(self) -> float:
        """Its speed while there was work to start."""
        return self.clear_requests / self.clear_seconds


class Recorder:
    """An engine around another one.

    Args:
        model: The engine.
        shape: Changes requests on their way. Where it is given, an output that is cut counts as whole.
    """

    def __init__(self, model: VllmModel, shape: Callable[[Prepared], Prepared] | None = None) -> None:
        self.max_in_flight = model.max_in_flight
        self._model = model
        self._shape = shape
        self._asked: dict[int, Prepared] = {}
        self._answers: dict[int, Completion] = {}
        self._action: Callable[[Any], Any] | None = None
        self._waits: int | None = None
        self._result: Any = None
        self._pace = Pace()
        self._steps = 0
        self._clear = 0

    def take(self, clock: Clock) -> tuple[list[Made], Turn]:
        """Requests in the order in which they were made, and their sums, since the last call."""
        pairs = [(prepared, self._answers[number]) for number, prepared in self._asked.items()]
        made = [Made(one.payload, one.request.sampling, answer.output_tokens) for one, answer in pairs]
        counts = [(one.prompt_tokens, one.cached_tokens, one.output_tokens) for _, one in pairs]
        turn = turn_of(clock, self._pace, self._clear, self._steps, counts)
        self._asked, self._answers = {}, {}
        self._pace, self._steps = Pace(), 0
        return made, turn

    def on_engine(self, pump: Pump, action: Callable[[Any], Any]) -> Any:
        """Call `action` with vLLM's `LLMEngine` on the thread that steps it, with nothing else in flight; what it returned."""
        self._action = action
        pump.ask([FlowCall("", _ask_here)])
        result, self._result = self._result, None
        return result

    def start(self) -> None:
        """Build the engine."""
        self._model.start()

    def prepare(self, request: Request) -> Prepared:
        """Encode one request."""
        if request.stage == _HERE:
            return Prepared(request, 0, None)
        prepared = self._model.prepare(request)
        return prepared if self._shape is None else self._shape(prepared)

    def add(self, request_id: int, prepared: Prepared) -> None:
        """Queue a request."""
        if prepared.request.stage == _HERE:
            self._waits = request_id
            return
        self._asked[request_id] = prepared
        if prepared.request.stage == "draft":
            self._clear = self._pace.count
        self._model.add(request_id, prepared)

    def step(self) -> list[Finished]:
        """Advance."""
        if self._waits is None:
            finished = self._model.step()
            self._steps += 1
            self._pace.ended(len(finished))
            return finished
        assert self._action is not None
        self._result = self._action(self._model.engine)
        here, self._waits = Finished(self._waits, None), None
        return [here]

    def decode(self, finished: Sequence[Finished]) -> list[Completion]:
        """Turn finished requests into completions."""
        if len(finished) == 1 and finished[0].payload is None:
            return [Completion("", "stop")]
        completions = self._model.decode(finished)
        if self._shape is not None:
            completions = [replace(one, finish="stop") for one in completions]
        self._answers.update(zip((one.request_id for one in finished), completions, strict=True))
        return completions

    def abort(self, request_ids: Sequence[int]) -> None:
        """Forget requests."""
        self._model.abort(request_ids)

    def stats(self) -> EngineStats:
        """Counters so far."""
        return self._model.stats()

    def close(self) -> None:
        """Free everything."""
        self._model.close()


def forget_prefixes(engine: Any) -> None:
    """Empty the prefix cache, once the core has let go of what ended just now.

    Raises:
        RuntimeError: Requests are in flight.
    """
    for _ in range(100):
        if engine.reset_prefix_cache():
            return
        time.sleep(0.01)
    raise RuntimeError("the prefix cache is in use: requests are in flight")


def turn_of(clock: Clock, pace: Pace, clear: int, steps: int, counts: Sequence[tuple[int, int, int]]) -> Turn:
    """A turn from (prompt, cached, output) tokens of its requests."""
    prompt, cached, output = (sum(column) for column in zip(*counts, strict=True))
    clear_seconds = pace.when(clear) - clock.started
    return Turn(clock.seconds, clock.cpu_seconds, clear_seconds, clear, steps, len(counts), prompt, cached, output)


def replay(engine: Any, made: Sequence[Made], clear: int) -> Turn:
    """Bare vLLM in its best form: token ids in and out, all requests at once, final outputs only."""
    from vllm.sampling_params import RequestOutputKind

    parameters = [_parameters(one, output_kind=RequestOutputKind.FINAL_ONLY, detokenize=False) for one in made]
    outputs: list[Any] = []
    pace, steps = Pace(), 0
    with Clock() as clock:
        for number, (one, sampling) in enumerate(zip(made, parameters, strict=True)):
            engine.add_request(str(number), {"type": "token", "prompt_token_ids": one.prompt}, sampling)
        while engine.has_unfinished_requests():
            ended = engine.step()
            pace.ended(len(ended))
            steps += 1
            outputs += ended
    return turn_of(clock, pace, clear, steps, [counts_of(output) for output in outputs])


def generate_texts(llm: Any, texts: Sequence[str], made: Sequence[Made], clear: int) -> Turn:
    """`LLM.generate` as users call it: texts in, texts out."""
    parameters = [_parameters(one) for one in made]
    pace, steps, step = Pace(), 0, type(llm.llm_engine).step

    def watched() -> list[Any]:
        nonlocal steps
        outputs = step(llm.llm_engine)
        pace.ended(sum(output.finished for output in outputs))
        steps += 1
        return outputs

    llm.llm_engine.step = watched
    with Clock() as clock:
        outputs = llm.generate(texts, parameters, use_tqdm=False)
        written = [output.outputs[0].text for output in outputs]
    assert len(written) == len(texts)
    return turn_of(clock, pace, clear, steps, [counts_of(output) for output in outputs])


def counts_of(output: Any) -> tuple[int, int, int]:
    """(prompt, cached, output) tokens of one of vLLM's outputs."""
    return len(output.prompt_token_ids), output.num_cached_tokens or 0, len(output.outputs[0].token_ids)


def _parameters(one: Made, **settings: Any) -> Any:
    from vllm.sampling_params import SamplingParams

    sampling = one.sampling
    return SamplingParams(
        max_tokens=one.output_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        ignore_eos=True,
        **settings,
    )


def _ask_here() -> Flow:
    yield Request(" ", " ", Sampling(1), _HERE)
