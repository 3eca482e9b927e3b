"""A recipe that is to run elsewhere: what of it can be checked here, and where its paths lead there."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cluster.recipe import Recipe
from cluster.recipe_mistakes import describe
from cluster.recipe_source import read_source
from generation.engines.config import PoolConfig, VllmEngine
from generation.errors import RecipeError
from generation.prompts.prompt_set import DEFAULT_SET

_SECRET = re.compile(
    r"\bsk-[\w-]{16,}|\bhf_[A-Za-z0-9]{20,}|\bgh[oprsu]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{20,}"
    r"|\bA[KS]IA[0-9A-Z]{16}\b|\bAIza[\w-]{30,}|\bxox[abprs]-[\w-]{10,}|\beyJ[\w-]{10,}\.eyJ[\w-]{10,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----|://[^/@\s]+@"
)
"""How the keys of well-known services look, and URLs with a user or a password."""

_VARIABLE = re.compile(r"[A-Za-z_]\w*", re.ASCII)


@dataclass(frozen=True, slots=True)
class RemoteRecipe:
    """A recipe that was read here, to be run on a cluster.

    Attributes:
        name: Of the run.
        run: The run folder: an absolute path, or an URI; without a slash at its end, so that it is the same however it was typed.
        needed: Files and folders here that it names, and that go along.
        elsewhere: Absolute paths that it names and that have to be on the cluster already.
        overrides: Those that were given, and those that its paths need there.
    """

    name: str
    run: str
    needed: tuple[Path, ...]
    elsewhere: tuple[str, ...]
    overrides: tuple[str, ...]


def read_remote_recipe(file: Path, overrides: Sequence[str], root: Path | None) -> RemoteRecipe:
    """Read a recipe, and check all of it that does not depend on what lies on the cluster.

    Args:
        file: The TOML file; absolute and without `..` where a folder goes along.
        overrides: As they were typed here.
        root: The folder that goes along, absolute; None where nothing does, and all paths are the cluster's own.

    Raises:
        RecipeError: It has mistakes, or holds a secret; the message lists all of them, and shows no secret.
    """
    source = read_source(file, overrides)
    _refuse(str(file), list(_secrets("", source.values)))
    try:
        recipe = Recipe.model_validate(source.values)
    except ValidationError as error:
        mistakes = [*source.mistakes, *describe(error, Recipe, source.values)]
        raise RecipeError(_listing(str(file), mistakes)) from error
    sorted_out = _sort_out(recipe, file.parent, root, overrides) if root else _Paths([], [], [], [])
    _refuse(str(file), [*source.mistakes, *_place_mistakes(recipe), *sorted_out.mistakes])
    moved = (*overrides, *sorted_out.moved)
    return RemoteRecipe(
        recipe.run.name, recipe.run.output.rstrip("/"), tuple(sorted_out.needed), tuple(sorted_out.elsewhere), moved
    )


def unread_recipe(overrides: Sequence[str]) -> RemoteRecipe:
    """What is known of a recipe that only the cluster has: no more than the overrides say.

    Raises:
        RecipeError: One holds a secret; the message does not show it.
    """
    given = {key: value for key, _, value in (text.partition("=") for text in overrides)}
    _refuse("overrides", list(_secrets("", given)))
    return RemoteRecipe(given.get("run.name", "psi"), given.get("run.output", "").rstrip("/"), (), (), tuple(overrides))


@dataclass(frozen=True, slots=True)
class _Paths:
    """What becomes of a recipe's paths: what goes along, what has to be there, overrides that lead to it there, and what cannot be."""

    needed: list[Path]
    elsewhere: list[str]
    moved: list[str]
    mistakes: list[str]


def _sort_out(recipe: Recipe, folder: Path, root: Path, overrides: Sequence[str]) -> _Paths:
    typed = {
        str(Path(raw).absolute()) for raw in (text.partition("=")[2].strip() for text in overrides) if raw[:1] != "/"
    }
    found = _Paths([], [], [], [])
    for key, path, suffix in _paths(recipe, folder):
        place = Path(os.path.normpath(folder / path))
        if place.is_relative_to(root):
            found.needed.append(place)
            if not place.exists():
                found.mistakes.append(f"{key}: {path} does not exist in {folder}; correct the path")
            if Path(path).is_absolute():
                found.moved.append(f"{key}={os.path.relpath(place, folder)}{suffix}")
        elif Path(path).is_absolute() and path not in typed:
            found.elsewhere.append(path)
        else:
            found.mistakes.append(
                f"{key}: {path} lies outside of {root}, which is what goes along; send a folder that holds both with"
                " --working-dir, or name an absolute path that the cluster's nodes share"
            )
    return found


def _paths(recipe: Recipe, folder: Path) -> Iterator[tuple[str, str, str]]:
    """(dotted key, path, what follows it in the value) of every file or folder that a recipe reads."""
    for index, task in enumerate(recipe.tasks):
        programs = {"seeds": task.seeds, "evaluation": task.evaluation, "verifier": task.verifier}
        yield from ((f"tasks.{index}.{key}", *_file(value)) for key, value in programs.items() if value)
    if recipe.prompts != DEFAULT_SET:
        yield "prompts", recipe.prompts, ""
    if recipe.principles.from_file:
        yield "principles.from", recipe.principles.from_file, ""
    if recipe.evaluation.oracle:
        yield "evaluation.oracle", *_file(recipe.evaluation.oracle)
    for name, pool in (("large", recipe.pools.large), ("small", recipe.pools.small)):
        if pool and (model := _model_folder(pool, folder)):
            yield f"pools.{name}.engine.model", model, ""


def _file(value: str) -> tuple[str, str]:
    """(path, the rest) of a path or of `file.py:function`."""
    path, colon, function = value.rpartition(":")
    return (path, colon + function) if path.endswith(".py") else (value, "")


def _model_folder(pool: PoolConfig, folder: Path) -> str:
    """The folder that a pool's model lies in; empty for a hub id, which looks like a folder and is none here."""
    model = pool.engine.model if isinstance(pool.engine, VllmEngine) else ""
    return (
        model if model.startswith((".", "/")) or model.count("/") > 1 or (model and (folder / model).is_dir()) else ""
    )


def _place_mistakes(recipe: Recipe) -> list[str]:
    """A job starts in a folder of its own, which is gone with it."""
    run = recipe.run
    places = {"run.output": run.output or f"runs/{run.name}", "run.scratch": run.scratch}
    return [
        f"{key}: {path} is relative, and a job works in a folder that is deleted with it; name an absolute path that the"
        f" cluster's nodes share, such as {key}=/shared/{path}"
        for key, path in places.items()
        if path and "://" not in path and not Path(path).is_absolute()
    ]


def _secrets(key: str, value: Any) -> Iterator[str]:
    """What is wrong with each text that looks like a secret, without the text."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for name, item in items:
            yield from _secrets(f"{key}.{name}".lstrip("."), item)
    elif isinstance(value, str) and (
        _SECRET.search(value) or (key.endswith("_env") and not _VARIABLE.fullmatch(value))
    ):
        yield (
            f"{key}: looks like a secret, which jobs and run folders show to everybody; put it into an environment variable"
            " of the cluster's nodes, and name that variable (such as in api_key_env)"
        )


def _refuse(what: str, mistakes: list[str]) -> None:
    if mistakes:
        raise RecipeError(_listing(what, mistakes))


def _listing(what: str, mistakes: list[str]) -> str:
    return "\n".join([f"{what}: cannot be submitted:", *(f"  {mistake}" for mistake in mistakes)])
