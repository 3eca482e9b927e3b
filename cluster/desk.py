"""What one incarnation of the coordinator knows: the manifest that it alone writes, the plan, and the ledger of who works on what."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cluster.group_commit import GroupCommit
from cluster.ledger import Ledger
from cluster.protocol import PrefixAnswer
from generation.errors import StorageError
from generation.instances.plan import Bundle, Cell, PlanRecord
from generation.instances.plan_log import read_records
from generation.manifest import take_over
from generation.manifest_state import Entry
from generation.snapshot import Snapshot
from generation.storage import Store
from generation.visible import PlanPrefix

MAX_ATTEMPTS = 16
"""Room for four flows of one unit that kill engines, which take twelve (`cluster.suspects`), and for some bad luck."""

COMMIT_SECONDS = 0.05
_PAGE_UNITS = 256

_log = logging.getLogger(__name__)


class Desk:
    """Takes a run over, and knows all that is visible in it.

    Args:
        store: The run folder.
        lease_seconds: How long a replica keeps its units without a step.

    Attributes:
        incarnation: Number of this take-over.
        state: What is durable.
        records: The plan.
        ledger: Who works on what.
        prefix: What is visible in plan order.

    Raises:
        RunLockedError: Another coordinator took over at the same moment.
        StorageError: The run folder cannot be read or written.
    """

    def __init__(self, store: Store, lease_seconds: float) -> None:
        self._writer, self.state = take_over(store)
        self._commits = GroupCommit(self._writer.append, self._apply, COMMIT_SECONDS)
        self._saving: asyncio.Task[None] | None = None
        self.incarnation = self._writer.incarnation
        self._bundles: dict[Bundle, Bundle] = {}
        self._cells: dict[Cell, Cell] = {}
        self.records: list[PlanRecord] = []
        self.ledger = Ledger(self.state.places, lease_seconds, MAX_ATTEMPTS)
        self.prefix = PlanPrefix(self.state.places)
        self.add(read_records(store))

    def add(self, records: Sequence[PlanRecord]) -> None:
        """Plan records were logged; those that it knows are left as they are."""
        for record in records:
            if record.index == len(self.records):
                self.records.append(self._shared(record))
                self.prefix.add(record)
                self.ledger.add_record(record.bundle.bundle_id, record.num_units)

    def beyond(self, seen: Mapping[str, tuple[int, str]]) -> PrefixAnswer:
        """What is visible in plan order beyond what was seen of each task: how many units, and their digest."""
        prefix = self.prefix
        stale = frozenset(task for task, (count, digest) in seen.items() if not prefix.agrees(task, count, digest))
        settled = {
            task: prefix.after(task, count, _PAGE_UNITS) for task, (count, _) in seen.items() if task not in stale
        }
        more = bool(stale) or any(len(units) == _PAGE_UNITS for units in settled.values())
        return PrefixAnswer(settled, stale, prefix.planned, len(self.records), prefix.num_settled, more)

    def log(self, entries: Sequence[Entry]) -> asyncio.Future[None]:
        """Is done once these entries, and all before them, are durable and in `state`.

        Its exception is a `StorageError` where they are not known to be (only a new desk knows), or a `RunLockedError` where another
        writer has taken over.
        """
        return self._commits.append(entries)

    def _shared(self, record: PlanRecord) -> PlanRecord:
        """The same record with the bundle and the cells of those before it: texts are in memory once, not once a record."""
        bundle = self._bundles.setdefault(record.bundle, record.bundle)
        cells = tuple(self._cells.setdefault(cell, cell) for cell in record.cells)
        return replace(record, bundle=bundle, cells=cells)

    def _apply(self, line: dict[str, Any]) -> None:
        self.ledger.arrived(self.state.apply(line))
        if self._writer.snapshot_is_due and (self._saving is None or self._saving.done()):
            taken = self._writer.snapshot(self.state)
            self._saving = asyncio.create_task(asyncio.to_thread(self._save, taken))

    def _save(self, snapshot: Snapshot) -> None:
        try:
            self._writer.save(snapshot)
        except StorageError as error:
            _log.warning("a snapshot of the manifest was not written; the next one will hold it: %s", error)
