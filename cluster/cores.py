"""Cores for replicas on CPU: each takes some that no other process of this project on its machine has."""

import os
import socket
import time
from contextlib import suppress

_TURN_SECONDS = 10.0
_claims: list[socket.socket] = []
"""Held by this process: the names are free again when it ends, however it ends."""


def claim_cores(threads: int) -> tuple[int, ...]:
    """Bind this thread, and those that it starts, to cores that nobody has claimed.

    Returns:
        Them; empty where too few are left, and then nothing is bound.
    """
    turn = _take_turn()
    claimed: dict[int, socket.socket] = {}
    for core in sorted(os.sched_getaffinity(0)):
        if len(claimed) < threads and (claim := _claim(f"core-{core}")):
            claimed[core] = claim
    if turn is not None:
        turn.close()
    if len(claimed) < threads:
        for claim in claimed.values():
            claim.close()
        return ()
    _claims.extend(claimed.values())
    os.sched_setaffinity(0, claimed)
    return tuple(claimed)


def _take_turn() -> socket.socket | None:
    """One at a time: two that each hold half of what both want would both go without."""
    until = time.monotonic() + _TURN_SECONDS
    while (turn := _claim("turn")) is None and time.monotonic() < until:
        time.sleep(0.01)
    return turn


def _claim(name: str) -> socket.socket | None:
    """A name that one process of this machine can have: a socket address without a file."""
    claim = socket.socket(socket.AF_UNIX)
    with suppress(OSError):
        claim.bind(f"\0psi-{name}")
        return claim
    claim.close()
    return None
