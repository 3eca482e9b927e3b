"""The text of a recipe: its TOML file and the overrides of the command line, as plain values that nobody has checked yet."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from generation.errors import RecipeError

PATH_FIELDS = {"seeds", "evaluation", "model", "from", "from_file", "prompts"}
TEXT_FIELDS = {
    "name",
    "description",
    "revision",
    "pattern",
    "answer_pattern",
    "url",
    "labels",
    "difficulties",
} | PATH_FIELDS


@dataclass(frozen=True)
class Source:
    """What the user wrote.

    Attributes:
        values: As nested dicts and lists, overrides applied.
        mistakes: Overrides that have no place to go.
    """

    values: dict[str, Any]
    mistakes: list[str]


def read_source(path: Path, overrides: Sequence[str]) -> Source:
    """Read a TOML file and apply overrides.

    Raises:
        RecipeError: The file is missing or no TOML.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: no such recipe; `psi init NAME --seeds FILE` writes one") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: is not TOML: {error}") from error
    mistakes = [mistake for text in overrides if (mistake := _override(values, text, path.parent))]
    return Source(values, mistakes)


def _override(values: dict[str, Any], text: str, folder: Path) -> str | None:
    """Apply one override in place; returns what is wrong with it."""
    dotted, equals, raw = text.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        return f"{text}: is no override; write section.field=value"
    place: Any = values
    for key in keys[:-1]:
        place = _step(place, key)
        if not isinstance(place, dict | list):
            return f"{dotted}: there is no section '{key}' to set it in"
    value = _value(keys, raw.strip(), folder)
    if isinstance(place, dict):
        place[keys[-1]] = value
    elif keys[-1].isdigit() and int(keys[-1]) < len(place):
        place[int(keys[-1])] = value
    else:
        return f"{dotted}: the list has {len(place)} items, numbered from 0"
    return None


def _step(place: Any, key: str) -> Any:
    """One level down; a section that is not there yet is made, an item that is not there is None."""
    if isinstance(place, dict):
        return place.setdefault(key, {})
    if key.isdigit():
        return place[int(key)] if int(key) < len(place) else None
    return next((item for item in place if isinstance(item, dict) and item.get("name") == key), None)


def _value(keys: list[str], raw: str, folder: Path) -> Any:
    """The value of an override: TOML where it is TOML, else the text as it stands."""
    if keys[-1] in PATH_FIELDS and not (folder / raw).exists() and Path(raw).exists():
        return str(Path(raw).absolute())  # typed at a prompt, so meant from where the command is started
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return raw
    # `run.name=2024` is the text 2024, though TOML reads a number.
    return value if isinstance(value, str | list | dict) or keys[-1] not in TEXT_FIELDS else raw
