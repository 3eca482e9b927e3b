"""What the lines of a manifest add up to."""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from generation.storage import json_bytes
from generation.unit_places import UnitPlaces


class Shard(NamedTuple):
    """A shard that wants to be visible, or is.

    Attributes:
        file: Path relative to the run folder.
        sha256: Hex digest of its bytes.
        file_bytes: Its size.
        units: (unit id, first row, row after the last) of the complete units in it, or of those that it has won.
        instances: Rows with status `instance`, by task, of the whole shard.
        rejections: `task/stage/reason` to count, of the whole shard.
        tokens: Stage to counters, of the whole shard.
    """

    file: str
    sha256: str
    file_bytes: int
    units: tuple[tuple[str, int, int], ...]
    instances: Mapping[str, int]
    rejections: Mapping[str, int]
    tokens: Mapping[str, Mapping[str, int]]

    def only(self, units: Collection[str]) -> "Shard":
        """It with some of its units."""
        if len(units) == len(self.units):
            return self
        return self._replace(units=tuple(rows for rows in self.units if rows[0] in units))


class Tombstone(NamedTuple):
    """A unit that is given up for good, and why."""

    unit: str
    reason: str


Entry = Shard | Tombstone


def segment_line(entries: Iterable[Entry]) -> dict[str, Any]:
    """The line of a segment with all of these, their counters added up: a thousand shards cost little more than one."""
    shards, tombstones = list[Any](), dict[str, str]()
    instances, rejections, tokens = dict[str, int](), dict[str, int](), dict[str, dict[str, int]]()
    for entry in entries:
        if isinstance(entry, Tombstone):
            tombstones[entry.unit] = entry.reason
            continue
        shards.append(entry[:4])
        _count(instances, entry.instances)
        _count(rejections, entry.rejections)
        for stage, counts in entry.tokens.items():
            _count(tokens.setdefault(stage, {}), counts)
    return {
        "shards": shards,
        "tombstones": tombstones,
        "instances": instances,
        "rejections": rejections,
        "tokens": tokens,
    }


def segment_bytes(line: Mapping[str, Any]) -> bytes:
    """The line as JSON. The shards, of which `json` would look at each value, are put in as text."""
    shards = ",".join([_shard_text(*shard) for shard in line["shards"]])
    rest = json_bytes({name: value for name, value in line.items() if name != "shards"})
    return b'{"shards":[%s],%s\n' % (shards.encode(), rest[1:])


def _shard_text(file: str, sha256: str, file_bytes: int, units: Iterable[tuple[str, int, int]]) -> str:
    rows = ",".join([f'["{unit}",{start},{end}]' for unit, start, end in units])
    return f'[{json.dumps(file)},"{sha256}",{file_bytes},[{rows}]]'


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
    instances: dict[str, int] = field(default_factory=dict[str, int])
    rejections: dict[str, int] = field(default_factory=dict[str, int])
    tokens: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])

    @property
    def shards(self) -> Iterable[str]:
        """Files with visible units, in the order of their commits."""
        return self.places.shards

    def apply(self, line: dict[str, Any]) -> list[str]:
        """Take one line in; returns the units that it settled, which never change again.

        Raises:
            ValueError: It is not a line of a manifest.
        """
        _count(self.instances, line["instances"])
        _count(self.rejections, line["rejections"])
        for stage, counts in line["tokens"].items():
            _count(self.tokens.setdefault(stage, {}), counts)
        settled = self.places.show(line["shards"])
        for unit, reason in line["tombstones"].items():
            if self.places.bury(unit):
                self.tombstones[unit] = reason
                settled.append(unit)
        return settled


def _count(sums: dict[str, int], counts: Mapping[str, int]) -> None:
    """Add up. A `Counter` does it in several times as long, which would be more than all else of a line takes."""
    for name, count in counts.items():
        sums[name] = sums.get(name, 0) + count
