import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BENCHMARKS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))
TINY = {
    "packing": ["--rows", "500"],
    "curation": ["--rows", "50", "--rounds", "1"],
    "curation_quality": ["--items", "10"],
    "coordinator": ["--replicas", "20", "--units", "200", "--rounds", "1"],
}
FIGURES = {
    "packing": {"rows_per_second", "efficiency", "padded_efficiency"},
    "curation": {"rows_per_second", "bytes_per_row_near_duplicates", "bytes_per_row_keys"},
    "curation_quality": {"sources"},
    "coordinator": {"pairs_per_second"},
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
