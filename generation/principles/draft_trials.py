"""What a principle does to the instances that the small model writes: drafts on trial with it, and with a placebo of its length.

A trial is an instance as generation writes it (prompt, cells, cheap checks, blind answers), except that two answers decide and nothing
is kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from generation.arms import arm_spec
from generation.config import VotingConfig
from generation.flows import FlowCall
from generation.instances.bundles import make_bundles, make_cells
from generation.instances.flow import InstanceContext, without_seeds, write_instance
from generation.instances.plan import FlowPlan, PlanRecord, unit_id
from generation.principles.cluster_seeds import Vectors, embed
from generation.principles.model import Principle, normalise
from generation.principles.placebo import nearest_placebo
from generation.principles.search import Search, Trials
from generation.principles.utility import Floats, covered, lengths_covered, novelty, paired, unpaired, usual_similarity
from generation.rows import Row
from generation.task import Seed, Task

TWO_ANSWERS = VotingConfig(rounds=(2,), min_agreement=1.0)


@dataclass
class DraftTrials:
    """The draft trials of one task.

    Attributes:
        task: The task, with its seeds.
        search: How principles are looked for.
        solving: The solve and check principles that are selected: they stand in every prompt.
        others: Principles of other tasks, for placebos.
        held_out: Gives the seeds that drafts with a principle should come near: those that no call for it showed.
    """

    task: Task
    search: Search
    solving: Sequence[Principle]
    others: Sequence[Principle]
    held_out: Callable[[tuple[Principle, ...]], Sequence[Seed]]
    _known: dict[str, list[Row]] = field(default_factory=dict[str, list[Row]])

    def alone(self, candidates: list[Principle], size: int) -> Trials[list[Principle]]:
        """Candidates with what each changes against a placebo, by `size` drafts of either."""
        against = [nearest_placebo(p, self.others, self.search.rng_seed) for p in candidates]
        distinct = {_key(p): p for p in (*candidates, *against)}
        calls = {key: self._calls(number, p, size) for number, (key, p) in enumerate(distinct.items())}
        answers = yield [call for of_one in calls.values() for call in of_one]
        for key, of_one in calls.items():
            self._known.setdefault(key, []).extend(answers[call.key] for call in of_one)
        rows = {key: self._known[key][:size] for key in distinct}
        view = _View.of(self.task, rows)
        return [self._compared(p, placebo, view) for p, placebo in zip(candidates, against, strict=True)]

    def _compared(self, principle: Principle, placebo: Principle, view: "_View") -> Principle:
        """The principle with what changes from the drafts with the placebo to those with it; None where there is nothing to compare."""
        ours, theirs, rng_seed = _key(principle), _key(placebo), self.search.rng_seed
        new = [novelty(view.drafts[key], view.seeds) for key in (ours, theirs)]
        held_out = self.held_out((principle,))
        near = [view.coverage(held_out, key) for key in (ours, theirs)]
        parsed, kept = ([_share(view.rows[key], mark) for key in (ours, theirs)] for mark in (_parsed, _kept))
        return replace(
            principle,
            parse_delta=unpaired(parsed[0], parsed[1], rng_seed),
            yield_delta=unpaired(kept[0], kept[1], rng_seed),
            novelty_delta=unpaired(new[0], new[1], rng_seed) if min(map(len, new)) else None,
            coverage_delta=paired(near[0], near[1], rng_seed) if held_out else None,
        )

    def _calls(self, number: int, principle: Principle, size: int) -> list[FlowCall]:
        """The drafts that are still to be written."""
        search, name = self.search, self.task.name
        generation = search.generation.model_copy(update={"bundles": 1, "voting": TWO_ANSWERS})
        active = [replace(p, task=name, status="active") for p in (*self.solving, principle)]
        bundle = make_bundles(self.task, active, search.prompts, generation, arm_spec("psi"))[0]
        cells = make_cells(bundle, self.task, search.prompts, generation)
        flows = tuple(len(range(i, size, len(cells))) for i in range(len(cells)))
        record = PlanRecord(0, name, 0, bundle, cells, num_units=1, flows_per_unit=size, cell_flows=flows)
        context = InstanceContext("probe", {name: without_seeds(self.task)}, search.prompts, generation, "")
        done = len(self._known.get(_key(principle), []))
        return [
            FlowCall(
                f"draft/{name}/{number:04d}/{i:04d}",
                write_instance,
                (FlowPlan(unit_id(0, 0), i, cells[i % len(cells)]), record, context),
            )
            for i in range(done, size)
        ]


@dataclass(frozen=True, slots=True)
class _View:
    """The drafts of one round as vectors; rare n-grams weigh by how rare they are in all of them.

    Attributes:
        rows: Drafts by principle.
        drafts: Vectors of those that hold an input, by principle.
        seeds: Vectors of all seeds.
        places: Seed id to its row in `seeds`.
        near: Cosine at which a seed counts as covered.
    """

    rows: dict[str, list[Row]]
    drafts: dict[str, Vectors]
    seeds: Vectors
    places: dict[str, int]
    near: float

    @staticmethod
    def of(task: Task, rows: dict[str, list[Row]]) -> "_View":
        inputs = {key: [row.input for row in drafts if row.input] for key, drafts in rows.items()}
        vectors = embed([*(seed.input for seed in task.seeds), *(text for texts in inputs.values() for text in texts)])
        seeds, rest = vectors[: len(task.seeds)], vectors[len(task.seeds) :]
        ends = np.cumsum([len(texts) for texts in inputs.values()])
        places = {seed.seed_id: i for i, seed in enumerate(task.seeds)}
        drafts = dict(zip(inputs, np.split(rest, ends[:-1]), strict=True))
        return _View(rows, drafts, seeds, places, usual_similarity(seeds))

    def coverage(self, seeds: Sequence[Seed], key: str) -> Floats:
        """How well the drafts of a principle cover each seed: half for a draft as near in wording as seeds are, half for one as long."""
        vectors = self.seeds[[self.places[seed.seed_id] for seed in seeds]]
        wording = covered(vectors, self.drafts[key], self.near)
        texts = [row.input for row in self.rows[key] if row.input]
        return (wording + lengths_covered([seed.input for seed in seeds], texts).astype(np.float64)) / 2


def _share(rows: Sequence[Row], mark: Callable[[Row], bool]) -> Floats:
    return np.array([mark(row) for row in rows], dtype=np.float64)


def _parsed(row: Row) -> bool:
    return bool(row.input)


def _kept(row: Row) -> bool:
    return row.status == "instance"


def _key(principle: Principle) -> str:
    return normalise(f"{principle.when} {principle.text}")
