"""Long stories, run by `make chaos`. `PSI_CHAOS_SEED` tells another one; a failing one says how to tell it again."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest

from recipes.miniature.world import TASKS
from tests.chaos.checker import check_run
from tests.chaos.disk import own_disk
from tests.chaos.faults import KINDS, Fault, draw_faults
from tests.chaos.nodes import ray_nodes
from tests.chaos.recipes import POISON, RUN_ID, psi_command, scripted_recipe
from tests.chaos.story import Story
from tests.end_to_end.live_run import ROOT

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]

SEED = int(os.environ.get("PSI_CHAOS_SEED") or 1)
ROWS, UNITS, FAULTS = 19_000, 10_000, 44
TASK = 'tasks=[{name="kilo", description="task kilo", seeds="seeds/kilo.jsonl", evaluation="evaluation/kilo.jsonl", answer={kind="exact"}}]'
VLLM_ROWS, VLLM_UNITS = 600, 60


@contextmanager
def told_again() -> Iterator[None]:
    """Say how, where the block fails."""
    try:
        yield
    except BaseException:
        print(f"\nthe same faults again: make chaos SEED={SEED}", flush=True)  # noqa: T201
        raise


def poisoned(run: Path) -> list[str]:
    """Stages at which flows of the poisoned cell ended, over all shards."""
    records = [json.loads(line) for path in run.glob("plan/*.jsonl") for line in path.read_text().splitlines()]
    cells = {c["cell_id"] for record in records for c in record["cells"] if POISON in c["draft_text"]}
    tables = [pa.ipc.open_file(path.read_bytes()).read_all() for path in run.glob("rows/*/*.arrow")]
    rows = [row for table in tables for row in table.select(["cell", "status", "stage"]).to_pylist()]
    return [row["stage"] or row["status"] for row in rows if row["cell"] in cells]


def test_ten_thousand_units_and_everything_that_can_go_wrong(tmp_path: Path):
    recipe = scripted_recipe(tmp_path, ROWS, cells=400, poison=True, seconds_per_step=0.2)
    run = tmp_path / "run"
    with told_again(), own_disk(run) as disk, ray_nodes(workers=3, cpus=2) as nodes:
        kinds = [kind for kind in KINDS if kind != "disk full" or disk]
        faults = draw_faults(SEED, UNITS, FAULTS, kinds)
        story = Story(nodes, run, psi_command(recipe, nodes.address, run), faults, disk)
        code = story.tell()
        violations = check_run(run, RUN_ID, ROWS, story.history)
        poison = poisoned(run)
        print(f"\n{story.summary()}\n  {len(poison):5}  poison requests\n  {len(violations):5}  violations")  # noqa: T201
        assert violations == []
        assert code == 0, story.said()
        assert (story.done.keys(), story.done.total()) == (set(kinds), FAULTS)
        assert story.refused == story.done["second driver"]
        assert story.units >= UNITS
        assert sum(story.spread) >= 4
        assert len(story.spread) >= 2
        assert poison
        assert "instance" not in poison


@pytest.mark.parametrize(
    ("multiprocess", "kinds"),
    [
        ("false", ["replica killed", "coordinator killed", "node killed", "replica killed"]),
        ("true", ["engine killed", "driver killed", "commit answer lost", "engine killed"]),
    ],
    ids=["engine in the actor", "engine in its own process"],
)
def test_real_vllm(tmp_path: Path, multiprocess: str, kinds: list[str]):
    rules = [
        {"task": "kilo", "level": "task", "kind": "solve", "text": "; ".join(TASKS["kilo"])},
        {"task": "kilo", "level": "instance", "kind": "generate", "text": "len 4-6"},
    ]
    principles, run = tmp_path / "principles.jsonl", tmp_path / "run"
    principles.write_text("".join(f"{json.dumps(rule)}\n" for rule in rules))
    overrides = [
        TASK, 'generation.arms=["psi"]', f"generation.accepted_rows={VLLM_ROWS}", "generation.flows_per_unit=8",
        "generation.min_yield=0", f"principles.from={principles}", "pools.small.engine.max_num_seqs=4",
        f"pools.small.engine.multiprocess={multiprocess}", "cluster.lease_seconds=20", "cluster.max_replica_restarts=100",
    ]  # fmt: skip
    faults = [Fault(8 * (number + 1), kind, 0.4) for number, kind in enumerate(kinds)]
    with told_again(), ray_nodes(workers=2, cpus=2) as nodes:
        command = psi_command(ROOT / "recipes/miniature/recipe.toml", nodes.address, run, overrides)
        story = Story(nodes, run, command, faults)
        code = story.tell()
    violations = check_run(run, "miniature/psi", VLLM_ROWS, story.history)
    print(f"\n{story.summary()}\n  {len(violations):5}  violations")  # noqa: T201
    assert violations == []
    assert code == 0, story.said()
