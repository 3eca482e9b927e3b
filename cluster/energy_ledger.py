"""From the windows of a run to what each kind of work used, and from there to joules. Reads no file."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from generation.energy import IDLE, LOAD, LOST, Used, Window, apportion, divide, joined, token_work

LOAD_IDLE, FAILED = "load_idle", "failed"
KINDS = (LOAD_IDLE, "mine", "probe", "generate", "verify", FAILED, "curate", "train", "evaluate")
"""Starting engines and waiting; mining principles; trying them; drafts; votes; work whose rows nobody saw; curation and coordination;
training; evaluation."""

Tokens = Mapping[str, Mapping[str, int]]


@dataclass
class Ledger:
    """What was used.

    Attributes:
        entries: By (stage of the run, kind of work).
        starts: By pool, what the start of each replica used.
    """

    entries: dict[tuple[str, str], Used] = field(default_factory=dict[tuple[str, str], Used])
    starts: dict[str, list[Used]] = field(default_factory=dict[str, list[Used]])

    def total(self, stages: Iterable[str] | None = None, kinds: Iterable[str] = KINDS) -> Used:
        """The sum over some stages (default: all) and kinds."""
        wanted, of_kind = None if stages is None else set(stages), set(kinds)
        chosen = [
            used
            for (stage, kind), used in self.entries.items()
            if (wanted is None or stage in wanted) and kind in of_kind
        ]
        return sum(chosen, Used())

    def add(self, stage: str, kind: str, used: Used) -> None:
        """Add to an entry."""
        self.entries[stage, kind] = self.entries.get((stage, kind), Used()) + used


def make_ledger(windows: Sequence[Window], committed: Mapping[str, Tokens], prefill_weight: float) -> Ledger:
    """Divide windows among kinds of work; nothing is lost or counted twice on the way.

    Args:
        windows: Those of a process in order.
        committed: Tokens behind the visible rows of each arm, by request stage. What replicas computed beyond them in `generate-<arm>`
            (units that others committed first or that died with their replica) is moved to `failed`.
        prefill_weight: See `generation.energy.token_work`.
    """
    ledger = Ledger()
    metered: dict[tuple[str, str], float] = {}
    parts: dict[tuple[str, str, str], Used] = {}
    for window in joined(windows):
        if window.loading:
            ledger.starts.setdefault(window.pool, []).append(window.used)
        for part, used in divide(window, prefill_weight).items():
            key = window.stage, kind_of(window, part), part
            parts[key] = parts.get(key, Used()) + used
        for part, counts in window.tokens.items():
            key = window.stage, part
            metered[key] = metered.get(key, 0.0) + token_work(counts, prefill_weight)
    for (stage, kind, part), used in parts.items():
        arm = stage.removeprefix("generate-")
        counts = committed.get(arm, {}).get(part) if arm != stage and kind in {"generate", "verify"} else None
        if counts is None:
            ledger.add(stage, kind, used)
            continue
        visible = min(token_work(counts, prefill_weight), metered[stage, part])
        kept, lost = _cut(used, {kind: visible, FAILED: metered[stage, part] - visible})
        ledger.add(stage, kind, kept)
        ledger.add(stage, FAILED, lost)
    return ledger


def kind_of(window: Window, part: str) -> str:
    """The kind of work that a part of a window was."""
    step = window.stage.partition("-")[0]
    if part == LOAD:
        return LOAD_IDLE
    if window.role in {"driver", "coordinator"}:
        return "curate"
    if window.role == "rank":
        return "train"
    if part in {IDLE, LOST}:
        return LOAD_IDLE if part == IDLE else FAILED
    if step == "principles":
        return "mine" if part == "mine" or window.pool == "large" else "probe"
    return {"evaluate": "evaluate", "answer": "verify"}.get(part, "generate")


def _cut(used: Used, weights: Mapping[str, float]) -> tuple[Used, Used]:
    """In two, by two weights, exactly."""
    if not any(weights.values()):
        return used, Used()
    wall, core, measured, estimated = (
        tuple(apportion(total, weights).values())
        for total in (used.wall_ms, used.core_ms, used.measured_mj, used.estimated_mj)
    )
    first, second = zip(wall, core, measured, estimated, strict=True)
    return Used(*first, unmetered=used.unmetered), Used(*second, unmetered=used.unmetered)


def figure(used: Used, watts_per_core: float) -> dict[str, Any]:
    """What was used in joules, with the method: GPU counters are measured, core-seconds times a power per core are estimated.

    Returns:
        `joules` (None where a part could not be metered), `method` (`measured`, `estimated` or `mixed`), `measured_share`,
        `core_seconds` (measured), `seconds` (time on the clock, summed over processes) and, with GPUs, `gpu_joules`.
    """
    estimated = used.estimated_mj / 1000 + used.core_ms / 1000 * watts_per_core
    measured = used.measured_mj / 1000
    joules = measured + estimated
    method = "estimated" if not used.measured_mj else "mixed" if estimated else "measured"
    on_gpu = (used.measured_mj + used.estimated_mj) / 1000
    facts = {"gpu_joules": on_gpu} if on_gpu and not used.unmetered else {}
    return {
        "joules": None if used.unmetered else round(joules, 3),
        "method": "not measured" if used.unmetered else method,
        "measured_share": None if used.unmetered else round(measured / joules, 6) if joules else 0.0,
        "core_seconds": used.core_ms / 1000,
        "seconds": used.wall_ms / 1000,
        **facts,
    }
