"""The scripted engine: deterministic answers by prompt hash, with planted faults. For fault tests and scheduling benchmarks."""

import secrets
import time
from collections.abc import Sequence

from generation.engines.base import Completion, EngineStats, Finished, Prepared, Request
from generation.engines.config import ScriptedEngine
from generation.engines.tally import Tally
from generation.errors import EngineDeadError, EngineMemoryError, RequestError
from generation.storage import digest


class ScriptedModel:
    """An `Engine` that needs no model. A token is a word."""

    def __init__(self, config: ScriptedEngine, rung: int = 0) -> None:
        self._short_of_memory = config.out_of_memory if rung < config.fits_at_rung else None
        self.max_in_flight = config.max_in_flight
        self._config = config
        self._unfinished: dict[int, Prepared] = {}
        self._tally = Tally()
        self._finished = 0

    def start(self) -> None:
        """Nothing to build.

        Raises:
            EngineMemoryError: As planned.
        """
        if self._short_of_memory == "start":
            raise EngineMemoryError("the scripted engine is out of memory, as planned")

    def prepare(self, request: Request) -> Prepared:
        """Choose the reply.

        Raises:
            RequestError: The prompt is empty.
        """
        prompt = _prompt(request)
        if not prompt:
            raise RequestError("the prompt is empty")
        replies = self._config.replies
        reply = replies[int(digest(prompt), 16) % len(replies)].replace("{random}", secrets.token_hex(8))
        words = reply.split(" ")
        kept = words[: request.sampling.max_output_tokens]
        completion = Completion(
            " ".join(kept),
            "stop" if len(kept) == len(words) else "length",
            prompt_tokens=len(prompt.split()),
            output_tokens=len(kept),
        )
        planted = self._config.fail_prompts_with
        if planted is not None and planted in prompt:
            completion = Completion("", "error", error=f"the prompt contains '{planted}'")
        return Prepared(request, len(prompt.split()), completion)

    def add(self, request_id: int, prepared: Prepared) -> None:
        """Queue a request."""
        self._unfinished[request_id] = prepared

    def step(self) -> list[Finished]:
        """Finish all requests in hand, or as many as are left to the engine's planted death.

        Raises:
            EngineDeadError: `die_after_requests` is reached, or it holds a prompt to die of.
            EngineMemoryError: As planned.
        """
        if self._config.seconds_per_step:
            time.sleep(self._config.seconds_per_step)
        deadly = self._config.die_on_prompts_with
        if deadly is not None and any(deadly in _prompt(one.request) for one in self._unfinished.values()):
            raise EngineDeadError(f"the scripted engine dies of a prompt that contains '{deadly}', as planned")
        limit = self._config.die_after_requests
        if self._short_of_memory == "work" and self._finished:
            raise EngineMemoryError("the scripted engine is out of memory, as planned")
        if limit is not None and self._finished >= limit:
            raise EngineDeadError(f"the scripted engine dies after {limit} requests, as planned")
        ids = list(self._unfinished)[: None if limit is None else limit - self._finished]
        finished = [self._finish(request_id) for request_id in ids]
        self._tally.stepped(len(self._unfinished))
        return finished

    def decode(self, finished: Sequence[Finished]) -> list[Completion]:
        """The replies."""
        return [one.payload for one in finished]

    def abort(self, request_ids: Sequence[int]) -> None:
        """Forget requests."""
        for request_id in request_ids:
            self._unfinished.pop(request_id, None)

    def stats(self) -> EngineStats:
        """Counters so far."""
        return self._tally.stats()

    def close(self) -> None:
        """Forget everything."""
        self._unfinished.clear()

    def _finish(self, request_id: int) -> Finished:
        prepared = self._unfinished.pop(request_id)
        completion: Completion = prepared.payload
        self._finished += 1
        self._tally.finished(prepared, completion.prompt_tokens, 0, completion.output_tokens)
        return Finished(request_id, completion)


def _prompt(request: Request) -> str:
    return request.prefix + request.text
