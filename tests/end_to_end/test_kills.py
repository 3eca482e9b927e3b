"""One run of the miniature, cut down, that is killed wherever it can be. Real vLLM, Ray and DeepSpeed.

The fixtures are chapters of one story, each the same command on the same run folder: it is told once, the tests look at it.
"""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from pyarrow import parquet

from generation.instances.plan_log import read_records
from generation.manifest import replay
from generation.storage import Store
from generation.visible import ShardReader
from recipes.miniature.world import oracle
from tests.end_to_end.live_run import ROOT, LiveRun, live_run
from tests.end_to_end.one_task import OVERRIDES, write_principles
from training.checkpoint import complete_checkpoints
from training.job import TrainingJob
from training.metrics import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

# Two replicas with two requests at a time each had written 126 rows by the time the first kill came, on a fast machine.
ROWS, STEPS = 400, 60
MORE_OVERRIDES = (
    f"generation.accepted_rows={ROWS}",
    f"training.max_steps={STEPS}",
    "evaluation.max_items=20",
)


@dataclass
class Chapter:
    """What was seen of one driver.

    Attributes:
        code: What it ended with.
        actors: Ray's names of its processes.
        left: Titles of processes that outlived it.
    """

    code: int
    actors: set[str]
    left: list[str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveRun]:
    folder = tmp_path_factory.mktemp("story")
    principles = write_principles(folder / "principles.jsonl")
    overrides = [*OVERRIDES, *MORE_OVERRIDES, f"principles.from={principles}"]
    with live_run(ROOT / "recipes/miniature/recipe.toml", overrides, folder / "run") as live:
        yield live


def segments(run: LiveRun, incarnation: int) -> int:
    """Segments of an incarnation that hold rows; its first one holds none."""
    return max(0, len(list(run.folder.glob(f"manifest/{incarnation:06d}-*.jsonl"))) - 1)


def writers(run: LiveRun) -> set[str]:
    """Replicas of which rows are visible."""
    return {file.rpartition("-")[0] for file in replay(Store(str(run.folder))).state.shards}


def scratch(run: LiveRun) -> Path:
    """Where training keeps its state, once it has begun."""
    return next((run.folder / "scratch/psi").glob("*"), run.folder / "nowhere")


def starts(run: LiveRun) -> list[dict]:
    return read_metrics(scratch(run) / "starts.jsonl")


def newest_step(run: LiveRun) -> int:
    checkpoints = complete_checkpoints(scratch(run))
    return int(checkpoints[-1].name.removeprefix("step-")) if checkpoints else 0


def actors(run: LiveRun, driver: subprocess.Popen[bytes]) -> set[str]:
    """`ray::Replica.generate` is named `Replica`."""
    return {re.split(r"\W", title[5:])[0] for title in run.below(driver).values() if title.startswith("ray::")}


@pytest.fixture(scope="module")
def first(run: LiveRun) -> tuple[Chapter, subprocess.CompletedProcess[str]]:
    """A second driver is started in vain; then the driver is killed in generation."""
    driver = run.start()
    run.wait(driver, "claim", lambda: (run.folder / "drivers/000001.beat").exists())
    other = subprocess.run(run.command, capture_output=True, text=True, cwd=ROOT, timeout=600)
    run.wait(driver, "rows", lambda: segments(run, 1))
    seen, left = actors(run, driver), run.kill(driver)
    assert not (run.folder / "dataset").exists(), "killed too late: the dataset is written"
    return Chapter(driver.returncode, seen, left), other


@pytest.fixture(scope="module")
def second(run: LiveRun, first: object) -> Chapter:
    """One replica is killed in generation, then, once another in its place has written rows, the other; then the driver in training."""
    before = writers(run)
    driver = run.start()
    run.wait(driver, "rows of both replicas", lambda: len(writers(run) - before) == 2)
    one, other = run.titled(driver, "ray::Replica")
    os.kill(one, signal.SIGKILL)
    os.kill(other, signal.SIGSTOP)  # or it would write all rows before the replacement is up
    run.wait(driver, "rows of the replacement", lambda: len(writers(run) - before) == 3)
    os.kill(other, signal.SIGKILL)
    assert not (run.folder / "dataset").exists(), "killed too late: the dataset is written"
    run.wait(driver, "checkpoint", lambda: newest_step(run))
    seen, left = actors(run, driver), run.kill(driver)
    return Chapter(driver.returncode, seen, left)


@pytest.fixture(scope="module")
def third(run: LiveRun, second: Chapter) -> Chapter:
    """A training rank is killed; the run goes on to its end."""
    driver = run.start()
    began = run.wait(driver, "second start of training", lambda: starts(run)[1:])[-1]
    run.wait(driver, "newer checkpoint", lambda: newest_step(run) > began["step"])
    seen = actors(run, driver)
    os.kill(int(began["processes"][1].partition(":")[2]), signal.SIGKILL)
    code = run.finish(driver)
    return Chapter(code, seen, run.outliving())


def test_a_second_live_driver_is_refused_and_told_who_the_first_one_is(
    run: LiveRun, first: tuple[Chapter, subprocess.CompletedProcess[str]]
) -> None:
    _, other = first
    claim = json.loads((run.folder / "drivers/000001.json").read_text())
    assert other.returncode == 5
    assert f"driven by process {claim['pid']} on {claim['host']}" in other.stderr
    assert "Traceback" not in other.stderr
    assert run.logs[0].read_text().count("RunLockedError") == 0


