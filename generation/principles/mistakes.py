"""What the small model gets wrong with examples instead of principles, why, and which mistakes have one cause."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from generation.engines.base import Request, Sampling
from generation.flows import FlowCall
from generation.journal import Journal, journalled
from generation.principles.ask import LARGE_STAGE, Trial, answer_seeds, ask_large, ask_once, values_of
from generation.principles.evidence import Mistake
from generation.principles.search import Search
from generation.task import Seed, Task

SEEDS_PER_TRIAL = 32
MISTAKES_PER_SHOWN = 2
"""Causes are asked for twice as many mistakes as calls can show: their clusters tell the frequent ones from the odd ones."""
CAUSE = "cause"
"""Name of the optional template that asks for one, and of the pattern that finds it."""


def find_mistakes(tasks: Sequence[Task], search: Search, journal: Journal) -> dict[str, list[Mistake]]:
    """Task name to the seeds of its `mine` split that the small model gets wrong, or not always right; empty where no level asks for errors.

    Each seed is answered `mistake_answers` times. The answers are journalled, so that a restart shows the large model the same mistakes
    and finds its answers in the journal. An answer that could not be read is no mistake to learn from.
    """
    shown = _shown(search)
    calls = [call for task in tasks for call in _calls(task, task.split("mine")[: 4 * shown], search)] if shown else []
    wrapped = [FlowCall(call.key, journalled, (call, journal)) for call in calls]
    answered = values_of(search.asks.small(wrapped)) if wrapped else {}
    trials: dict[str, list[Trial]] = {}
    for key in sorted(answered):
        for trial in answered[key]:
            trials.setdefault(trial.seed_id, []).append(trial)
    found = {
        task.name: [m for seed in task.split("mine") if (m := _mistake(seed, trials.get(seed.seed_id, ()))) is not None]
        for task in tasks
    }
    return _with_causes(tasks, found, search, journal) if search.prompts.has_template(CAUSE) else found


def _shown(search: Search) -> int:
    """Mistakes that the calls of a task can show."""
    levels = search.config.levels.values()
    return sum(level.calls * level.seeds_per_call for level in levels if level.evidence == "errors")


def _calls(task: Task, seeds: Sequence[Seed], search: Search) -> list[FlowCall]:
    config, drawn = search.config, search.generation.answer
    sampling = Sampling(config.probe_output_tokens, temperature=drawn.temperature, top_p=drawn.top_p)
    bare, shown = Task(task.config, ()), task.split("demo")[: search.generation.direct_demonstrations]
    # Worked examples, as a model that is shown nothing makes mistakes of form and not of understanding.
    prefix = search.prompts.render("answer_prefix", task=bare, principles=(), demonstrations=shown)
    return [
        FlowCall(
            f"mistakes/{task.name}/{start:06d}",
            answer_seeds,
            (
                bare,
                search.prompts,
                prefix,
                _repeated(seeds[start : start + SEEDS_PER_TRIAL], config.mistake_answers),
                sampling,
            ),
        )
        for start in range(0, len(seeds), SEEDS_PER_TRIAL)
    ]


def _repeated(seeds: Sequence[Seed], times: int) -> tuple[Seed, ...]:
    return tuple(seed for seed in seeds for _ in range(times))


def _mistake(seed: Seed, trials: Sequence[Trial]) -> Mistake | None:
    """The most frequent wrong answer to a seed, with the first completion that gave it."""
    wrong = Counter(trial.answer for trial in trials if trial.answer is not None and not trial.right)
    if not wrong:
        return None
    answer = wrong.most_common(1)[0][0]
    text = next(trial.text for trial in trials if trial.answer == answer)
    return Mistake(seed, str(answer), text)


def _with_causes(
    tasks: Sequence[Task], found: dict[str, list[Mistake]], search: Search, journal: Journal
) -> dict[str, list[Mistake]]:
    """The mistakes whose cause the large model names; those beyond twice what calls can show are left out."""
    asked = {task.name: found[task.name][: MISTAKES_PER_SHOWN * _shown(search)] for task in tasks}
    sampling = Sampling(search.config.sampling.max_output_tokens, temperature=0.0)
    calls = [
        FlowCall(
            f"{CAUSE}/{task.name}/{mistake.seed.seed_id}",
            ask_once,
            (Request("", search.prompts.render(CAUSE, task=task, mistake=mistake), sampling, stage=LARGE_STAGE),),
        )
        for task in tasks
        for mistake in asked[task.name]
    ]
    completions = ask_large(calls, search.asks.large, journal, search.config.large_token_budget) if calls else {}
    pattern = search.prompts.pattern(CAUSE)
    causes = {key: match["cause"].strip() for key, c in completions.items() if (match := pattern.search(c.text))}
    return {
        name: [
            replace(mistake, cause=causes[key])
            for mistake in mistakes
            if (key := f"{CAUSE}/{name}/{mistake.seed.seed_id}") in causes
        ]
        for name, mistakes in asked.items()
    }
