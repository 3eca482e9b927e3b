"""Mistakes in the protocol, planted to see whether the checker finds them. `python -m tests.chaos.bugs MISTAKE generate ...` is `psi` with one."""

import os
import signal
import sys
from dataclasses import replace
from typing import Any

import cluster.coordinator_link
from cluster.cli import main
from cluster.coordinator import Coordinator
from cluster.protocol import BeatAnswer, CommitAnswer
from generation.manifest_state import Shard


class CoordinatorThatLosesAnAnswer(Coordinator):  # the story finds it by the start of its name
    """No mistake, but bad luck: the first incarnation dies between its first segment and its answer, so its replica commits again."""

    async def commit(self, replica_id: str, lease_id: str, commit: Shard) -> CommitAnswer:
        incarnation = (await self._open()).incarnation
        answer = await super().commit(replica_id, lease_id, commit)
        if incarnation == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer


class CoordinatorThatListsAgain(CoordinatorThatLosesAnAnswer):
    """Whoever commits a unit wins it, also where another did before, or the same one whose answer was lost."""

    async def commit(self, replica_id: str, lease_id: str, commit: Shard) -> CommitAnswer:
        places = (await self._open()).state.places
        again = tuple(rows for rows in commit.units if rows[0] in places)
        answer = await super().commit(replica_id, lease_id, commit)
        if again:
            await (await self._open()).log([Shard(commit.file, commit.sha256, commit.file_bytes, again, {}, {}, {})])
        return answer

    async def beat(self, *arguments: Any) -> BeatAnswer:
        """Nobody is told to drop what others have settled."""
        return replace(await super().beat(*arguments), drop=())


class CoordinatorThatListsHalf(Coordinator):
    """A unit becomes visible without its last row."""

    async def commit(self, replica_id: str, lease_id: str, commit: Shard) -> CommitAnswer:
        units = tuple((unit, start, end - 1) for unit, start, end in commit.units)
        return await super().commit(replica_id, lease_id, commit._replace(units=units))


MISTAKES = {
    "loses-an-answer": CoordinatorThatLosesAnAnswer,
    "lists-again": CoordinatorThatListsAgain,
    "lists-half": CoordinatorThatListsHalf,
}

if __name__ == "__main__":
    from tests.chaos import bugs  # actors are found by this name, not as __main__

    cluster.coordinator_link.Coordinator = bugs.MISTAKES[sys.argv.pop(1)]
    main()
