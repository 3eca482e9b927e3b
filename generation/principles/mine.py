"""Mining: what the large model is asked on each level, what its answers say, and the gates that need no model.

Owns the calls and the reading of their completions; who asks, and the selection, are elsewhere.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from random import Random
from re import Match
from typing import Literal

from generation.config import LevelConfig, PrinciplesConfig
from generation.engines.base import Completion, Request, Sampling
from generation.flows import FlowCall
from generation.principles.ask import LARGE_STAGE, ask_once
from generation.principles.cluster_seeds import cluster_seeds
from generation.principles.evidence import Evidence, Mistake, gather_evidence
from generation.principles.leak import LeakIndex
from generation.principles.model import KINDS, Kind, Principle, principle_id
from generation.principles.search import Search
from generation.prompts.prompt_set import PromptSet
from generation.task import Seed, Task


@dataclass(frozen=True, slots=True)
class MiningCall:
    """One question to the large model.

    Attributes:
        level: Name of its level.
        config: The level's section of the recipe.
        evidence: What it shows.
        call: The flow that asks it; returns a `Completion`.
    """

    level: str
    config: LevelConfig
    evidence: Evidence
    call: FlowCall


def mining_calls(
    task: Task, config: PrinciplesConfig, prompts: PromptSet, mistakes: Sequence[Mistake], rng_seed: int
) -> list[MiningCall]:
    """Every question of every level. The same arguments give the same questions, whichever were asked before."""
    clusters = cluster_seeds(task.split("mine"), by_label=bool(task.labels), rng_seed=rng_seed)
    sampling = Sampling(**config.sampling.model_dump())
    made: list[MiningCall] = []
    for name, level in config.levels.items():
        rng = Random(f"{rng_seed} {task.name} {name}")
        for number, evidence in enumerate(gather_evidence(level, clusters, mistakes, rng)):
            most = 1 if evidence.one_cause else level.max_principles_per_call
            text = prompts.render(
                level.prompt,
                task=task,
                seeds=evidence.seeds,
                mistakes=evidence.mistakes,
                max_principles=most,
                level=name,
            )
            call = FlowCall(
                f"mine/{task.name}/{name}/{number:04d}", ask_once, (Request("", text, sampling, stage=LARGE_STAGE),)
            )
            made.append(MiningCall(name, level, evidence, call))
    return made


def read_candidates(task: str, call: MiningCall, completion: Completion, search: Search) -> list[Principle]:
    """The principles in one completion, at most `max_principles_per_call`; what cannot be read is a retired one with the raw text."""
    matches = list(search.prompts.pattern("principle").finditer(completion.text.strip()))[
        : call.config.max_principles_per_call
    ]
    if completion.finish == "error":
        return [_unreadable(task, call, completion.error, "engine: request refused")]
    if not matches:
        reason = (
            "unreadable: cut before a principle ended" if completion.finish == "length" else "unreadable: no principle"
        )
        return [_unreadable(task, call, completion.text, reason)]
    return [replace(_candidate(task, call, match), model=search.asks.large_model) for match in matches]


def gate(candidate: Principle, max_words: int, leaks: LeakIndex) -> Principle:
    """The candidate, retired where it fails a gate that needs no model: no text, no kind, no support, too long, a leak."""
    if candidate.status == "retired":
        return candidate
    words = len(candidate.text.split())
    failures = (
        "unreadable: empty" if not words else "",
        "unreadable: no kind" if not candidate.kind else "",
        "unreadable: support names no example that was shown" if not candidate.support else "",
        f"length: over {max_words} words" if words > max_words else "",
        leaks.leak(f"{candidate.when} {candidate.text}"),
    )
    reason = next(filter(None, failures), "")
    return replace(candidate, status="retired", reason=reason, leaks=bool(failures[-1])) if reason else candidate


def _candidate(task: str, call: MiningCall, match: Match[str]) -> Principle:
    text = " ".join(match["text"].split())
    stated = _group(match, "kind").casefold()
    known: dict[str, Kind] = {kind: kind for kind in KINDS}
    kind: Kind | Literal[""] = call.config.kind or known.get(stated, "")
    return Principle(
        principle_id(task, call.level, kind, text),
        task,
        call.level,
        kind,
        text,
        when=" ".join(_group(match, "when").split()),
        support=_support(match, call.evidence.seeds),
        shown=tuple(seed.seed_id for seed in call.evidence.seeds),
        template=call.config.prompt,
        calls=(call.call.key,),
    )


def _unreadable(task: str, call: MiningCall, text: str, reason: str) -> Principle:
    return Principle(
        principle_id(task, call.level, "", text), task, call.level, "", text,
        template=call.config.prompt, calls=(call.call.key,), status="retired", reason=reason,
    )  # fmt: skip


def _support(match: Match[str], seeds: Sequence[Seed]) -> tuple[str, ...]:
    """Ids of the examples that a principle names by number, from 1; all that were shown where the prompt set has no such field."""
    if "support" not in match.re.groupindex:
        return tuple(seed.seed_id for seed in seeds)
    numbers = _numbers(_group(match, "support"))
    return tuple(dict.fromkeys(seeds[number - 1].seed_id for number in numbers if 1 <= number <= len(seeds)))


def _group(match: Match[str], name: str) -> str:
    return (match[name] or "").strip() if name in match.re.groupindex else ""


def _numbers(text: str) -> Iterable[int]:
    """`1, 3` or `E1 and E3` as 1 and 3; a number of many digits names nothing."""
    return (
        int(part) for part in "".join(c if c.isdigit() and c.isascii() else " " for c in text).split() if len(part) < 4
    )
