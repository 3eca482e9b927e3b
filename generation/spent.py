"""Where a replica's time went, in sums that only grow. Pure data; the pump fills it, the report divides it."""

from dataclasses import astuple, dataclass


@dataclass(frozen=True, slots=True)
class Spent:
    """A replica's time since it began, each second in one place, and the tokens that came of it.

    Attributes:
        boot_seconds: Building the engine.
        starved_seconds: Nothing unfinished, and no work in hand although there may be some.
        busy_seconds: In steps with all the requests that it can hold, or with more work on its way.
        sink_stalled_seconds: Nothing unfinished, or less than it can hold, because the writer is behind.
        tail_seconds: Nothing unfinished, or less than it can hold, because no unit is left to lease.
        steps: Steps of the engine.
        prompt_tokens: Of finished requests, cached ones included.
        cached_tokens: Those from the prefix cache.
        output_tokens: Generated for finished requests.
        redone_tokens: Output tokens of units that others had settled when it came to commit them.
        canary_steps: The engine's own statistics, on the replicas that keep them (`generation.engines.base.CanaryCounts`).
        canary_prompt_tokens: See there.
        canary_cached_tokens: See there.
        canary_preemptions: See there.
        canary_kv_use: See there.
    """

    boot_seconds: float = 0.0
    starved_seconds: float = 0.0
    busy_seconds: float = 0.0
    sink_stalled_seconds: float = 0.0
    tail_seconds: float = 0.0
    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    redone_tokens: int = 0
    canary_steps: int = 0
    canary_prompt_tokens: int = 0
    canary_cached_tokens: int = 0
    canary_preemptions: int = 0
    canary_kv_use: float = 0.0

    @property
    def seconds(self) -> float:
        """All of the time."""
        waits = self.boot_seconds + self.starved_seconds + self.sink_stalled_seconds + self.tail_seconds
        return waits + self.busy_seconds

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: "Spent") -> "Spent":
        return Spent(*(mine - theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))
