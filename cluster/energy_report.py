"""The energy of a run: by stage and by arm, against a large model that writes everything, and in grams. Made from the run folder alone."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cluster.compare_items import read_answers
from cluster.energy_book import read_windows
from cluster.energy_ledger import KINDS, LOAD_IDLE, Ledger, figure, make_ledger
from cluster.report_files import RunFiles, number, open_run
from cluster.report_yield import read_yield
from generation.bootstrap import contrast, resample
from generation.energy import Window, break_even_rows
from generation.energy_config import EnergyConfig
from generation.storage import Store

UNITS = {
    "accepted_share": "share of 1",
    "break_even_rows": "rows",
    "break_even_rows_with_starts": "rows",
    "core_seconds": "core-seconds",
    "g_per_kwh": "g CO2e/kWh",
    "grams": "g CO2e",
    "kwh": "kWh",
    "large_accepted_share": "share of 1",
    "measured_share": "share of 1",
    "prefill_weight": "generated tokens per uncached prompt token",
    "pue": "ratio",
    "ratio": "ratio",
    "ratio_to_large": "ratio",
    "ratio_with_starts": "ratio",
    "saved_share": "share of 1",
    "watts_per_core": "W",
    **dict.fromkeys(("accepted", "drafts", "large_drafts", "rows"), "rows"),
    **dict.fromkeys(("joules_per_accepted", "psi_joules_per_accepted", "large_joules_per_accepted"), "J/row"),
}
"""Unit of a number by the last name of its path; all others are joules."""

ENOUGH_DRAFTS = 500
"""Drafts of the large model below which its energy per accepted row is flagged as taken from too few."""

JOULES_PER_KWH = 3.6e6
WORK = tuple(kind for kind in KINDS if kind != LOAD_IDLE)
NEVER = "never"
NOT_COUNTED = (
    "memory, disks and network (but as the power per core includes them)",
    "Ray's own daemons",
    "what a killed process used in its last ten seconds, and one that was stopped before it was ready",
    "the making of the hardware",
)


def energy_of(run: Store) -> dict[str, Any]:
    """All figures on energy. What was not measured is None, never 0.

    Returns:
        `stages` (by kind of work: `cluster.energy_ledger.KINDS`) and `run_stages` (by stage of the run), each a
        `cluster.energy_ledger.figure`; `total_joules` and `kwh` of the computers, `method` and `measured_share` of the total;
        `principles_joules`, `arms`, `counterfactual`, `ratio_to_large`, `break_even_rows` (`never` where the large model costs less a
        row); `carbon`, and the assumptions with their sources.

    Raises:
        StorageError: The run does not exist, or one of its files cannot be read.
    """
    files = open_run(run)
    config = EnergyConfig.model_validate(files.settings.get("energy", {}))
    windows = [_unmetered_if_remote(window, files) for window in read_windows(run)]
    committed = {arm: lines[-1].get("tokens", {}) for arm, lines in files.metrics.items() if lines}
    ledger = make_ledger(windows, committed, config.prefill_weight)
    watts = config.watts_per_core
    whole = figure(ledger.total(), watts) if windows else dict.fromkeys(("joules", "method", "measured_share"))
    principles = _joules(ledger, config, ["principles"], WORK)
    arms = {arm: _arm(files, ledger, config, arm) for arm in files.generating_arms}
    against = _against_large(files, ledger, config, arms, principles)
    run_stages = dict.fromkeys(window.stage for window in windows)
    kinds = {kind: ledger.total(kinds=[kind]) for kind in KINDS if any(key[1] == kind for key in ledger.entries)}
    return {
        "stages": {kind: figure(used, watts) for kind, used in kinds.items()},
        "run_stages": {stage: figure(ledger.total([stage]), watts) for stage in run_stages},
        "total_joules": whole["joules"],
        "kwh": None if whole["joules"] is None else whole["joules"] / JOULES_PER_KWH,
        "method": whole["method"],
        "measured_share": whole["measured_share"],
        "principles_joules": principles,
        "arms": arms,
        "counterfactual": against,
        "ratio_to_large": against and against["ratio"],
        "break_even_rows": against and against["break_even_rows"],
        "pue": config.pue,
        "carbon": _carbon(config, whole["joules"]),
        "assumptions": _assumptions(config),
    }


def _unmetered_if_remote(window: Window, files: RunFiles) -> Window:
    """A replica of an http engine only asks: what answers it uses, nobody here can tell."""
    engine = ((files.settings.get("pools") or {}).get(window.pool) or {}).get("engine", {})
    return replace(window, used=replace(window.used, unmetered=True)) if engine.get("kind") == "http" else window


def _joules(ledger: Ledger, config: EnergyConfig, stages: list[str], kinds: tuple[str, ...]) -> float | None:
    """None where nothing was booked, or a part could not be metered."""
    if not any(stage in stages and kind in kinds for stage, kind in ledger.entries):
        return None
    return figure(ledger.total(stages, kinds), config.watts_per_core)["joules"]


def _arm(files: RunFiles, ledger: Ledger, config: EnergyConfig, arm: str) -> dict[str, Any]:
    """Of one arm's rows: drafts, votes, failures and curation, without starting engines and waiting."""
    stage, rows = f"generate-{arm}", read_yield(files.metrics[arm], files.summaries[arm])
    joules, accepted = _joules(ledger, config, [stage], WORK), rows["rows"]
    drafts, kept = rows["flows"], rows["accepted"]
    return {
        "joules_generate": joules,
        "joules_failed": _joules(ledger, config, [stage], ("failed",)),
        "joules_load_idle": _joules(ledger, config, [stage], (LOAD_IDLE,)),
        "method": figure(ledger.total([stage], WORK), config.watts_per_core)["method"] if joules is not None else None,
        "accepted": accepted,
        "drafts": drafts,
        "accepted_share": kept / drafts if drafts and kept is not None else None,
        "joules_per_accepted": joules / accepted if joules is not None and accepted else None,
    }


