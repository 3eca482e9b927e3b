"""vLLM's engine core, spoken to without the front half of its `LLMEngine`. Imports no vLLM.

`LLMEngine.add_request` checks and copies sampling parameters for each request, and `step` keeps a state and makes objects for each token of
each. Here both are done once for each `Sampling`, and a token costs a look-up and a list's `+=`. The core is the same, in this process or
in its own.
"""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

from generation.engines.base import CanaryCounts, Sampling
from generation.errors import EngineDeadError, EngineError

_NEEDED = (
    "input_processor.process_inputs",
    "engine_core.add_request",
    "engine_core.get_output",
    "engine_core.abort_requests",
)


@dataclass(frozen=True, slots=True)
class Ended:
    """A request that ended.

    Attributes:
        request_id: Its id.
        ids: All that was generated, the stop token included.
        reason: vLLM's word: `stop`, `length`, `abort`, `error`, ...
        cached_tokens: Prompt tokens from the prefix cache.
    """

    request_id: int
    ids: list[int]
    reason: str
    cached_tokens: int


class EngineCore:
    """The core of a started `LLMEngine`, which must have no requests of its own in flight.

    Args:
        engine: The `LLMEngine`.
        parameters: Makes vLLM's sampling parameters (final outputs, no text, n = 1) of ours.

    Attributes:
        canary: What vLLM's statistics said so far, where they are on.

    Raises:
        EngineError: This vLLM lacks what is needed.
    """

    def __init__(self, engine: Any, parameters: Callable[[Sampling], Any]) -> None:
        _check(engine)
        self.canary = CanaryCounts()
        self._client = engine.engine_core
        _wake_when_it_ends(self._client)
        self._inputs = engine.input_processor
        self._tasks = engine.get_supported_tasks()
        self._parameters = parameters
        self._patterns: dict[Sampling, Any] = {}
        self._ids: dict[str, list[int]] = {}
        self._cached: dict[str, int] = {}

    def add(self, request_id: int, prompt: list[int], sampling: Sampling) -> None:
        """Queue a request.

        Raises:
            ValueError: vLLM refuses its sampling parameters or its prompt.
        """
        pattern = self._patterns.get(sampling)
        if pattern is None:
            pattern = self._patterns[sampling] = self._pattern(prompt, sampling)
        name = str(request_id)
        # Requests of one sampling share its parameters, which the core reads only.
        request = copy(pattern)
        request.request_id, request.prompt_token_ids = name, prompt
        self._ids[name] = []
        self._client.add_request(request)

    def step(self) -> list[Ended]:
        """One step; what ended in it."""
        ended: list[Ended] = []
        open_ids, cached = self._ids, self._cached
        outputs = self._client.get_output()
        if outputs.scheduler_stats is not None:
            self.canary = _counted(self.canary, outputs.scheduler_stats)
        for output in outputs.outputs:
            name = output.request_id
            ids = open_ids.get(name)
            if ids is None:  # it was aborted while this token was on its way
                continue
            if not ids and output.prefill_stats is not None:
                cached[name] = output.prefill_stats.num_cached_tokens
            ids += output.new_token_ids
            if output.finish_reason is not None:
                del open_ids[name]
                ended.append(Ended(int(name), ids, str(output.finish_reason), cached.pop(name, 0)))
        return ended

    def abort(self, request_ids: Sequence[int]) -> None:
        """Forget requests."""
        names = [str(request_id) for request_id in request_ids]
        for name in names:
            self._ids.pop(name, None)
            self._cached.pop(name, None)
        self._client.abort_requests(names)

    def _pattern(self, prompt: list[int], sampling: Sampling) -> Any:
        """A request of this sampling, checked and completed by vLLM."""
        tokens = {"type": "token", "prompt_token_ids": prompt}
        return self._inputs.process_inputs("", tokens, self._parameters(sampling), supported_tasks=self._tasks)


def _wake_when_it_ends(client: Any) -> None:
    """Have `get_output` raise once the core's process has died. vLLM closes its client then, and leaves who waits for an output waiting."""
    outputs: Any = getattr(client, "outputs_queue", None)
    if outputs is None:  # the core is in this process
        return
    shutdown: Callable[..., None] = client.shutdown

    def shutdown_and_wake(*arguments: Any, **settings: Any) -> None:
        shutdown(*arguments, **settings)
        outputs.put(EngineDeadError("the process of vLLM's engine core has ended"))

    client.shutdown = shutdown_and_wake


def _counted(so_far: CanaryCounts, stats: Any) -> CanaryCounts:
    """With one more of vLLM's `SchedulerStats`, which count since the one before."""
    prefix = stats.prefix_cache_stats
    return CanaryCounts(
        so_far.steps + 1,
        so_far.prompt_tokens + prefix.queries,
        so_far.cached_tokens + prefix.hits,
        so_far.preemptions + prefix.preempted_requests,
        so_far.kv_use + stats.kv_cache_usage,
    )


def _check(engine: Any) -> None:
    for path in _NEEDED:
        owner: Any = engine
        for name in path.split("."):
            owner = getattr(owner, name, None)
        if not callable(owner):
            raise EngineError(f"this vLLM has no LLMEngine.{path}; PSI knows the versions that pyproject.toml names")
