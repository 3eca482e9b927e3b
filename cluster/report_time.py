"""Where the time of an arm's replicas went, made from its metrics lines; and which fraction of the hardware's limit that was."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.report_files import RunFiles, number
from cluster.time_ledger import canary_view, from_json, parts, summed
from generation.arms import arm_spec
from generation.energy_config import EnergyConfig
from generation.engines.config import VllmEngine
from generation.engines.model_facts import DTYPE_BYTES
from generation.roofline import PEAKS, Work, bound, shape_of
from generation.spent import Spent

NOT_APPLICABLE = "n/a"

Line = Mapping[str, Any]


def read_time(files: RunFiles, arm: str) -> dict[str, Any]:
    """The ledger of an arm over all restarts; None where it was not booked.

    Returns:
        `seconds` by part (`cluster.time_ledger`) with `replica_seconds`, their sum; `wall_seconds`; `tokens`; speeds over the wall time; the
        `roofline`; `replicas`, the same parts for each replica; and `canaries`, what vLLM's own statistics say, of the replicas that keep them.
    """
    sessions = [line for line in _last_lines(files.metrics[arm]) if "spent" in line]
    weight = EnergyConfig.model_validate(files.settings.get("energy", {})).prefill_weight
    spent = summed(from_json(line["spent"]) for line in sessions)
    each = {name: from_json(value) for line in sessions for name, value in line.get("spent_by_replica", {}).items()}
    wall = _sum(sessions, "seconds")
    accepted = number(sessions[-1], "accepted_tokens") if sessions else None
    gpu_hours = _sum(sessions, "gpu_seconds") / 3600
    return {
        "seconds": parts(spent, weight) if spent.seconds else None,
        "replica_seconds": spent.seconds or None,
        "wall_seconds": wall or None,
        "gpu_hours": gpu_hours if sessions else None,
        "tokens": _tokens(spent, accepted) if sessions else None,
        "prefix_hit_share": spent.cached_tokens / spent.prompt_tokens if spent.prompt_tokens else None,
        "accepted_tokens_per_second": accepted / wall if wall and accepted is not None else None,
        "accepted_tokens_per_gpu_hour": _per_gpu_hour(accepted, gpu_hours, sessions),
        "roofline": _roofline(files, arm, spent, sessions),
        "replicas": {name: parts(sums, weight) for name, sums in each.items()},
        "canaries": {name: view for name, sums in each.items() if (view := canary_view(sums))},
    }


def _last_lines(lines: Sequence[Line]) -> list[Line]:
    """The last line of each session."""
    return list({line.get("session"): line for line in lines}.values())


def _sum(lines: Sequence[Line], name: str) -> float:
    return sum(number(line, name) or 0.0 for line in lines)


def _tokens(spent: Spent, accepted: float | None) -> dict[str, float | None]:
    return {
        "prompt": spent.prompt_tokens,
        "cached": spent.cached_tokens,
        "generated": spent.output_tokens,
        "redone": spent.redone_tokens,
        "accepted": accepted,
    }


def _per_gpu_hour(accepted: float | None, gpu_hours: float, sessions: Sequence[Line]) -> float | str | None:
    if not sessions or accepted is None:
        return None
    return accepted / gpu_hours if gpu_hours else NOT_APPLICABLE


def _roofline(files: RunFiles, arm: str, spent: Spent, sessions: Sequence[Line]) -> dict[str, Any]:
    """Bounds over the replicas' time without boot; `n/a` on processors, and where the device or the model's shape is not known."""
    pool = files.settings.get("pools", {}).get(arm_spec(arm).writer or "small") or {}
    device = next((line["device"] for line in reversed(sessions) if line.get("device")), None)
    unknown = {"device": device or NOT_APPLICABLE, "achievable": NOT_APPLICABLE, "ideal": NOT_APPLICABLE}
    engine = pool.get("engine", {})
    path = Path(engine.get("model", "")) / "config.json"
    if device not in PEAKS or engine.get("kind") != "vllm" or not path.is_file():
        return unknown
    shape = shape_of(json.loads(path.read_text(encoding="utf-8")), *_widths(VllmEngine.model_validate(engine)))
    seconds = spent.seconds - spent.boot_seconds
    if shape is None or seconds <= 0:
        return unknown
    requests = _requests(sessions[-1])
    work = Work(spent.steps, requests, spent.prompt_tokens, spent.cached_tokens, spent.output_tokens)
    least = bound(shape, PEAKS[device] * pool.get("gpus", 1), work)
    if least is None:
        return unknown
    return {"device": device, "achievable": least.achievable / seconds, "ideal": least.ideal / seconds}


def _widths(engine: VllmEngine) -> tuple[int, int]:
    width = DTYPE_BYTES.get(engine.dtype, 2)
    return width, 1 if engine.kv_cache_dtype == "fp8" else width


def _requests(line: Line) -> int:
    """Requests of the rows that are committed; those of others are not known."""
    return int(sum(counts.get("requests", 0) for counts in line.get("tokens", {}).values()))
