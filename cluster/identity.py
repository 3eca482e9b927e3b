"""What a run is: the part of a recipe that may not change on an existing run folder, and the record of it there.

Fields that a section names in `operations` are left out; files count by content, models by weights, wherever they lie.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from generation.engines.weights import model_digest
from generation.errors import RecipeError
from generation.prompts.prompt_set import load_prompt_set
from generation.storage import Store, digest, json_bytes

if TYPE_CHECKING:
    from cluster.recipe import LoadedRecipe, Recipe

FORMAT_VERSION = 1
RECORD = "recipe.json"
_ABSENT = "(absent)"
_MAX_VALUE = 80


def identity_of(recipe: Recipe) -> dict[str, Any]:
    """Dotted key to JSON value; tasks go by name, so `tasks.kilo.description`.

    Args:
        recipe: With absolute paths.
    """
    sections = _without_operations(recipe)
    sections["prompts"] = load_prompt_set(recipe.prompts, Path.cwd()).digest
    sections["principles"]["from_file"] = _file_digest(recipe.principles.from_file)
    for name, pool in (("large", recipe.pools.large), ("small", recipe.pools.small)):
        if pool and pool.engine.kind == "vllm":
            sections["pools"][name]["engine"]["model"] = _weights(pool.engine.model, pool.engine.revision)
    for values, task in zip(sections["tasks"], recipe.tasks, strict=True):
        values["seeds"], values["evaluation"] = _file_digest(task.seeds), _file_digest(task.evaluation)
        values["verifier"] = _program_digest(task.verifier)
    sections["tasks"] = {values["name"]: values for values in sections["tasks"]}
    sections["task_order"] = [task.name for task in recipe.tasks]
    return dict(_leaves("", sections))


def check_against_run(store: Store, loaded: LoadedRecipe) -> None:
    """Record the recipe in a new run folder, or check that it is the one that an existing folder was made with.

    Raises:
        RecipeError: The run was made with another identity, or had a higher target; the message names what changed.
    """
    record = {
        "format_version": FORMAT_VERSION,
        "recipe": loaded.recipe.model_dump(mode="json"),
        "identity": json.loads(json_bytes(loaded.identity)),
        "identity_hash": loaded.identity_hash,
    }
    try:
        store.write_new(RECORD, json_bytes(record))
    except FileExistsError:
        _compare(store, record)


def _compare(store: Store, record: dict[str, Any]) -> None:
    old = store.read_json(RECORD)
    if old.get("format_version") != FORMAT_VERSION:
        raise RecipeError(
            f"{store.uri}: has format version {old.get('format_version')}, this PSI writes {FORMAT_VERSION}; "
            "set a new run.output"
        )
    before, now = old["identity"], record["identity"]
    changed = [
        f"  {key}: was {_shown(before.get(key, _ABSENT))}, is {_shown(now.get(key, _ABSENT))}"
        for key in sorted({*before, *now})
        if before.get(key, _ABSENT) != now.get(key, _ABSENT)
    ]
    if changed:
        raise RecipeError(
            f"{store.uri}: was made with another recipe; undo the change or set a new run.output:\n"
            + "\n".join(changed)
        )
    target, wanted = (each["recipe"]["generation"]["accepted_rows"] for each in (old, record))
    if wanted < target:
        raise RecipeError(
            f"generation.accepted_rows: {wanted} is below the {target} rows that {store.uri} already aims at, and a "
            f"target may only grow; set it to {target} or more, or set a new run.output"
        )
    if old["recipe"] != record["recipe"]:
        store.replace(RECORD, json_bytes(record))


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MAX_VALUE else f"{text[:_MAX_VALUE]}..."


def _without_operations(value: Any) -> Any:
    """A model as nested dicts, without its fields that may change."""
    if isinstance(value, BaseModel):
        operations: frozenset[str] = getattr(type(value), "operations", frozenset())
        names = [name for name in type(value).model_fields if name not in operations]
        return {name: _without_operations(getattr(value, name)) for name in names}
    if isinstance(value, dict):
        return {str(key): _without_operations(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_without_operations(item) for item in value]
    return value


def _leaves(prefix: str, value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, dict) or not value:
        return [(prefix, value)] if value != {} else []
    return [leaf for key, item in value.items() for leaf in _leaves(f"{prefix}.{key}" if prefix else key, item)]


def _file_digest(path: str | None) -> str | None:
    """sha256 of a file, or of all files of a folder with their names."""
    if path is None:
        return None
    place = Path(path)
    if place.is_file():
        return f"sha256:{_sha256(place)}"
    files = sorted(file for file in place.rglob("*") if file.is_file())
    return f"files:{digest(*(part for file in files for part in (str(file.relative_to(place)), _sha256(file))))}"


def _program_digest(spec: str | None) -> str | None:
    """The function, its file's name, and all Python files beside it: it can import them."""
    if spec is None:
        return None
    file, _, function = spec.rpartition(":")
    beside = sorted(Path(file).parent.glob("*.py"))
    return f"{Path(file).name}:{function}:{digest(*(part for each in beside for part in (each.name, _sha256(each))))}"


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _weights(model: str, revision: str | None) -> str:
    return f"weights:{model_digest(model)}" if Path(model).is_dir() else f"hub:{model}@{revision or 'main'}"
