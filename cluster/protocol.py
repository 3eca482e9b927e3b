"""What coordinator, replicas and driver say to each other. Plain data that pickles; no Ray, no behaviour.

What goes with each lease and each commit is a tuple, which is made several times faster than a frozen dataclass.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from generation.instances.flow import InstanceContext
from generation.spent import Spent
from generation.visible import SettledUnit


@dataclass(frozen=True)
class GenerateJob:
    """What a replica needs to write instances of one arm.

    Attributes:
        run: URI of the arm's run folder.
        run_id: Part of each row's id.
        context: What all its instance flows share.
        commit_bytes: A shard is written once its rows are about so large ...
        commit_seconds: ... or its first unit is so old.
        drain_seconds: How long a replica whose node goes away may take to finish units before it gives them back and leaves.
    """

    run: str
    run_id: str
    context: InstanceContext
    commit_bytes: int = 32 * 2**20
    commit_seconds: float = 2.0
    drain_seconds: float = 20.0


class Beat(NamedTuple):
    """What a replica says of itself with each `lease` and `beat`. Sums are over its life; losing one loses nothing.

    Attributes:
        steps: Steps of its engine. A lease is renewed when they rise, and by nothing that hangs.
        node: Ray's id of its node.
        held: Units in its hands, so that a restarted coordinator does not hand them to others.
        spent: Where its time went.
    """

    steps: int = 0
    node: str = ""
    held: tuple[str, ...] = ()
    spent: Spent = Spent()


@dataclass(frozen=True, slots=True)
class BeatAnswer:
    """What a replica should know at once.

    Attributes:
        leave: There will be no more work: finish what is begun, give the rest back, and leave.
        drop: Units of those held that others have settled, which need not be finished.
    """

    leave: bool = False
    drop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Care:
    """How to run a unit alone of which engines have died, so that the flow that kills them is found.

    Attributes:
        group: Flows to run at once. Each group is announced (`Coordinator.announce`) before it starts.
        skip: Places in the unit of flows that killed engines: not run, but written as rejections.
    """

    group: int
    skip: tuple[int, ...] = ()


class Lease(NamedTuple):
    """Units handed to one replica until a deadline. Losing it loses nothing.

    Attributes:
        lease_id: Unique within an incarnation.
        units: Unit ids, in plan order, all of one plan record.
        seconds: How long the replica may go without a step before the units are leased again.
        seen: Accepted inputs (`generation.instances.flow.seen_key`) that are new since the replica's last lease; advisory.
        care: For a single unit of which engines have died; else None.
    """

    lease_id: str
    units: tuple[str, ...]
    seconds: float
    seen: tuple[str, ...] = ()
    care: Care | None = None


class LeaseAnswer(NamedTuple):
    """The answer to "what shall I do?": a lease, or wait and ask again, or leave.

    Attributes:
        lease: Work, or None.
        wait_seconds: Without a lease: ask again after so long.
        leave: Without a lease: there will be no more work.
    """

    lease: Lease | None = None
    wait_seconds: float = 0.0
    leave: bool = False


class CommitAnswer(NamedTuple):
    """What became of a commit.

    Attributes:
        committed: Units that are now visible through this file (or were already: a retry hears the same).
        lost: Units that another file committed first, or that were given up.
    """

    committed: tuple[str, ...]
    lost: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """A coordinator's counters.

    Attributes:
        planned: Units in all plan records.
        committed: Units visible.
        leased: Units in the hands of a replica.
        given_up: Units with a tombstone, and why.
        replicas: Replicas that asked for work lately.
        instances: Rows with status `instance`, by task.
        rejections: `task/stage/reason` to count.
        tokens: Stage to `requests`, `prompt_tokens`, `cached_tokens`, `output_tokens`.
        spent: Replica to where its time went, of all that this coordinator has heard of.
    """

    planned: int
    committed: int
    leased: int
    given_up: dict[str, str]
    replicas: int
    instances: dict[str, int]
    rejections: dict[str, int]
    tokens: dict[str, dict[str, int]]
    spent: dict[str, Spent] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PrefixAnswer:
    """How plan order has gone on since the asker last looked.

    Attributes:
        settled: By task, the settled units that come next in plan order.
        stale: Tasks of which the asker saw other units than are visible; it must fold them again from the start.
        planned: Units in the plan, by task.
        next_record: Index of the next plan record.
        num_settled: Units whose fate is final, by task, wherever in plan order: what the fold has yet to see is among them.
        more: Whether `settled` leaves some out.
    """

    settled: dict[str, tuple[SettledUnit, ...]]
    stale: frozenset[str]
    planned: dict[str, int]
    next_record: int
    num_settled: dict[str, int] = field(default_factory=dict[str, int])
    more: bool = False

    @property
    def has_news(self) -> bool:
        """Whether there is something to fold."""
        return bool(self.stale) or any(self.settled.values())


@dataclass(frozen=True, slots=True)
class Tick:
    """What the driver says each time that it asks.

    Attributes:
        seen: By task, how many units it has folded, and their digest.
        keys: Inputs that curation has kept since it last asked (`generation.instances.flow.seen_key`), for replicas to look at before they
            spend votes. Advisory.
        enough: So many replicas have as much to do as all would: the others may leave, once they ask with empty hands. None: as it was.
        wait_seconds: With nothing to fold, it would rather hear later than hear nothing new: at most so much later.
    """

    seen: Mapping[str, tuple[int, str]] = field(default_factory=dict[str, tuple[int, str]])
    keys: Sequence[str] = ()
    enough: int | None = None
    wait_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class TickAnswer:
    """What it hears."""

    prefix: PrefixAnswer
    progress: Progress
