"""A comparison of arms, cut down: real vLLM, Ray and DeepSpeed, killed once in training and started again."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from generation.principles.model import read_principles
from generation.storage import Store
from recipes.miniature.world import TASKS
from tests.end_to_end.live_run import ROOT, LiveRun, live_run

pytestmark = [pytest.mark.timeout(1800), pytest.mark.slow]

ROWS = 8
ARMS = ("fewshot", "inference-only", "large", "placebo", "psi")
NAMES = ("kilo", "lima")
ALL_TASKS = ", ".join(
    f'{{name="{name}", description="task {name}", seeds="seeds/{name}.jsonl", evaluation="evaluation/{name}.jsonl", '
    'fields={rationale="steps"}, answer={kind="exact"}}'
    for name in NAMES
)
OVERRIDES = [
    f"tasks=[{ALL_TASKS}]",
    'generation.arms=["psi"]',
    f"generation.accepted_rows={ROWS}",
    "generation.flows_per_unit=8",
    f"compare.arms={json.dumps(ARMS)}",
    'compare.headline=["psi"]',
    "compare.training_seeds=2",
    "training.max_steps=6",
    "evaluation.max_items=10",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveRun]:
    folder = tmp_path_factory.mktemp("compare")
    rules = [{"task": name, "level": "task", "kind": "solve", "text": "; ".join(TASKS[name])} for name in NAMES]
    lengths = [{"task": name, "level": "instance", "kind": "generate", "text": "len 4-6"} for name in NAMES]
    principles = folder / "principles.jsonl"
    principles.write_text("".join(f"{json.dumps(line)}\n" for line in [*rules, *lengths]))
    overrides = [*OVERRIDES, f"principles.from={principles}"]
    with live_run(ROOT / "recipes/miniature/recipe.toml", overrides, folder / "run", "compare") as live:
        driver = live.start()
        live.wait(driver, "stage train-large", lambda: (live.folder / "stages/train-large.json").exists())
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        assert live.outliving() == []
        assert live.finish(live.start()) == 0, live.said()
        yield live


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def of_arm(run: LiveRun, arm: str) -> Path:
    return run.folder if arm == "psi" else run.folder / "arms" / arm


def test_every_writing_arm_has_exactly_its_rows_and_every_trained_one_its_models(run: LiveRun) -> None:
    for arm in ("large", "placebo", "psi"):
        files = [str(file) for file in (of_arm(run, arm) / "dataset/round-0").glob("*.parquet")]
        tasks = [name for file in files for name in pq.read_table(file)["task"].to_pylist()]
        assert {name: tasks.count(name) for name in NAMES} == dict.fromkeys(NAMES, ROWS)
        assert (of_arm(run, arm) / "models/round-0/psi.json").exists()
    assert (run.folder / "models/seed-1/psi.json").exists()
    assert not (of_arm(run, "placebo") / "models/seed-1").exists()
    weights = [(run.folder / "models" / name / "model.safetensors").read_bytes() for name in ("round-0", "seed-1")]
    assert weights[0] != weights[1]


def test_the_placebo_of_a_task_is_what_the_other_task_works_with(run: LiveRun) -> None:
    found = read_principles(Store(str(of_arm(run, "placebo"))))
    solving = {p.task: p.text for p in found if p.status == "active" and p.kind == "solve"}
    assert solving == {"kilo": "; ".join(TASKS["lima"]), "lima": "; ".join(TASKS["kilo"])}


def test_arms_differ_only_in_what_their_rows_come_from(run: LiveRun) -> None:
    labels = {
        arm: read(of_arm(run, arm) / "dataset/round-0/summary.json")["label_accuracy"] for arm in ("psi", "placebo")
    }
    assert labels["psi"] >= 0.9
    assert labels["placebo"] <= 0.2
    steps = {arm: read(run.folder / f"stages/train-{arm}.json")["steps"] for arm in ("psi", "psi.seed-1", "large")}
    assert set(steps.values()) == {6}


def test_principles_in_the_prompt_answer_without_training(run: LiveRun) -> None:
    scores = {arm: read(run.folder / f"evaluation/{arm}.json")["accuracy"] for arm in ("inference-only", "fewshot")}
    assert scores["inference-only"] >= 0.9
    assert scores["fewshot"] < scores["inference-only"]


def test_the_comparison_is_written_and_the_same_command_changes_nothing(run: LiveRun) -> None:
    before = read(run.folder / "compare.json")
    assert set(before["arms"]) == set(ARMS)
    assert "placebo" in (run.folder / "compare.md").read_text()
    assert run.finish(run.start()) == 0, run.said()
    assert read(run.folder / "compare.json") == before
