"""What pydantic found wrong with a recipe, in the user's terms: dotted path, value, what to do. Knows no section by name."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

_MAX_VALUE = 60


def describe(error: ValidationError, model: type[BaseModel], values: Mapping[str, Any]) -> list[str]:
    """One line per mistake.

    Args:
        error: What `model.model_validate(values)` raised.
        model: The model.
        values: What was validated.
    """
    return [_line(details, model, values) for details in error.errors(include_url=False)]


def _line(details: ErrorDetails, model: type[BaseModel], values: Mapping[str, Any]) -> str:
    keys = _without_tags(details["loc"], values)
    path = ".".join(map(str, keys))
    match details["type"]:
        case "extra_forbidden":
            return f"{path}: is unknown; {_suggestion(str(keys[-1]), _fields_at(model, keys[:-1], values))}"
        case "missing":
            return f"{path}: is missing; {_purpose(_fields_at(model, keys[:-1], values).get(str(keys[-1]), ''))}"
        case "union_tag_not_found":
            return f"{path}.kind: is missing; set it to vllm, http or scripted"
        case "union_tag_invalid":
            tags = details.get("ctx", {}).get("expected_tags", "")
            return f"{path}.kind: is {_shown(details['input'].get('kind'))}; it must be one of {tags}"
        case "value_error" | "assertion_error":
            return f"{path}: {details['msg'].removeprefix('Value error, ')}"
        case _:
            wanted = (
                details["msg"]
                .replace("a valid tuple", "a list")
                .replace("a valid tuple", "a list")
                .replace("Input should", "it must")
                .replace("String should", "it must")
            )
            return f"{path}: is {_shown(details['input'])}; {wanted}"


def _without_tags(loc: Sequence[int | str], values: Any) -> list[int | str]:
    """The path as the user wrote it: pydantic puts the tag of a union (`engine.vllm.model`) between two keys."""
    keys: list[int | str] = []
    place = values
    for index, part in enumerate(loc):
        is_last = index == len(loc) - 1
        if isinstance(place, dict) and part not in place and not is_last and part == place.get("kind"):
            continue
        keys.append(part)
        place = _below(place, part)
    return keys


def _below(place: Any, key: int | str) -> Any:
    if isinstance(place, dict):
        return place.get(key)
    return place[key] if isinstance(place, list) and isinstance(key, int) and key < len(place) else None


def _fields_at(model: type[BaseModel], keys: Sequence[int | str], values: Any) -> dict[str, str]:
    """Name to description of the fields that may stand at a path; of one kind of a union where the values say which."""
    models = [model]
    for key in keys:
        values = _below(values, key)
        below = [m.model_fields[key].annotation for m in models if isinstance(key, str) and key in m.model_fields]
        models = [found for annotation in below for found in _models_in(annotation)] or models
        kind = values.get("kind") if isinstance(values, dict) else None
        models = [
            m for m in models if "kind" in m.model_fields and kind in get_args(m.model_fields["kind"].annotation)
        ] or models
    return {name: info.description or "" for m in models for name, info in m.model_fields.items()}


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _suggestion(name: str, known: Mapping[str, str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else f"known here: {', '.join(sorted(known))}"


def _purpose(description: str) -> str:
    return f"set it: {' '.join(description.split())}" if description else "set it"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_VALUE else f"{text[:_MAX_VALUE]}..."
