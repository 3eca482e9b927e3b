"""The plan on storage: `plan/<first index>.jsonl`, immutable. Whoever logs an index first decides what it is."""

from collections.abc import Sequence

from generation.errors import StorageError
from generation.instances.plan import PlanRecord
from generation.storage import Store, json_lines

_FOLDER = "plan"


def log_records(store: Store, records: Sequence[PlanRecord]) -> list[PlanRecord]:
    """Log records, whose indexes follow each other; returns what is now logged from the first of them on."""
    name = f"{_FOLDER}/{records[0].index:06d}.jsonl"
    try:
        store.write_new(name, json_lines(record.to_json() for record in records))
    except FileExistsError:
        return [PlanRecord.from_json(line) for line in store.read_lines(name)]
    return list(records)


def read_records(store: Store) -> list[PlanRecord]:
    """All logged records, in order.

    Raises:
        StorageError: One is missing.
    """
    names = store.names(_FOLDER)
    records = [PlanRecord.from_json(line) for name in names for line in store.read_lines(f"{_FOLDER}/{name}")]
    for expected, record in enumerate(records):
        if record.index != expected:
            raise StorageError(f"{store.uri}/{_FOLDER}: plan record {expected} is missing; restore the folder's files")
    return records
