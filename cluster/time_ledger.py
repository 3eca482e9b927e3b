"""The ledger of where the time of replicas went: seven parts, each second in one of them, and the tokens that came of it. Pure.

    boot          building the engine
    starved       nothing to do although there may be work: the coordinator, the driver or the plan was too slow
    prefill       in steps, for prompt tokens that the prefix cache did not hold
    decode        in steps, for generated tokens
    sink_stalled  kept from work because the writer was behind
    redone        in steps, for units that others had committed when they were done
    tail          nothing to do, or less than the engine can hold, because no unit is left to lease

A step does not tell for what it was made, so the time in steps is divided by token work: an uncached prompt token counts `prefill_weight`
generated ones (`energy.prefill_weight`). What was redone is redone with its prompts.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from cluster.protocol import Progress
from generation.energy import token_work
from generation.spent import Spent

PARTS = ("boot", "starved", "prefill", "decode", "sink_stalled", "redone", "tail")


@dataclass(frozen=True, slots=True)
class Noted:
    """Where an arm stands.

    Attributes:
        progress: The coordinator's counters.
        spent: Replica to where its time went.
        accepted: Rows accepted so far.
        accepted_tokens: Tokens generated for them.
        wanted: Replicas that the recipe asks for.
    """

    progress: Progress
    spent: dict[str, Spent]
    accepted: int
    accepted_tokens: int
    wanted: int


class TimeLedger:
    """What each replica of a session last said of itself. A dead replica's sums stay, and so do those that a coordinator has forgotten."""

    def __init__(self) -> None:
        self.replicas: dict[str, Spent] = {}

    @property
    def total(self) -> Spent:
        """The sum over all replicas."""
        return summed(self.replicas.values())

    def hear(self, spent: Mapping[str, Spent]) -> None:
        """Sums only grow: what is less than was heard before is older."""
        for replica, sums in spent.items():
            if sums.seconds >= self.replicas.get(replica, Spent()).seconds:
                self.replicas[replica] = sums


def summed(spents: Iterable[Spent]) -> Spent:
    """The sum of some."""
    return sum(spents, start=Spent())


def parts(spent: Spent, prefill_weight: float) -> dict[str, float]:
    """Seconds by part; they add up to `Spent.seconds`. Before the first request has finished, all time in steps is `decode`."""
    counts = {"prompt_tokens": spent.prompt_tokens, "cached_tokens": spent.cached_tokens}
    prefill_work = token_work(counts, prefill_weight)
    work = prefill_work + spent.output_tokens
    redone = spent.busy_seconds * min(1.0, spent.redone_tokens / spent.output_tokens) if spent.output_tokens else 0.0
    useful = spent.busy_seconds - redone
    prefill = useful * prefill_work / work if work else 0.0
    values = (spent.boot_seconds, spent.starved_seconds, prefill, useful - prefill, spent.sink_stalled_seconds)
    return dict(zip(PARTS, (*values, redone, spent.tail_seconds), strict=True))


def canary_view(spent: Spent) -> dict[str, float]:
    """What an engine's own statistics say next to what was counted here; empty where it kept none."""
    if not spent.canary_steps:
        return {}
    return {
        "kv_use": spent.canary_kv_use / spent.canary_steps,
        "preemptions": spent.canary_preemptions,
        "prefix_hit_share": _share(spent.canary_cached_tokens, spent.canary_prompt_tokens),
        "counted_prefix_hit_share": _share(spent.cached_tokens, spent.prompt_tokens),
    }


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def to_json(spent: Spent) -> dict[str, float]:
    """As a JSON object, without what is zero."""
    return {name: round(value, 3) for name, value in asdict(spent).items() if value}


def from_json(value: Mapping[str, Any]) -> Spent:
    """The inverse of `to_json`; what it does not know is left out."""
    return Spent(**{field.name: value.get(field.name, 0) for field in fields(Spent)})
