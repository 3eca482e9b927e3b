"""The dataset card: README.md with the front matter by which `datasets` finds the files."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from generation.curation.counts import StageCounts
from generation.dataset_rows import DATASET_SCHEMA


def dataset_card(summary: Mapping[str, Any]) -> str:
    """The card. Holds numbers and ids only, no content of any row.

    Args:
        summary: The content of `summary.json`. The front matter lists exactly its files.
    """
    files = [file["name"] for file in summary["files"]]
    return (
        "\n".join([*_front_matter(files), *_tasks(summary), *_columns(), *_yield(summary), *_provenance(summary)])
        + "\n"
    )


def _front_matter(files: Sequence[str]) -> list[str]:
    # JSON strings are YAML strings, whatever characters they hold.
    paths = [f"    - {json.dumps(name)}" for name in files]
    tags = ["tags:", "- synthetic", "task_categories:", "- text-generation"]
    return [
        "---",
        *tags,
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",
        "    path:",
        *paths,
        "---",
    ]


def _tasks(summary: Mapping[str, Any]) -> list[str]:
    rows = [
        f"| {name} | {task['rows']} | {task['overshoot']} | {_share(task['label_accuracy'])} |"
        for name, task in summary["tasks"].items()
    ]
    return [
        "",
        "# Synthetic instances written by PSI",
        "",
        f"{summary['rows']} rows, written by a small language model that followed task principles, then voted on and curated. Digest "
        f"`{summary['digest']}`. Open it with `datasets.load_dataset` on this folder.",
        "",
        "| task | rows | accepted beyond | label accuracy by oracle |",
        "|---|---:|---:|---:|",
        *rows,
    ]


def _columns() -> list[str]:
    rows = [
        f"| `{field.name}` | {_type_name(field.type)} | {field.metadata[b'unit'].decode()} | {field.metadata[b'description'].decode()} |"
        for field in DATASET_SCHEMA
    ]
    return ["", "## Columns", "", "| column | type | unit | what it holds |", "|---|---|---|---|", *rows]


def _type_name(kind: Any) -> str:
    return str(kind).replace("|", "\\|")


def _yield(summary: Mapping[str, Any]) -> list[str]:
    stages: StageCounts = summary["stages"]
    rows = [
        f"| {stage} | {count['in']} | {count['out']} | {_reasons(count['reasons'])} |"
        for stage, count in stages.items()
    ]
    return ["", "## Yield", "", "| stage | rows in | rows out | dropped because |", "|---|---:|---:|---|", *rows]


def _reasons(reasons: Mapping[str, int]) -> str:
    # A reason may quote the data that it is about; a bar or a line break in it would break the table.
    return "; ".join(f"{' '.join(reason.split())} ({rows})".replace("|", "\\|") for reason, rows in reasons.items())


def _provenance(summary: Mapping[str, Any]) -> list[str]:
    text = json.dumps(summary["provenance"], indent=2, ensure_ascii=False, sort_keys=True)
    return ["", "## Provenance", "", "```json", text, "```"]


def _share(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.1%}"
