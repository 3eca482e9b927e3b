"""Which seeds the small model answers rightly with which principles in its prompt. Every answer is asked for once and kept."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from generation.engines.base import Sampling
from generation.flows import FlowCall
from generation.principles.ask import Trial, answer_seeds
from generation.principles.model import Principle, normalise
from generation.principles.placebo import nearest_placebo
from generation.principles.search import Search, Trials
from generation.principles.utility import Rights, paired
from generation.task import Seed, Task

MIN_SEEDS = 12
"""Fewer seeds of a task, and an accuracy on a quarter of them says nothing."""
MIN_SPLIT_SEEDS = 60
"""With fewer seeds of a task, those to mine are tried as well, each candidate on what its calls did not show."""

Bundle = tuple[Principle, ...]
Wanted = tuple[Bundle, tuple[Seed, ...]]


@dataclass
class SolveTrials:
    """The trials of one task.

    Attributes:
        task: The task, with its seeds.
        search: How principles are looked for.
    """

    task: Task
    search: Search
    _known: dict[tuple[str, ...], dict[str, bool]] = field(default_factory=dict[tuple[str, ...], dict[str, bool]])

    @property
    def possible(self) -> bool:
        """Whether the task has seeds enough for any trial."""
        return len(self.task.seeds) >= MIN_SEEDS and bool(self.task.split("validate"))

    @property
    def tried_on(self) -> str:
        """As `Principle.tried_on` says it."""
        return "validate" if len(self.task.seeds) >= MIN_SPLIT_SEEDS else "cross-fit"

    def seeds_for(self, principles: Bundle) -> tuple[Seed, ...]:
        """The seeds on which principles are tried together: the first `probe_seeds` of those held out."""
        return self.held_out(principles)[: self.search.config.probe_seeds]

    def held_out(self, principles: Bundle) -> tuple[Seed, ...]:
        """All seeds on which principles can be judged together: none that was shown for one of them."""
        shown = {seed_id for principle in principles for seed_id in principle.shown}
        more = self.task.split("mine") if self.tried_on == "cross-fit" else ()
        return tuple(seed for seed in (*self.task.split("validate"), *more) if seed.seed_id not in shown)

    def measure(self, wanted: Sequence[Wanted]) -> Trials[None]:
        """Have bundles answer seeds, as far as they have not."""
        missing: dict[tuple[str, ...], tuple[Bundle, dict[str, Seed]]] = {}
        for bundle, seeds in wanted:
            known = self._known.get(_key(bundle), {})
            unknown = {seed.seed_id: seed for seed in seeds if seed.seed_id not in known}
            if unknown:
                missing.setdefault(_key(bundle), (bundle, {}))[1].update(unknown)
        calls = [self._call(number, *found) for number, found in enumerate(missing.values())]
        answers = (yield calls) if calls else {}
        for key, call in zip(missing, calls, strict=True):
            trials: list[Trial] = answers[call.key]
            self._known.setdefault(key, {}).update({trial.seed_id: trial.right for trial in trials})

    def rights(self, bundle: Bundle, seeds: Sequence[Seed]) -> Rights:
        """Which of the seeds a bundle answers rightly; they were measured before."""
        known = self._known[_key(bundle)]
        return np.array([known[seed.seed_id] for seed in seeds], dtype=np.bool_)

    def alone(self, candidates: list[Principle], size: int) -> Trials[list[Principle]]:
        """Candidates with what each gains alone over no principle, on the first `size` seeds of each."""
        seeds = {p.principle_id: self.seeds_for((p,))[:size] for p in candidates}
        bundles: list[Bundle] = [(p,) for p in candidates]
        yield from self.measure([(b, seeds[p.principle_id]) for p in candidates for b in ((), (p,))])
        return [self._scored(b[0], b, seeds[b[0].principle_id]) for b in bundles]

    def over_placebos(self, candidates: list[Principle], others: Sequence[Principle]) -> Trials[list[Principle]]:
        """Candidates with what each gains over a placebo, on all seeds of each."""
        rng_seed = self.search.rng_seed
        against: list[Bundle] = [(nearest_placebo(p, others, rng_seed),) for p in candidates]
        seeds = [self.seeds_for((p,)) for p in candidates]
        yield from self.measure(
            [*zip(against, seeds, strict=True), *(((p,), s) for p, s in zip(candidates, seeds, strict=True))]
        )
        return [
            replace(p, placebo_gain=paired(self.rights((p,), s), self.rights(placebo, s), rng_seed))
            for p, placebo, s in zip(candidates, against, seeds, strict=True)
        ]

    def _scored(self, principle: Principle, bundle: Bundle, seeds: tuple[Seed, ...]) -> Principle:
        rights = self.rights(bundle, seeds)
        return replace(
            principle,
            tried_on=self.tried_on,
            solve_accuracy=float(rights.mean()),
            solve_gain=paired(rights, self.rights((), seeds), self.search.rng_seed),
        )

    def _call(self, number: int, bundle: Bundle, seeds: dict[str, Seed]) -> FlowCall:
        bare = Task(self.task.config, ())
        sampling = Sampling(self.search.config.probe_output_tokens, temperature=0.0)
        prompts = self.search.prompts
        prefix = prompts.render("answer_prefix", task=bare, principles=bundle, demonstrations=())
        arguments = (bare, prompts, prefix, tuple(seeds.values()), sampling)
        return FlowCall(f"probe/{self.task.name}/{number:04d}", answer_seeds, arguments)


def _key(bundle: Bundle) -> tuple[str, ...]:
    return tuple(normalise(f"{p.when} {p.text}") for p in bundle)
