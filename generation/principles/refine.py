"""What the large model does to candidates once they are merged: one text for each merged group, and a judgement on what contradicts.

Each needs a template that a prompt set may lack (`rewrite_group`, `contradict`); without it nothing is asked.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from generation.engines.base import Completion, Request, Sampling
from generation.flows import FlowCall
from generation.journal import Journal
from generation.principles.ask import LARGE_STAGE, ask_large, ask_once
from generation.principles.cluster_seeds import embed
from generation.principles.merge import MERGED, strength
from generation.principles.model import Principle, principle_id
from generation.principles.search import Search
from generation.task import Task

REWRITE, CONTRADICT = "rewrite_group", "contradict"
CONTRADICTS = "contradicts "
"""Start of the reason of what contradicts another; its id follows."""
NEAR = 0.35
"""Cosine from which two principles of one kind may speak of the same thing, and so against each other."""
MAX_PAIRS = 16
"""Pairs a task that are judged, the nearest ones."""

Candidates = Mapping[str, Sequence[Principle]]
Gate = Callable[[Principle], Principle]


def rewrite_groups(
    tasks: Sequence[Task], merged: Candidates, gates: Mapping[str, Gate], search: Search, journal: Journal
) -> dict[str, list[Principle]]:
    """Candidates by task, with one new text for each merged group in place of its best supported member, which is retired.

    Args:
        tasks: The tasks.
        merged: Their candidates.
        gates: By task, what retires a text that fails a gate: then the group keeps its member's, as where the text is there already.
        search: How principles are looked for.
        journal: Of the run.
    """
    groups = {task.name: _groups(merged[task.name]) for task in tasks} if search.prompts.has_template(REWRITE) else {}
    calls: dict[str, FlowCall] = {}
    for task in tasks:
        for head, members in groups.get(task.name, {}).items():
            text = search.prompts.render(REWRITE, task=task, principles=members)
            calls[head] = _call(f"{REWRITE}/{task.name}/{head}", text, search)
    completions = _asked(list(calls.values()), search, journal)
    found: dict[str, list[Principle]] = {}
    for task in tasks:
        found[task.name] = []
        ids = {p.principle_id for p in merged[task.name]}
        for principle in merged[task.name]:
            call = calls.get(principle.principle_id)
            new = _rewritten(principle, call.key, completions[call.key], search) if call else None
            gated = gates[task.name](new) if new is not None and new.principle_id not in ids else None
            ids |= {new.principle_id} if new is not None else set()
            found[task.name] += [principle] if gated is None else _in_place(principle, gated)
    return found


def drop_contradicted(
    tasks: Sequence[Task], candidates: Candidates, search: Search, journal: Journal
) -> dict[str, list[Principle]]:
    """Candidates by task; of two that contradict each other, the one with less support is retired."""
    asking = search.prompts.has_template(CONTRADICT)
    pairs = {task.name: _near_pairs(candidates[task.name]) if asking else [] for task in tasks}
    calls = {
        (first.principle_id, second.principle_id): _call(
            f"{CONTRADICT}/{task.name}/{first.principle_id}/{second.principle_id}",
            search.prompts.render(CONTRADICT, task=task, first=first, second=second),
            search,
        )
        for task in tasks
        for first, second in pairs[task.name]
    }
    completions = _asked(list(calls.values()), search, journal)
    return {
        name: _judged(found, [p for p in pairs[name] if _yes(completions[calls[_ids(p)].key], search)])
        for name, found in candidates.items()
    }


def _groups(merged: Sequence[Principle]) -> dict[str, list[Principle]]:
    """Id of each head to all of its group, itself first."""
    heads = {p.principle_id: p for p in merged if p.status == "candidate"}
    groups: dict[str, list[Principle]] = {}
    for principle in merged:
        head = principle.reason.removeprefix(MERGED)
        if principle.reason.startswith(MERGED) and head in heads:
            groups.setdefault(head, [heads[head]]).append(principle)
    return groups


def _call(key: str, text: str, search: Search) -> FlowCall:
    sampling = Sampling(search.config.sampling.max_output_tokens, temperature=0.0)
    return FlowCall(key, ask_once, (Request("", text, sampling, stage=LARGE_STAGE),))


def _asked(calls: list[FlowCall], search: Search, journal: Journal) -> dict[str, Completion]:
    return ask_large(calls, search.asks.large, journal, search.config.large_token_budget) if calls else {}


def _rewritten(head: Principle, call: str, completion: Completion, search: Search) -> Principle | None:
    """The group's principle in its new words; None where the answer holds none."""
    match = search.prompts.pattern("principle").search(completion.text.strip())
    text = " ".join(match["text"].split()) if match else ""
    if not text:
        return None
    new = principle_id(head.task, head.level, head.kind, text)
    return replace(head, principle_id=new, text=text, template=REWRITE, calls=(*head.calls, call))


def _in_place(head: Principle, new: Principle) -> list[Principle]:
    if new.status == "retired":
        return [head, new]
    return [new, replace(head, status="retired", reason=f"rewritten into {new.principle_id}")]


def _near_pairs(candidates: Sequence[Principle]) -> list[tuple[Principle, Principle]]:
    """The nearest pairs of one kind, the better supported first in each."""
    open_ones = sorted((p for p in candidates if p.status == "candidate"), key=strength)
    vectors = embed([f"{p.when} {p.text}" for p in open_ones])
    near = vectors @ vectors.T
    pairs = [
        (float(near[i, j]), first, second)
        for (i, first), (j, second) in combinations(enumerate(open_ones), 2)
        if first.kind == second.kind and near[i, j] >= NEAR
    ]
    return [(first, second) for _, first, second in sorted(pairs, key=lambda pair: -pair[0])[:MAX_PAIRS]]


def _ids(pair: tuple[Principle, Principle]) -> tuple[str, str]:
    return pair[0].principle_id, pair[1].principle_id


def _yes(completion: Completion, search: Search) -> bool:
    match = search.prompts.pattern("verdict").search(completion.text)
    return match is not None and match["verdict"].casefold() == "yes"


def _judged(found: Sequence[Principle], against: Sequence[tuple[Principle, Principle]]) -> list[Principle]:
    gone: dict[str, str] = {}
    for kept, dropped in against:
        if kept.principle_id not in gone:
            gone.setdefault(dropped.principle_id, f"{CONTRADICTS}{kept.principle_id}, which has more support")
    return [replace(p, status="retired", reason=gone[p.principle_id]) if p.principle_id in gone else p for p in found]
