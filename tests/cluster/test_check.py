import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from cluster.check import check_recipe, human
from cluster.show import show_run
from generation.engines.config import VllmEngine
from generation.engines.model_facts import context_tokens, model_facts
from generation.errors import RecipeError, StorageError
from generation.principles.model import Difference, Principle, write_principles
from generation.storage import Store, json_bytes, json_lines
from recipes.miniature.world import TASKS

ROOT = Path(__file__).parents[2]
MINIATURE = ROOT / "recipes/miniature"
SHARED = Path(os.environ.get("PSI_SHARED_DIR", "../shared")).absolute()


def test_the_miniature_is_checked_in_eighty_columns() -> None:
    text = check_recipe(MINIATURE, [])
    lines = text.splitlines()
    assert lines[0].endswith("no mistakes")
    assert max(map(len, lines[1:-1])) <= 80
    assert "40 seeds (20 mine, 10 validate, 10 demo), 100 rows" in text
    assert "2 replicas" in text


@pytest.mark.skipif(not SHARED.is_dir(), reason="PSI_SHARED_DIR has no data")
def test_the_gsm8k_recipe_is_checked_on_the_real_data() -> None:
    data = SHARED / "data/gsm8k"
    overrides = [f"tasks.0.seeds={data}/train.jsonl", f"tasks.0.evaluation={data}/test.jsonl"]
    text = check_recipe(ROOT / "recipes/gsm8k/recipe.toml", overrides)
    assert "7.0 B parameters by its name" in text
    assert "200 seeds" in text


def test_a_context_that_the_model_lacks_is_refused_before_anything_is_read() -> None:
    with pytest.raises(RecipeError, match="max_model_len: 100000 is more than the 512"):
        check_recipe(MINIATURE, ["pools.small.engine.max_model_len=100000"])


def test_rotary_embeddings_that_were_stretched_reach_further(tmp_path: Path) -> None:
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 32768, "rope_scaling": rope}))
    assert context_tokens(str(tmp_path)) == 131072
    assert context_tokens("owner/name") is None


def test_prompts_that_an_engine_will_refuse_are_a_warning() -> None:
    assert "will refuse" not in check_recipe(MINIATURE, [])
    text = " ".join(check_recipe(MINIATURE, ["pools.small.engine.max_model_len=80"]).split())
    assert "the longest draft prompt of arm direct has" in text
    assert "more than max_model_len = 80, so the engine will refuse it" in text


def test_a_large_model_without_work_is_not_spoken_of(tmp_path: Path) -> None:
    lines = [{"task": task, "level": "task", "kind": "solve", "text": "sort"} for task in TASKS]
    (tmp_path / "principles.jsonl").write_bytes(json_lines(lines))
    text = check_recipe(MINIATURE, [f"principles.from={tmp_path}/principles.jsonl"])
    assert "so no large model is started" in " ".join(text.split())
    assert "large " not in text.partition("models")[2].partition("principles")[0]


def test_a_template_without_the_pattern_that_reads_its_answers_is_a_mistake(tmp_path: Path) -> None:
    prompts = shutil.copytree(MINIATURE / "prompts", tmp_path / "prompts")
    for name in ("cause", "contradict"):
        (prompts / f"{name}.jinja").write_text("Why?")
    with pytest.raises(RecipeError) as caught:
        check_recipe(MINIATURE, [f"prompts={prompts}"])
    for pattern, template in (("cause", "cause"), ("verdict", "contradict")):
        assert f"patterns.toml has no '{pattern}', which reads what {template}.jinja asks for" in str(caught.value)
    with (prompts / "patterns.toml").open("a") as file:
        file.write("cause = '(?P<cause>.+)'\nverdict = '(?P<verdict>yes|no)'\n")
    assert check_recipe(MINIATURE, [f"prompts={prompts}"])


def test_problems_of_data_and_principles_come_together(tmp_path: Path) -> None:
    (tmp_path / "seeds.jsonl").write_text('{"input": "x"}\n')
    (tmp_path / "principles.jsonl").write_text('{"task": "other"}\n')
    overrides = [
        f"tasks.0.seeds={tmp_path}/seeds.jsonl",
        f"principles.from={tmp_path}/principles.jsonl",
    ]
    with pytest.raises(RecipeError) as caught:
        check_recipe(MINIATURE, overrides)
    for text in ("seeds.jsonl:1: has no field 'output'", "principles.jsonl"):
        assert text in str(caught.value)


