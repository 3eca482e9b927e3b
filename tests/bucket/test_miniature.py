"""The miniature in a bucket, whose requests fail now and then: killed in generation and in training, and then its disk is gone. Real vLLM, Ray and
DeepSpeed, moto's server.
"""

import shutil
import subprocess
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from generation.instances.plan_log import read_records
from generation.manifest import replay
from generation.storage import Store
from generation.visible import ShardReader
from tests.bucket.proxy import Proxy, every
from tests.end_to_end.live_run import PSI, ROOT, LiveRun
from tests.end_to_end.one_task import OVERRIDES, write_principles
from training.checkpoint import MARKER
from training.job import LINEAGE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROWS, STEPS = 60, 30
MORE_OVERRIDES = (
    f"generation.accepted_rows={ROWS}",
    f"training.max_steps={STEPS}",
    "training.ranks=1",
    "evaluation.max_items=10",
)


def segments(run: Store) -> list[str]:
    return [name for name in run.names("manifest") if name.startswith("000001-")]


def markers(run: Store) -> list[str]:
    return [path for path in run.child("checkpoints").tree() if path.endswith(MARKER)]


def dataset_rows(run: Store) -> list[dict]:
    folder = run.child("dataset/round-0")
    files = [file["name"] for file in folder.read_json("SEALED.json")["files"]]
    return [row for name in files for row in parquet.read_table(pa.BufferReader(folder.read(name))).to_pylist()]


def test_the_miniature_in_a_bucket_is_killed_twice_and_ends_with_exactly_the_planned_rows(
    tmp_path: Path, uri: str, proxy: Proxy
):
    run, scratch = Store(uri), tmp_path / "scratch"
    principles = write_principles(tmp_path / "principles.jsonl")
    places = [f"principles.from={principles}", f"run.output={uri}", f"run.scratch={scratch}"]
    live = LiveRun(
        [PSI, "run", str(ROOT / "recipes/miniature/recipe.toml"), *OVERRIDES, *MORE_OVERRIDES, *places],
        tmp_path / "run",
    )
    proxy.draw = every(0.03, seed=7)

    driver = live.start()
    live.wait(driver, "rows", lambda: len(segments(run)) > 1)  # the first segment has none
    assert live.kill(driver) == []
    assert not run.exists("dataset"), "killed too late: the dataset is written"

    driver = live.start()
    live.wait(driver, "copy of a checkpoint", lambda: markers(run))
    assert live.kill(driver) == []
    assert not run.exists("models"), "killed too late: the model is exported"
    shutil.rmtree(scratch)

    assert live.finish(live.start()) == 0, live.said()
    proxy.draw = lambda: None

    rows = dataset_rows(run)
    assert [len(rows), len({row["row_id"] for row in rows}), len({row["input"] for row in rows})] == [ROWS] * 3
    records, state, reader = read_records(run), replay(run).state, ShardReader(run)
    sizes = {unit: record.flows_per_unit for record in records for unit in record.units()}
    units = {unit: [row.row_id for row in reader.rows(place)] for unit, place in state.places.items()}
    assert units
    assert all(len(ids) == sizes[unit] for unit, ids in units.items())
    visible = [row_id for ids in units.values() for row_id in ids]
    assert len(visible) == len(set(visible))
    assert not state.tombstones

    assert [line["step"] for line in run.read_lines("metrics/training.jsonl")] == list(range(1, STEPS + 1))
    starts = run.child(markers_folder(run)).read_lines("starts.jsonl")
    assert starts[-1]["step"] >= 10, "trained from the start although a checkpoint had been copied"
    model = run.child("models/round-0")
    assert set(model.read_json(LINEAGE)["files"]) | {LINEAGE} == set(model.names(""))
    assert run.read_json("evaluation/psi.json")["items"] == 10
    assert run.read_json("report.json")["arms"]["psi"]["accuracy"] == run.read_json("evaluation/psi.json")["accuracy"]
    assert not [path for path in run.tree() if "scratch" in path]

    said = subprocess.run([PSI, "show", uri], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert said.returncode == 0, said.stderr
    assert f"{ROWS}" in said.stdout


def markers_folder(run: Store) -> str:
    """Where the copies of the one job are."""
    return "checkpoints/" + markers(run)[0].rpartition("/step-")[0]
