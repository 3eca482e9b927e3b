"""Recipes for fault tests: a run of the scripted engine that makes units by the thousand, and one of real vLLM."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.end_to_end.live_run import PSI

RUN = "chaos"
RUN_ID = f"{RUN}/psi"
POISON = "poison"
"""The word whose prompts kill the scripted engine."""
LEASE_SECONDS = 3.0


def scripted_recipe(
    folder: Path, rows: int, cells: int = 50, poison: bool = False, seconds_per_step: float = 0.01
) -> Path:
    """A recipe of one task whose instances cost next to nothing: each draft has an input of its own, some are rejected.

    Args:
        folder: Where to write it.
        rows: Its target.
        cells: Words to spread the plan over; one of them is poison, where that is asked for.
        poison: Whether prompts of one cell kill the engine.
        seconds_per_step: How long the engine takes to answer all that it has.
    """
    words = [f"place {number}" for number in range(cells - poison)] + [f"the {POISON} cupboard"] * poison
    good = "<input>{random}</input> <answer>yes</answer>"
    engine: dict[str, Any] = {
        "kind": "scripted",
        "replies": [good] * 9 + ["nothing"],
        "max_in_flight": 16,
        "seconds_per_step": seconds_per_step,
    }
    if poison:
        engine["die_on_prompts_with"] = POISON
    sections: dict[str, Any] = {
        "run": {"name": RUN, "output": "run", "scratch": "scratch"},
        "pools": {"small": {"engine": engine, "replicas": 4, "cpus": 1.0}},
        "principles": {"from": "principles.jsonl"},
        "generation": {
            "accepted_rows": rows, "flows_per_unit": 2, "bundles": 1, "contexts": words, "demonstrations": 0, "demo_leak": 0.0,
            "min_yield": 0.0, "min_novelty": 0.0, "voting": {"rounds": [1], "min_agreement": 0.0},
        },
        "cluster": {"lease_seconds": LEASE_SECONDS, "max_replica_restarts": 10_000},
    }  # fmt: skip
    return _write(folder, sections)


def psi_command(
    recipe: Path, address: str, folder: Path, overrides: Sequence[str] = (), psi: Sequence[str] = (PSI,)
) -> list[str]:
    """The command that generates a run on a cluster.

    Args:
        recipe: Its recipe.
        address: Of the Ray cluster.
        folder: Its run folder.
        overrides: Of the recipe.
        psi: What stands for `psi`.
    """
    where = [f"cluster.address={address}", f"run.output={folder}", f"run.scratch={folder.parent / 'scratch'}"]
    return [*psi, "generate", str(recipe), *overrides, *where]


def _write(folder: Path, sections: dict[str, Any]) -> Path:
    seeds = [{"input": f"seed {word}", "output": "yes"} for word in ("alpha", "beta", "gamma", "delta")]
    (folder / "seeds.jsonl").write_text("".join(f"{json.dumps(seed)}\n" for seed in seeds))
    rule = {"task": "names", "level": "task", "kind": "solve", "text": "every answer is yes"}
    draft = {"task": "names", "level": "instance", "kind": "generate", "text": "make up a name"}
    (folder / "principles.jsonl").write_text(f"{json.dumps(rule)}\n{json.dumps(draft)}\n")
    task = {"name": "names", "description": "Say yes.", "seeds": "seeds.jsonl", "answer": {"kind": "exact"}}
    path = folder / "recipe.toml"
    path.write_text("".join(f"{name} = {_toml(value)}\n" for name, value in {**sections, "tasks": [task]}.items()))
    return path


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value)