def test_what_may_surprise_is_a_warning(tmp_path: Path) -> None:
    rows = [{"input": f"x{i}", "output": "yes"} for i in range(4)]
    (tmp_path / "seeds.jsonl").write_bytes(json_lines(rows))
    (tmp_path / "held_out.jsonl").write_text('{"input": "other", "output": "no"}\n')
    overrides = [
        f"tasks.0.seeds={tmp_path}/seeds.jsonl",
        "tasks.0.answer={kind = 'choice', labels = ['yes', 'no']}",
        "tasks.0.fields={}",
        "tasks.0.evaluation=''",
        "pools.small.engine={kind = 'scripted'}",
    ]
    with pytest.raises(RecipeError, match=r"tasks\.0\.evaluation"):
        check_recipe(MINIATURE, overrides)
    overrides[3] = f"tasks.0.evaluation={tmp_path}/held_out.jsonl"
    text = " ".join(check_recipe(MINIATURE, overrides).split())
    assert "labels: yes 4, no 0" in text
    assert "no seed has the label no" in text
    assert "4 seeds are few" in text
    assert "generation is possible, training is not" in text


def test_memory_of_a_rank_is_told_in_parts_and_adapters_at_the_rate_of_a_whole_model_are_a_warning() -> None:
    overrides = ["training.lora.rank=4", "training.learning_rate=1e-5", "training.deepspeed.dump_state=false"]
    text = " ".join(check_recipe(MINIATURE, overrides).split())
    assert "optimizer" in text.partition("memory per rank: ~")[2]
    assert "activations with gradient checkpointing:" in text
    assert "training.learning_rate: 1e-05 is little for adapters" in text
    assert "little for adapters" not in check_recipe(MINIATURE, [])


def test_parameters_are_counted_from_the_headers() -> None:
    folder = MINIATURE / "models/small"
    facts = model_facts(VllmEngine(model=str(folder), dtype="float32"))
    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert facts.parameters is not None
    assert abs(facts.parameters * 2 / stored - 1) < 0.05
    assert facts.weight_bytes == 4 * facts.parameters
    config = json.loads((folder / "config.json").read_text())
    per_layer = 2 * config["num_key_value_heads"] * config["head_dim"] * 4
    assert facts.kv_bytes_per_token == config["num_hidden_layers"] * per_layer


def test_a_hub_id_tells_its_size_by_its_name_only() -> None:
    assert model_facts(VllmEngine(model="Qwen/Qwen2.5-0.5B-Instruct")).parameters == 500_000_000
    assert model_facts(VllmEngine(model="owner/name")).parameters is None


@pytest.mark.parametrize(
    ("count", "text"), [(999, "999"), (1000, "1.0 k"), (999_600, "1.0 M"), (7_000_000_000, "7.0 B")]
)
def test_counts_have_three_digits_at_most(count: int, text: str) -> None:
    assert human(count) == text


def test_an_empty_run_shows_that_nothing_is_measured(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no such run folder"):
        show_run(str(tmp_path / "none"))
    Store(str(tmp_path)).write_new("recipe.json", json_bytes({"recipe": {"generation": {"arms": ["psi"]}}}))
    assert show_run(str(tmp_path)).count("not measured") == 6


def test_a_run_shows_its_principles_rows_rejections_and_speed(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write_new("recipe.json", json_bytes({"recipe": {"run": {"name": "r"}, "generation": {"arms": ["psi"]}}}))
    active = Principle(
        "1",
        "kilo",
        "task",
        "solve",
        "sort it",
        solve_accuracy=0.8,
        solve_gain=Difference(0.5, 0.2, 0.8, 10),
        status="active",
    )
    write_principles(
        store,
        [
            active,
            Principle("2", "kilo", "task", "solve", "other"),
            Principle("3", "kilo", "task", "", "bad", status="retired"),
        ],
    )
    (tmp_path / "dataset/round-0").mkdir(parents=True)
    rows = [
        {"task": "kilo", "input": f"in {i}", "answer": f"out {i}", "rationale": "", "agreement": 1.0} for i in range(20)
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "dataset/round-0/train-0.parquet")
    tokens = [{"draft": {"output_tokens": n}} for n in (0, 1000)]
    store.write_new(
        "metrics/generation-1.jsonl",
        json_lines(
            {"time": f"2026-01-01T00:00:{10 * i:02d}+00:00", "seconds": 10 * i, "accepted": {"kilo": 15 * i}, "instances": {"kilo": 15 * i},
             "rejections": {"kilo/vote/no majority": 5 * i}, "tokens": tokens[i]}
            for i in range(2)
        ),
    )  # fmt: skip
    text = show_run(str(tmp_path), rows=3)
    assert "principles: 1 selected, 1 more candidates, 1 retired" in text
    assert "kilo / task / solve, support 0: solves 0.80, +0.50 (+0.20 to +0.80) over" in text
    assert "none; 10 seeds" in text
    assert text.count("answer  out") == 3
    assert "5   25.0%  vote: no majority" in text
    assert "100 tokens/s, 1.50 accepted rows/s over 10 s" in text
    assert "energy\n  not measured" in text
