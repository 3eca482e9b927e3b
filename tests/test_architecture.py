import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("cluster", "generation", "training")
OURS = {*PACKAGES, "recipes", "benchmarks", "tests"}
HEAVY = {"ray", "torch", "vllm", "deepspeed", "transformers"}
MAY_IMPORT = {
    "generation": {"generation"},
    "training": {"training", "generation"},
    "cluster": {"cluster", "generation", "training"},
}
MAY_BE_HEAVY = {
    "generation": {"vllm", "torch", "transformers"},
    "training": HEAVY - {"ray", "vllm"},
    "cluster": {"ray", "torch", "transformers"},
}
VLLM_FILES = ("generation/engines/vllm.py", "generation/engines/vllm_scheduler.py")
HTTP_FILE = "generation/engines/http.py"
LONGEST_FUNCTION, LONGEST_FILE = 40, 250


def source_files() -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imports(path: str) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def roots(path: str) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("path", source_files())
def test_every_file_imports_only_in_the_allowed_directions(path: str) -> None:
    package = path.split("/")[0]
    assert roots(path) & OURS <= MAY_IMPORT[package]
    assert roots(path) & HEAVY <= MAY_BE_HEAVY[package]
    assert "vllm" not in roots(path) or path in VLLM_FILES
    assert "httpx" not in roots(path) or path == HTTP_FILE
    if package == "generation":
        assert not roots(path) & HEAVY or path in VLLM_FILES


@pytest.mark.parametrize("path", [path for path in source_files() if path.startswith("training/")])
def test_training_knows_of_generation_only_the_dataset_and_what_it_stands_on(path: str) -> None:
    known = {name for name in imports(path) if name.split(".")[0] == "generation"}
    assert known <= {
        "generation.dataset",
        "generation.errors",
        "generation.large_files",
        "generation.rows",
        "generation.storage",
    }


def test_generation_can_be_imported_without_any_heavy_library() -> None:
    modules = [path[:-3].replace("/", ".") for path in source_files() if path.startswith("generation/")]
    program = f"import sys\nfor name in {modules!r}: __import__(name)\nprint(sorted(set({sorted(HEAVY - {'transformers'})!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["cluster.cli", "cluster.recipe", "generation.config", "training.config"])
def test_the_command_line_and_the_configs_import_nothing_heavy(module: str) -> None:
    program = (
        f"import sys, {module}\nprint(sorted(set({sorted([*HEAVY, 'datasets', 'matplotlib'])!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", source_files())
def test_files_and_functions_stay_short_enough_to_read(path: str) -> None:
    text = (ROOT / path).read_text()
    assert text.count("\n") <= LONGEST_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < LONGEST_FUNCTION, f"{path}:{node.lineno} {node.name}"


def test_every_package_is_listed_for_installation() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {
        str(path.parent.relative_to(ROOT)).replace("/", ".")
        for name in PACKAGES
        for path in (ROOT / name).rglob("__init__.py")
    }
    assert listed == found


def test_nothing_reads_pickles_from_storage_or_trusts_remote_code_by_itself() -> None:
    for path in source_files():
        assert "pickle" not in roots(path)
        assert "trust_remote_code=True" not in (ROOT / path).read_text()