def test_a_killed_driver_takes_its_cluster_along(
    first: tuple[Chapter, subprocess.CompletedProcess[str]], second: Chapter
) -> None:
    for chapter in (first[0], second):
        assert chapter.code == -signal.SIGKILL
        assert chapter.left == []


def test_the_miniature_runs_in_the_actors_of_a_big_run(
    first: tuple[Chapter, subprocess.CompletedProcess[str]], second: Chapter
) -> None:
    assert {"Replica", "Coordinator"} <= first[0].actors
    assert {"TrainController", "RayTrainWorker"} <= second.actors


def test_a_run_that_was_killed_everywhere_ends_well(run: LiveRun, third: Chapter) -> None:
    assert third.code == 0, run.said()
    assert third.left == []


def test_there_are_exactly_as_many_rows_as_asked_for_and_none_twice(run: LiveRun, third: Chapter) -> None:
    tables = [parquet.read_table(file) for file in (run.folder / "dataset/round-0").glob("train-*.parquet")]
    rows = [row for table in tables for row in table.to_pylist()]
    assert len(rows) == ROWS
    assert len({row["row_id"] for row in rows}) == ROWS
    assert len({row["input"] for row in rows}) == ROWS


def test_each_planned_unit_is_visible_at_most_once_and_whole(run: LiveRun, third: Chapter) -> None:
    store = Store(str(run.folder))
    records, state, reader = read_records(store), replay(store).state, ShardReader(Store(str(run.folder)))
    sizes = {unit: record.flows_per_unit for record in records for unit in record.units()}
    assert set(state.places) <= set(sizes)
    units = {unit: [row.row_id for row in reader.rows(place)] for unit, place in state.places.items()}
    assert all(len(ids) == sizes[unit] for unit, ids in units.items())
    visible = [row_id for ids in units.values() for row_id in ids]
    assert len(visible) == len(set(visible))
    assert not state.tombstones


def test_both_drivers_and_the_replacement_of_dead_replicas_have_written_rows(run: LiveRun, third: Chapter) -> None:
    assert len(list(run.folder.glob("manifest/incarnation-*"))) == 3  # two coordinators, and the sweep at the end
    assert (
        len(writers(run)) >= 4
    )  # one of the first driver, the two of the second that were killed, and one in their place


def test_training_has_each_step_once_although_a_rank_and_a_driver_died_in_it(run: LiveRun, third: Chapter) -> None:
    lines = read_metrics(run.folder / "metrics/training.jsonl")
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    begun = [start["step"] for start in starts(run)]
    assert len(begun) == 3
    assert begun == sorted(set(begun))
    assert begun[0] == 0
    processes = [process for start in starts(run) for process in start["processes"]]
    assert len(set(processes)) == 6


def test_the_model_and_its_score_are_there(run: LiveRun, third: Chapter) -> None:
    assert (run.folder / "models/round-0/model.safetensors").exists()
    scores = json.loads((run.folder / "evaluation/psi.json").read_text())
    assert scores["items"] == 20
    report = json.loads((run.folder / "report.json").read_text())
    assert report["arms"]["psi"]["accuracy"] == scores["accuracy"]


def test_labels_written_by_the_true_rule_are_true(run: LiveRun, third: Chapter) -> None:
    tables = [parquet.read_table(file) for file in (run.folder / "dataset/round-0").glob("train-*.parquet")]
    rows = [row for table in tables for row in table.to_pylist()]
    assert sum(row["answer"] == oracle("kilo", row["input"]) for row in rows) > 0.5 * ROWS


def contents(folder: Path) -> dict[str, str]:
    """Digest of each file, but for the claims of drivers and the report, which is made anew."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    kept = [path for path in files if "drivers" not in path.parts and not path.name.startswith("report.")]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


def test_the_same_command_once_more_changes_nothing(run: LiveRun, third: Chapter) -> None:
    before = contents(run.folder)
    report = json.loads((run.folder / "report.json").read_text())
    assert run.finish(run.start()) == 0, run.said()
    assert contents(run.folder) == before
    assert " took " not in run.said()
    assert json.loads((run.folder / "report.json").read_text())["arms"] == report["arms"]


def test_torchrun_takes_the_job_that_psi_train_writes(run: LiveRun, third: Chapter, tmp_path: Path) -> None:
    train = [run.command[0], "train", *run.command[2:], "--jobs", str(tmp_path)]
    said = subprocess.run(train, capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert said.stdout == f"torchrun --nproc-per-node 2 -m training.loop {tmp_path}/psi.json\n", said.stderr
    job = TrainingJob.from_json((tmp_path / "psi.json").read_text())
    assert job.is_exported
    places = {name: str(tmp_path / name) for name in ("output", "checkpoints", "metrics")}
    short = job.config.model_copy(update={"max_steps": 3})
    (tmp_path / "psi.json").write_text(replace(job, config=short, **places).to_json())
    torchrun = [sys.executable, "-m", "torch.distributed.run", *said.stdout.split()[1:]]
    assert subprocess.run(torchrun, cwd=ROOT, timeout=600).returncode == 0
    assert [line["step"] for line in read_metrics(tmp_path / "metrics")] == [1, 2, 3]
    assert (tmp_path / "output/model.safetensors").exists()
