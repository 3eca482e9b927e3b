import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.results import lines_of, page, with_gpu
from benchmarks.support.clockwork import LONGEST, Shape, log_normal_lengths, write_model
from generation.engines.device import detect_device

ROOT = Path(__file__).parent.parent
BENCHMARKS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))
TINY = {
    "packing": ["--rows", "500"],
    "curation": ["--rows", "50", "--rounds", "1"],
    "curation_quality": ["--items", "10"],
    "store": ["--shards", "2", "--units", "2", "--rounds", "1"],
    "coordinator": ["--replicas", "20", "--units", "2000", "--clients", "0"],
    "placement": ["--replicas", "200", "--raylets", "0"],
}
FIGURES = {
    "packing": {"rows_per_second", "efficiency", "padded_efficiency"},
    "curation": {"rows_per_second", "bytes_per_row_near_duplicates", "bytes_per_row_keys"},
    "curation_quality": {"sources"},
    "store": {"rows_per_second", "bytes_per_row"},
    "coordinator": {"pairs_per_second", "rss_per_unit", "bytes_per_unit", "restart_seconds", "cost_ratio_1e6_to_1e4"},
    "placement": {"planner_seconds", "replicas", "ready"},
}


def run(name: str, *arguments: str) -> str:
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_imports_and_tells_its_options(name: str) -> None:
    assert f"{name}.py" in run(name, "--help")


@pytest.mark.parametrize("name", TINY)
def test_the_last_line_is_json_with_the_figures_and_what_the_ratio_is_to(name: str) -> None:
    figures = json.loads(run(name, *TINY[name]).splitlines()[-1])
    assert figures["benchmark"] == name
    assert figures.keys() >= FIGURES[name] | {"ratio", "ratio_to"}
    assert figures["ratio"] > 0


@pytest.mark.slow
def test_raylets_are_started_filled_and_released() -> None:
    figures = json.loads(run("placement", *TINY["placement"][:-1], "2").splitlines()[-1])
    moments = figures["until_seconds"]
    assert 0 < moments["started"] < moments["placed"] < moments["filled"] < moments["released"]
    assert figures["light_replicas"] == 4


def test_results_say_what_is_met_and_what_failed_and_keep_what_was_measured_on_a_gpu() -> None:
    lines = {"peers": {"vs_llm_generate": 1.31, "vs_ray_data_llm": 2.4}, "overhead": None}
    written = page(lines, "# Measured\n\nan earlier day\n\n## On a GPU\n\n| E1 | 3.2 |\n")
    rows = {line.split("`")[1]: line for line in written.splitlines() if line.startswith("|") and "`" in line}
    assert "| 1.31 | >= 1.3 | yes |" in rows["vs_llm_generate"]
    assert "| 2.4 | >= 2.5 | no |" in rows["vs_ray_data_llm"]
    assert "| failed | >= 0.97 | no |" in rows["miniature.eta_best.median"]
    assert written.endswith("## On a GPU\n\n| E1 | 3.2 |\n")
    assert "an earlier day" not in written
    assert page(lines, written) == written


def test_results_of_a_benchmark_that_is_not_run_again_stay() -> None:
    store = {"benchmark": "store", "rows_per_second": 5, "date": "2026-01-01", "machine": "m"}
    written = page({"store": store, "overhead": None})
    assert lines_of(written) == {"store": store}
    assert "| store | `rows_per_second` | 5 |" in page(lines_of(written) | {"overhead": None}, written)


def test_a_gpu_section_takes_the_place_of_the_one_before_and_of_nothing_else() -> None:
    arm = {"experiment": "groups", "model": "m", "arm": "4 prefixes", "tokens_per_second": 15872, "roofline": 0.747}
    left_out = {"experiment": "blocks", "left_out": "3 s were left"}
    figures = {"date": "2026-01-01", "device": "H200", "cores": 16, "vllm": "1", "torch": "2", "lines": [arm, left_out]}
    written = with_gpu("# Measured\n\nof this machine\n\n## On a GPU\n\nan earlier day\n", figures)
    assert "of this machine" in written
    assert "an earlier day" not in written
    assert "| groups | m | 4 prefixes | 15,872 |  |  | 0.747 |  |" in written
    assert json.dumps(left_out) in written
    assert with_gpu(written, figures) == written


@pytest.mark.skipif(detect_device().kind == "gpu", reason="there is a GPU here, which it would measure")
def test_the_gpu_benchmark_says_that_there_is_no_gpu() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 1
    assert "needs a GPU" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_failing_benchmark_keeps_no_other_from_running_and_is_told(tmp_path: Path) -> None:
    file = tmp_path / "RESULTS.md"
    command = [sys.executable, "-m", "benchmarks.results", "missing", "packing", "--file", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode != 0
    assert "failed: missing" in done.stderr
    assert '"benchmark": "packing"' in file.read_text(encoding="utf-8")


def test_the_clockwork_model_writes_as_many_tokens_as_the_prompt_asks_for(tmp_path: Path) -> None:
    lengths = log_normal_lengths()
    write_model(tmp_path, Shape(hidden=128, layers=1, intermediate=64, head=32), lengths)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="float32")
    for asked in (0, 31, 63):
        prompt = tokenizer(f"<bos><|user|>write w3 w5 length{asked}", return_tensors="pt")
        written = model.generate(**prompt, do_sample=True, max_new_tokens=LONGEST + 10)[0][
            prompt["input_ids"].shape[1] :
        ]
        assert len(written) == lengths[asked]
        assert written[-1] == tokenizer.eos_token_id
    assert 62 <= sum(lengths) / len(lengths) <= 64
