"""What the lines of a manifest add up to."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from generation.unit_places import UnitPlaces


class Shard(NamedTuple):
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
    instances: Mapping[str, int]
    rejections: Mapping[str, int]
    tokens: Mapping[str, Mapping[str, int]]


class Tombstone(NamedTuple):
    """A unit that is given up for good, and why."""

    unit: str
    reason: str


Entry = Shard | Tombstone


def segment_line(entries: Iterable[Entry]) -> dict[str, Any]:
    """The line of a segment with all of these, their counters added up: a thousand shards cost little more than one."""
    shards, tombstones = list[Any](), dict[str, str]()
    instances, rejections, tokens = Counter[str](), Counter[str](), dict[str, Counter[str]]()
    for entry in entries:
        if isinstance(entry, Tombstone):
            tombstones[entry.unit] = entry.reason
            continue
        shards.append(entry[:4])
        _count(instances, entry.instances)
        _count(rejections, entry.rejections)
        _count_stages(tokens, entry.tokens)
    return {
        "shards": shards,
        "tombstones": tombstones,
        "instances": instances,
        "rejections": rejections,
        "tokens": tokens,
    }


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
        _count(self.instances, line["instances"])
        _count(self.rejections, line["rejections"])
        _count_stages(self.tokens, line["tokens"])
        settled = self.places.show(line["shards"])
        for unit, reason in line["tombstones"].items():
            if self.places.bury(unit):
                self.tombstones[unit] = reason
                settled.append(unit)
        return settled


def _count(counter: Counter[str], counts: Mapping[str, int]) -> None:
    """`Counter.update` without its checks, which cost more than all else of a line."""
    for name, count in counts.items():
        counter[name] += count


def _count_stages(counters: dict[str, Counter[str]], stages: Mapping[str, Mapping[str, int]]) -> None:
    for stage, counts in stages.items():
        if stage not in counters:
            counters[stage] = Counter()
        _count(counters[stage], counts)
