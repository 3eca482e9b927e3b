"""The recipe for real models on the real data, with a model that writes nonsense: it ends early, says why, and keeps everything."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from cluster.check import check_recipe
from generation.errors import RecipeError
from generation.manifest import replay
from generation.storage import Store
from generation.visible import ShardReader
from tests.end_to_end.live_run import PSI, ROOT

SHARED = Path(os.environ.get("PSI_SHARED_DIR", "../shared")).absolute()
RECIPE = ROOT / "recipes/gsm8k/recipe.toml"
DATA = [f"tasks.0.seeds={SHARED}/data/gsm8k/train.jsonl", f"tasks.0.evaluation={SHARED}/data/gsm8k/test.jsonl"]
MODEL = SHARED / "models/stories260K"

# The default prompts alone fill the 512 tokens of this model.
SHORT_PROMPTS = {
    "draft_prefix": "{% for p in principles %}{{ p.text }}\n{% endfor %}",
    "draft_text": "<input>",
    "answer_prefix": "{% for p in principles %}{{ p.text }}\n{% endfor %}",
    "answer_text": "{{ input }}\nAnswer:",
    "student": "{{ input }}",
    "student_answer": "{{ answer }}",
}
PRINCIPLES = [
    {"task": "gsm8k", "level": "task", "kind": "generate", "text": "Name every quantity that is needed."},
    {"task": "gsm8k", "level": "skill", "kind": "solve", "text": "Work out one quantity after the other."},
]

pytestmark = pytest.mark.skipif(not (SHARED / "data/gsm8k").is_dir(), reason="PSI_SHARED_DIR has no data")


def small_engine(max_model_len: int = 512) -> list[str]:
    engine = {
        "model": MODEL, "dtype": "float32", "max_model_len": max_model_len, "kv_cache_bytes": 1 << 27,
        "gpu_memory_utilization": 0.2, "enforce_eager": "true", "threads": 1,
    }  # fmt: skip
    return [f"pools.{pool}.engine.{key}={value}" for pool in ("large", "small") for key, value in engine.items()]


def overrides(folder: Path) -> list[str]:
    principles = folder / "principles.jsonl"
    principles.write_text("".join(json.dumps(line) + "\n" for line in PRINCIPLES))
    short = {"draft": 32, "answer": 32}
    return [
        *DATA,
        *small_engine(),
        *(f"generation.{name}.max_output_tokens={tokens}" for name, tokens in short.items()),
        "evaluation.sampling.max_output_tokens=32",
        "pools.large.gpus=0", "pools.small.gpus=0", "pools.small.cpus=1", "pools.small.replicas=1",
        "training.ranks=1", "training.gpus_per_rank=0",
        f"principles.from={principles}",
        "generation.demonstrations=0", 'generation.arms=["psi"]',
        "generation.flows_per_unit=32", "generation.patience_units=4",
        f"run.output={folder}/run",
    ]  # fmt: skip


def test_nonsense_ends_the_run_early_with_its_yield_and_reasons_and_everything_is_kept(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    for name, text in SHORT_PROMPTS.items():
        (prompts / f"{name}.jinja").write_text(text)
    (prompts / "patterns.toml").write_text((ROOT / "generation/prompts/chat/patterns.toml").read_text())
    command = [PSI, "run", str(RECIPE), *overrides(tmp_path), f"prompts={prompts}"]
    ended = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "RAY_AUTH_MODE": "disabled"}, capture_output=True, text=True
    )

    assert ended.returncode == 6, ended.stderr[-4000:]
    message = ended.stderr.partition("error: ")[2]
    assert message.startswith("generate psi: task 'gsm8k': 0 of 50,000 rows accepted,\n0 of the last 128 flows")
    assert "length: draft cut, such as" in message
    assert "another small model" in message
    assert "Traceback" not in ended.stderr

    run = Store(str(tmp_path / "run"))
    places = replay(run).state.places.values()
    rows = [row for place in places for row in ShardReader(run).rows(place)]
    assert len(rows) >= 128
    assert {row.status for row in rows} == {"rejection"}
    assert all(row.raw for row in rows)
    shown = subprocess.run([PSI, "show", str(tmp_path / "run")], capture_output=True, text=True, check=True).stdout
    assert "length: draft cut\n" in shown
    assert "such as" in shown


def test_prompts_longer_than_the_context_and_a_context_longer_than_the_models_are_told_by_check(tmp_path: Path) -> None:
    wanted = overrides(tmp_path)
    text = " ".join(check_recipe(RECIPE, wanted).split())
    assert "task gsm8k: the longest draft prompt of arm psi has" in text
    assert "200 seeds (100 mine, 50 validate, 50 demo), 1319 rows for evaluation, number answers" in text
    with pytest.raises(
        RecipeError, match="max_model_len: 4096 is more than the 512 tokens that the model was made for"
    ):
        check_recipe(RECIPE, [*wanted, *small_engine(4096)])
