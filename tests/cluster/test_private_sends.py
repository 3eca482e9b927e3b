from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cluster.private_sends import SendBook, host, read_private_sends
from cluster.recipe import Recipe, compared, load_recipe
from cluster.report_files import open_run
from generation.errors import PrivacyError
from generation.flows import FlowResult
from generation.rows import Row, rows_to_batch
from generation.storage import Store, json_bytes

LOCAL = {"kind": "vllm", "model": "m"}
REMOTE = {"kind": "http", "url": "https://models.example:8443/v1", "model": "m"}
FAR = {**REMOTE, "url": "https://far.example/v1"}
ALL_ARMS = ["base", "direct", "large", "psi"]


def values(large: dict[str, str], small: dict[str, str], arms: list[str] = ALL_ARMS) -> dict[str, Any]:
    allowed = ["models.example", "far.example"]
    answer = {"kind": "exact"}
    return {
        "run": {"name": "r"},
        "tasks": [
            {"name": "notes", "description": "d", "seeds": "s", "answer": answer, "privacy": "private", "allowed_endpoints": allowed},
            {"name": "open", "description": "d", "seeds": "s", "answer": answer},
        ],
        "pools": {"large": {"engine": large}, "small": {"engine": small}},
        "generation": {"accepted_rows": 1, "arms": arms},
    }  # fmt: skip


def result(key: str, tokens: int) -> FlowResult:
    return FlowResult(key, None, requests=1, prompt_tokens=tokens)


def opened(folder: Path, recipe: dict[str, Any]) -> Store:
    run = Store(str(folder))
    run.replace("recipe.json", json_bytes({"recipe": recipe}))
    return run


def write_shard(arm: Store, name: str, **tokens: int) -> None:
    rows = [Row(f"{task}{i}", "u", i, task, "instance", input="text", prompt_tokens=n) for task, n in tokens.items() for i in (0, 1)]  # fmt: skip
    sink = pa.BufferOutputStream()
    batch = rows_to_batch(rows)
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    arm.write_new(f"rows/round-0/{name}.arrow", sink.getvalue().to_pybytes())


def test_what_an_endpoint_is_asked_of_private_tasks_is_booked_over_all_sessions(tmp_path: Path) -> None:
    run = opened(tmp_path, values(REMOTE, LOCAL))
    for tokens in (30, 12):  # two sessions of the driver
        book = SendBook(run, Recipe.model_validate(values(REMOTE, LOCAL)))
        book.add("large", [result("mine/notes/task/0000", tokens), result("mine/open/task/0000", 500)])
        book.add("large", [result("mine/notes/skill/0001", 1), result("mine/notes/skill/0002", 0)])
        book.add("small", [result("probe/notes/0000", 700)])
    told = read_private_sends(open_run(run))
    assert told == {"private_tasks": ["notes"], "private_tokens_sent": {"models.example:8443": 44, "local": 0}}
    booked = b"".join(run.read(f"privacy/{name}") for name in run.names("privacy"))
    assert b"open" not in booked


def test_an_endpoint_that_an_earlier_session_used_keeps_its_tokens(tmp_path: Path) -> None:
    SendBook(Store(str(tmp_path)), Recipe.model_validate(values(FAR, LOCAL))).add("large", [result("mine/notes/a", 9)])
    run = opened(tmp_path, values(REMOTE, LOCAL))
    sent = read_private_sends(open_run(run))["private_tokens_sent"]
    assert sent == {"far.example": 9, "models.example:8443": 0, "local": 0}


def test_rows_that_an_endpoint_wrote_are_counted_by_arm_and_task(tmp_path: Path) -> None:
    run = opened(tmp_path, values(REMOTE, LOCAL))
    write_shard(run.child("arms/large"), "one", notes=10, open=1000)
    write_shard(run.child("arms/large"), "two", notes=3)
    write_shard(run, "psi-is-written-by-the-local-pool", notes=10_000)
    assert read_private_sends(open_run(run))["private_tokens_sent"] == {"models.example:8443": 26, "local": 0}
    small_far = opened(tmp_path, values(LOCAL, FAR))
    assert read_private_sends(open_run(small_far))["private_tokens_sent"] == {"local": 0, "far.example": 20_000}


def test_local_engines_send_nothing_by_construction(tmp_path: Path) -> None:
    run = opened(tmp_path, values(LOCAL, LOCAL))
    SendBook(run, Recipe.model_validate(values(LOCAL, LOCAL))).add("large", [result("mine/notes/task/0", 50)])
    write_shard(run, "one", notes=10)
    assert read_private_sends(open_run(run))["private_tokens_sent"] == {"local": 0}
    assert not run.exists("privacy")


def test_a_host_is_named_with_its_port_and_without_its_path() -> None:
    assert host("https://models.example:8443/v1") == "models.example:8443"
    assert host("models.example") == "models.example"


@pytest.mark.parametrize("pool", ["large", "small"])
def test_a_private_task_is_refused_whichever_pool_would_send_it_away(tmp_path: Path, pool: str) -> None:
    (tmp_path / "seeds.jsonl").write_text('{"input": "the patient", "output": "well"}\n' * 3)
    (tmp_path / "recipe.toml").write_text(
        f"""
run.name = "r"
pools.large.engine = {{ kind = "scripted" }}
pools.small.engine = {{ kind = "scripted" }}
pools.{pool}.engine = {{ kind = "http", url = "https://far.example/v1", model = "m" }}
generation = {{ accepted_rows = 1, arms = ["base"] }}
[[tasks]]
name = "notes"
description = "d"
seeds = "seeds.jsonl"
answer = {{ kind = "exact" }}
privacy = "private"
allowed_endpoints = ["near.example"]
""".replace(f'pools.{pool}.engine = {{ kind = "scripted" }}\n', "")
    )
    with pytest.raises(
        PrivacyError, match=rf"pools\.{pool}\.engine\.url: task 'notes' is private and far\.example is not"
    ) as caught:
        load_recipe(tmp_path)
    assert "patient" not in str(caught.value)
    allowed = load_recipe(tmp_path, ['tasks.0.allowed_endpoints=["far.example"]', 'compare.arms=["base"]'])
    assert compared(allowed).recipe.tasks[0].privacy == "private"
