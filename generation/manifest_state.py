"""What the lines of a manifest add up to."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from generation.unit_places import UnitPlaces


@dataclass(frozen=True, slots=True)
class ShardLine:
    """A committed shard, and the units that became visible through it.

    Attributes:
        file: Path relative to the run folder.
        sha256: Hex digest of its bytes.
        file_bytes: Its size.
        units: (unit id, first row, row after the last) of the units that it won.
        instances: Rows with status `instance`, by task, of the whole shard.
        rejections: `task/stage/reason` to count, of the whole shard.
        tokens: Stage to counters, of the whole shard.
    """

    file: str
    sha256: str
    file_bytes: int
    units: tuple[tuple[str, int, int], ...]
    instances: dict[str, int] = field(default_factory=dict[str, int])
    rejections: dict[str, int] = field(default_factory=dict[str, int])
    tokens: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])

    def to_json(self) -> dict[str, Any]:
        """As a line of a segment."""
        values: dict[str, Any] = {"file": self.file, "sha256": self.sha256, "bytes": self.file_bytes}
        values["units"] = [list(unit) for unit in self.units]
        counters = {"instances": self.instances, "rejections": self.rejections, "tokens": self.tokens}
        return values | {name: counts for name, counts in counters.items() if counts}


def tombstone_line(unit: str, reason: str) -> dict[str, Any]:
    """The line that gives a unit up for good."""
    return {"tombstone": unit, "reason": reason}


@dataclass(slots=True)
class ManifestState:
    """All visible lines, added up.

    Attributes:
        places: Visible units.
        tombstones: Units given up, and why.
        instances: Rows with status `instance`, by task.
        rejections: `task/stage/reason` to count.
        tokens: Stage to `requests`, `prompt_tokens`, `cached_tokens`, `output_tokens`.
    """

    places: UnitPlaces = field(default_factory=UnitPlaces)
    tombstones: dict[str, str] = field(default_factory=dict[str, str])
    instances: Counter[str] = field(default_factory=Counter[str])
    rejections: Counter[str] = field(default_factory=Counter[str])
    tokens: dict[str, Counter[str]] = field(default_factory=dict[str, Counter[str]])

    @property
    def shards(self) -> Iterable[str]:
        """Files with visible units, in the order of their commits."""
        return self.places.shards

    def apply(self, line: dict[str, Any]) -> list[str]:
        """Take one line in; returns the units that it settled, which never change again.

        Raises:
            ValueError: It is not a line of a manifest.
        """
        _count(self.instances, line.get("instances"))
        _count(self.rejections, line.get("rejections"))
        for stage, counts in line.get("tokens", {}).items():
            _count(self.tokens.setdefault(stage, Counter()), counts)
        if "tombstone" in line:
            return self._bury(line["tombstone"], line["reason"])
        if "file" in line:
            return self.places.show(line["file"], line["sha256"], line["bytes"], line["units"])
        return []

    def _bury(self, unit: str, reason: str) -> list[str]:
        if not self.places.bury(unit):
            return []
        self.tombstones[unit] = reason
        return [unit]


def _count(counter: Counter[str], counts: dict[str, int] | None) -> None:
    """`Counter.update` without its checks, which cost more than all else of a line."""
    if counts:
        for name, count in counts.items():
            counter[name] += count
