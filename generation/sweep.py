"""Removing shards that no manifest segment lists: of attempts that lost, of replicas that died, and of writers killed in mid-write."""

from collections.abc import Callable
from dataclasses import dataclass

from generation.manifest import take_over
from generation.storage import Store

ROWS_FOLDER = "rows/round-0"


@dataclass(frozen=True, slots=True)
class Swept:
    """What was removed.

    Attributes:
        files: Number of files.
        bytes: Their size.
    """

    files: int = 0
    bytes: int = 0


def sweep_rows(store: Store, confirm: Callable[[], None]) -> Swept:
    """Remove the shards of an arm that are not visible and that nobody can make visible any more.

    The manifest sees to that: it is taken over, so that no coordinator of this or an earlier driver can commit any more, and what
    is removed was there before, so that none of it belongs to a later driver. So whoever calls this may be suspended at any point.
    But it would stop a later driver that is at work: only the driver that has finished the arm may call it.

    Args:
        store: The arm's folder.
        confirm: Raises where another driver has taken the run over.

    Raises:
        RunLockedError: Another driver has; nothing is removed.
        StorageError: The folder cannot be read, or a file not be removed.
    """
    there = store.sizes(ROWS_FOLDER)
    confirm()
    _, state = take_over(store)
    visible = set(state.shards)
    orphans = {file: size for name, size in there.items() if (file := f"{ROWS_FOLDER}/{name}") not in visible}
    for file in orphans:
        store.delete(file)
    return Swept(len(orphans), sum(orphans.values()))
