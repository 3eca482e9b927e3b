"""Token counts of an engine, by stage, readable from any thread."""

import threading

from generation.engines.base import EngineStats, Prepared

COUNTS = ("requests", "prompt_tokens", "cached_tokens", "output_tokens")
"""What is counted of each stage."""


def count_request(
    by_stage: dict[str, dict[str, int]], stage: str, prompt_tokens: int, cached_tokens: int, output_tokens: int
) -> None:
    """Count one more request of a stage."""
    counts = by_stage.get(stage)
    if counts is None:
        counts = by_stage[stage] = dict.fromkeys(COUNTS, 0)
    counts["requests"] += 1
    counts["prompt_tokens"] += prompt_tokens
    counts["cached_tokens"] += cached_tokens
    counts["output_tokens"] += output_tokens


class Tally:
    """Counts what an engine does. Written by its thread, read by others."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stats = EngineStats()

    def stepped(self, unfinished: int) -> None:
        """One more step, after which so many requests are unfinished."""
        with self._lock:
            self._stats.steps += 1
            self._stats.unfinished = unfinished

    def finished(self, prepared: Prepared, prompt_tokens: int, cached_tokens: int, output_tokens: int) -> None:
        """One more finished request."""
        with self._lock:
            stats = self._stats
            stats.prompt_tokens += prompt_tokens
            stats.cached_tokens += cached_tokens
            stats.output_tokens += output_tokens
            count_request(stats.by_stage, prepared.request.stage, prompt_tokens, cached_tokens, output_tokens)

    def stats(self) -> EngineStats:
        """A copy of the counters."""
        with self._lock:
            now = self._stats
            return EngineStats(
                now.steps,
                now.unfinished,
                now.prompt_tokens,
                now.cached_tokens,
                now.output_tokens,
                {stage: dict(counts) for stage, counts in now.by_stage.items()},
            )
