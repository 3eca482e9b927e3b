"""Validates custom resources as an API server does that refuses unknown fields: by the schema of their definition, and by its CEL rules."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from tests.k8s.manifests import Manifest

_DROPPED = {"description", "default", "format", "nullable", "example"}


class Definitions:
    """Definitions of custom resources below a folder.

    Args:
        folder: Holds files named `<group>_<plural>.yaml`, at any depth.
    """

    def __init__(self, folder: Path) -> None:
        self._files = {path.stem.partition("_")[2]: path for path in folder.rglob("*.yaml")}
        self._resources: dict[str, dict[str, _Resource]] = {}

    def knows(self, manifest: Manifest) -> bool:
        """Whether there is a definition of a manifest's kind."""
        return self._plural(manifest) in self._files

    def errors(self, manifest: Manifest) -> list[str]:
        """What is wrong with a manifest; empty where the server would take it."""
        plural, version = self._plural(manifest), manifest["apiVersion"]
        if plural not in self._resources:
            self._resources[plural] = _read(self._files[plural])
        if version not in self._resources[plural]:
            return [f"{version}: is no version of {manifest['kind']} that is served"]
        return list(self._resources[plural][version].errors(manifest))

    @staticmethod
    def _plural(manifest: Manifest) -> str:
        return f"{manifest['kind'].lower()}s"


class _Resource:
    """One version of a definition."""

    def __init__(self, schema: Manifest) -> None:
        self._rules: list[tuple[tuple[str, ...], Manifest]] = []
        strict = self._strict(schema, ())
        strict["properties"]["metadata"] = {"type": "object"}  # the server's own, and the same for every kind
        self._validator = jsonschema.Draft7Validator(strict)

    def errors(self, manifest: Manifest) -> Iterator[str]:
        for error in self._validator.iter_errors(manifest):
            yield f"{error.json_path}: {error.message[:200]}"
        for path, rule in self._rules:
            # A rule with oldSelf speaks of changes, and nothing is changed here.
            for value in _values_at(manifest, path) if "oldSelf" not in rule["rule"] else ():
                if not _holds(rule["rule"], value):
                    yield f"{'.'.join(path)}: {rule.get('message', rule['rule'])}"

    def _strict(self, schema: Manifest, path: tuple[str, ...]) -> Manifest:
        """The schema as plain JSON Schema that refuses unknown fields; its CEL rules are gathered on the way."""
        self._rules += [(path, rule) for rule in schema.get("x-kubernetes-validations", [])]
        if schema.get("x-kubernetes-int-or-string"):
            text = {"type": "string", **({"pattern": schema["pattern"]} if "pattern" in schema else {})}
            return {"anyOf": [{"type": "integer"}, text]}
        kept = {key: value for key, value in schema.items() if not key.startswith("x-") and key not in _DROPPED}
        if schema.get("nullable") and "type" in kept:
            kept["type"] = [kept["type"], "null"]
        if "properties" in schema:
            kept["properties"] = {key: self._strict(below, (*path, key)) for key, below in schema["properties"].items()}
            # The server fills defaults in before it looks for what is missing.
            kept["required"] = [
                key for key in schema.get("required", []) if "default" not in schema["properties"].get(key, {})
            ]
            if not schema.get("x-kubernetes-preserve-unknown-fields"):
                kept.setdefault("additionalProperties", False)
        if isinstance(schema.get("additionalProperties"), dict):
            kept["additionalProperties"] = self._strict(schema["additionalProperties"], (*path, "{}"))
        if "items" in schema:
            kept["items"] = self._strict(schema["items"], (*path, "[]"))
        return kept


def _read(path: Path) -> dict[str, _Resource]:
    spec = yaml.load(path.read_text(), yaml.CSafeLoader)["spec"]
    return {
        f"{spec['group']}/{version['name']}": _Resource(version["schema"]["openAPIV3Schema"])
        for version in spec["versions"]
        if version["served"]
    }


def _values_at(value: Any, path: tuple[str, ...]) -> Iterator[Any]:
    """All values at a path of field names, `[]` for every item and `{}` for every value of a map."""
    if not path:
        yield value
    elif path[0] == "[]":
        for item in value:
            yield from _values_at(item, path[1:])
    elif path[0] == "{}":
        for item in value.values():
            yield from _values_at(item, path[1:])
    elif path[0] in value:
        yield from _values_at(value[path[0]], path[1:])


@cache
def _program(rule: str) -> Any:
    import celpy

    environment = celpy.Environment()
    return environment.program(environment.compile(rule))


def _holds(rule: str, value: Any) -> bool:
    import celpy

    try:
        return bool(_program(rule).evaluate({"self": celpy.json_to_cel(value)}))
    except celpy.CELEvalError:
        return False