def _against_large(
    files: RunFiles,
    ledger: Ledger,
    config: EnergyConfig,
    arms: Mapping[str, Mapping[str, Any]],
    principles: float | None,
) -> dict[str, Any] | None:
    """Principles and psi's rows against as many rows of the large model, by what each used in this run; None where one was not measured."""
    small, large = arms.get("psi", {}), arms.get("large", {})
    per_small, per_large = small.get("joules_per_accepted"), large.get("joules_per_accepted")
    if principles is None or not per_small or not per_large:
        return None
    rows = small["accepted"]
    psi_joules, large_joules = principles + per_small * rows, per_large * rows
    loads = {pool: _start(files, ledger, config, pool) for pool in ("large", "small")}
    started = even_started = None
    if loads["large"] is not None and loads["small"] is not None:
        started = (psi_joules + loads["large"] + loads["small"]) / (large_joules + loads["large"])
        even_started = _break_even(principles + loads["small"], per_large, per_small)
    return {
        "rows": rows,
        "psi_joules": psi_joules,
        "large_joules": large_joules,
        "ratio": psi_joules / large_joules,
        "saved_joules": large_joules - psi_joules,
        "saved_share": 1 - psi_joules / large_joules,
        "ratio_with_starts": started,
        "break_even_rows": _break_even(principles, per_large, per_small),
        "break_even_rows_with_starts": even_started,
        "psi_joules_per_accepted": per_small,
        "large_joules_per_accepted": per_large,
        "large_accepted_share": large["accepted_share"],
        "large_drafts": large["drafts"],
        "enough_drafts": (large["drafts"] or 0) >= ENOUGH_DRAFTS,
        "method": large["method"] if large["method"] == small["method"] else "mixed",
        "equal_accuracy": _equal_accuracy(files),
    }


def _break_even(fixed: float, per_large: float, per_small: float) -> float | str:
    even = break_even_rows(fixed, per_large, per_small)
    return NEVER if math.isinf(even) else even


def _start(files: RunFiles, ledger: Ledger, config: EnergyConfig, pool: str) -> float | None:
    """Joules of starting all replicas of a pool once, by the mean of all starts in the run."""
    joules = [figure(used, config.watts_per_core)["joules"] for used in ledger.starts.get(pool, [])]
    if not joules or None in joules:
        return None
    return files.settings["pools"][pool].get("replicas", 1) * sum(joules) / len(joules)


def _equal_accuracy(files: RunFiles) -> dict[str, Any]:
    """What the ratio at equal count says of equal accuracy: where psi is not less accurate, it needed no more rows than it had."""
    rights = read_answers(files.run, ["psi", "large"], "psi").rights
    if len(rights) < 2:
        return {"status": "not measured", "difference": None, "ci95": [None, None]}
    seed = int(number(files.settings.get("run", {}), "seed") or 0)
    found = contrast(resample(rights, seed), "psi", "large").difference
    status = "the ratio is an upper bound" if found.low >= 0 else "no difference in accuracy was shown"
    if found.high < 0:
        status = "not reached"
    return {"status": status, "difference": found.value, "ci95": [found.low, found.high]}


def _carbon(config: EnergyConfig, joules: float | None) -> dict[str, Any]:
    """Location-based: by the grid that the recipe names, whatever contract the power is bought under."""
    intensity, year, source = config.intensity or (None, None, None)
    kwh = None if joules is None else joules / JOULES_PER_KWH * config.pue
    return {
        "grams": None if kwh is None or intensity is None else kwh * intensity,
        "g_per_kwh": intensity,
        "source": source and ", ".join(str(part) for part in (source, year, config.region) if part),
        "basis": "location-based",
    }


def _assumptions(config: EnergyConfig) -> dict[str, Any]:
    return {
        "watts_per_core": config.watts_per_core,
        "watts_source": config.watts_source,
        "pue_source": config.pue_source,
        "prefill_weight": config.prefill_weight,
        "not_counted": "; ".join(NOT_COUNTED),
    }
