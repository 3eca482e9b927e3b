"""What a new user does first: 20 rows of a CSV, a recipe, a check, a preview, a look. The commands are those of the README."""

import csv
import json
import os
import subprocess
from pathlib import Path

from pyarrow import parquet

from recipes.miniature.world import TASKS, oracle
from tests.end_to_end.live_run import PSI, ROOT

MINIATURE = ROOT / "recipes/miniature"
SEEDS, ROWS = 20, 20


def psi(folder: Path, *words: str) -> str:
    """What a command prints; it must succeed."""
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "PATH": f"{Path(PSI).parent}:{os.environ['PATH']}"}
    ended = subprocess.run(["psi", *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-4000:]
    return ended.stdout


def write_examples(folder: Path) -> None:
    lines = (MINIATURE / "seeds/kilo.jsonl").read_text().splitlines()[:SEEDS]
    with (folder / "examples.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["question", "answer"])
        writer.writerows((row["input"], row["output"]) for row in map(json.loads, lines))


def write_principles(folder: Path) -> None:
    kinds = {"solve": "; ".join(TASKS["kilo"]), "generate": "len 4-6"}
    lines = [{"task": "mytask", "level": "task", "kind": kind, "text": text} for kind, text in kinds.items()]
    (folder / "principles.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_twenty_rows_of_a_csv_become_a_recipe_and_a_preview_to_look_at(tmp_path: Path) -> None:
    write_examples(tmp_path)
    write_principles(tmp_path)
    said = psi(tmp_path, "init", "mytask", "--seeds", "examples.csv", "--small", str(MINIATURE / "models/small"))
    assert "input       'question'\n  output      'answer', answer kind exact\n  seeds       20 rows" in said
    assert all(len(line) <= 80 for line in said.splitlines())

    # An ordinary chat model needs none of these: the miniature's models speak a language of their own.
    own = [f"prompts={MINIATURE}/prompts", "principles.from=principles.jsonl"]
    said = psi(tmp_path, "check", "mytask", *own)
    assert said.startswith("mytask: no mistakes")
    assert "will refuse" not in said

    said = psi(tmp_path, "run", "mytask", "--limit", str(ROWS), *own)
    assert f"rows: {ROWS} of {ROWS}" in said
    files = (tmp_path / "runs/mytask-preview/dataset/round-0").glob("*.parquet")
    rows = [row for file in files for row in parquet.read_table(file).to_pylist()]
    assert len({row["row_id"] for row in rows}) == ROWS
    right = sum(row["answer"] == oracle("kilo", row["input"]) for row in rows)
    assert right > ROWS / 2, rows

    said = psi(tmp_path, "show", "runs/mytask-preview")
    assert "principles: 2 selected" in said
    assert "rows: 5 of 20" in said
    assert "; ".join(TASKS["kilo"]) in said
