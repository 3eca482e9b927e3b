"""Token counts of an engine, by stage, readable from any thread."""

import threading

from generation.engines.base import EngineStats, Prepared


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
        counts = {
            "requests": 1,
            "prompt_tokens": prompt_tokens,
            "cached_tokens": cached_tokens,
            "output_tokens": output_tokens,
        }
        with self._lock:
            self._stats.prompt_tokens += prompt_tokens
            self._stats.cached_tokens += cached_tokens
            self._stats.output_tokens += output_tokens
            stage = self._stats.by_stage.setdefault(prepared.request.stage, dict.fromkeys(counts, 0))
            for name, count in counts.items():
                stage[name] += count

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
