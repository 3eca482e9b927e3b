"""Shards: full units become one Arrow file and the commit that makes it visible. On a replica's writer thread."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from cluster.protocol import GenerateJob
from cluster.unit_rows import FullUnit
from generation.manifest_state import Shard
from generation.rows import ROW_SCHEMA, SHARD_OPTIONS, rows_to_batch
from generation.storage import Store


@dataclass(frozen=True, slots=True)
class Written:
    """A shard on storage that nobody sees yet.

    Attributes:
        commit: What the coordinator is to make visible.
        lease_id: Of one of its units.
        output_tokens: By unit, the tokens generated for it.
    """

    commit: Shard
    lease_id: str
    output_tokens: dict[str, int]


class ShardWriter:
    """Writes shards of one generate job.

    Args:
        job: Where to.
        shard_name: Gives a file name that no other attempt uses, for each shard.
    """

    def __init__(self, job: GenerateJob, shard_name: Callable[[], str]) -> None:
        self._store = Store(job.run)
        self._shard_name = shard_name

    def write(self, units: Sequence[FullUnit]) -> Written:
        """Write units as one shard.

        Raises:
            StorageError: It cannot be written.
        """
        sink = pa.BufferOutputStream()
        places: list[tuple[str, int, int]] = []
        with pa.ipc.new_file(sink, ROW_SCHEMA, options=SHARD_OPTIONS) as writer:
            for full in units:
                start = places[-1][2] if places else 0
                writer.write_batch(rows_to_batch(full.rows))
                places.append((full.unit, start, start + len(full.rows)))
        content = sink.getvalue().to_pybytes()
        file = f"rows/round-0/{self._shard_name()}"
        self._store.write_new(file, content)
        rows = [row for full in units for row in full.rows]
        commit = Shard(
            file,
            hashlib.sha256(content).hexdigest(),
            len(content),
            tuple(places),
            dict(Counter(row.task for row in rows if row.status == "instance")),
            dict(Counter(f"{row.task}/{row.stage}/{row.reason}" for row in rows if row.status == "rejection")),
            _tokens(units),
        )
        output_tokens = {full.unit: sum(row.output_tokens for row in full.rows) for full in units}
        return Written(commit, units[-1].lease_id, output_tokens)


def _tokens(units: Sequence[FullUnit]) -> dict[str, dict[str, int]]:
    tokens: dict[str, dict[str, int]] = {}
    for by_stage in (one for full in units for one in full.by_stage):
        for stage, counts in by_stage.items():
            totals = tokens.setdefault(stage, dict.fromkeys(counts, 0))
            for name, count in counts.items():
                totals[name] += count
    return tokens
