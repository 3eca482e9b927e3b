"""Mistakes in the protocol, planted to see whether the checker finds them. `python -m tests.chaos.bugs MISTAKE generate ...` is `psi` with one."""

import sys
from typing import Any

import cluster.coordinator
import cluster.coordinator_link
from cluster.cli import main
from cluster.coordinator import Coordinator
from cluster.ledger import Ledger
from cluster.protocol import BeatAnswer, CommitAnswer, ShardCommit
from generation.manifest_state import ShardLine


class ListsAgain(Coordinator):
    """Whoever commits a unit wins it, also where another did before, or the same one whose answer was lost."""

    async def commit(self, replica_id: str, lease_id: str, commit: ShardCommit) -> CommitAnswer:
        places = self._open_desk().state.places
        again = tuple((u.unit, u.start, u.end) for u in commit.units if u.unit in places)
        answer = await super().commit(replica_id, lease_id, commit)
        if again:
            line = ShardLine(commit.file, commit.sha256, commit.file_bytes, again)
            await self._log(self._open_desk(), [line.to_json()])
        return answer

    async def beat(self, *arguments: Any) -> BeatAnswer:
        """Nobody is told to drop what others have settled."""
        await super().beat(*arguments)
        return BeatAnswer()


class ForgetfulLedger(Ledger):
    """Takes nothing of what its predecessors committed."""

    def restore(self, *arguments: Any) -> None:
        pass


class Forgets(Coordinator):
    """A restarted coordinator hands committed units out again."""

    def __init__(self, *arguments: Any) -> None:
        cluster.coordinator.Ledger = ForgetfulLedger  # in the actor's process, which imports the module anew
        super().__init__(*arguments)


MISTAKES = {"lists-again": ListsAgain, "forgets": Forgets}

if __name__ == "__main__":
    from tests.chaos import bugs  # actors are found by this name, not as __main__

    cluster.coordinator_link.Coordinator = bugs.MISTAKES[sys.argv.pop(1)]
    main()
