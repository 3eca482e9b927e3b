"""Selection by utility: what the small model does with each candidate decides which ones go into its prompts.

Solve and check principles are tried on seeds, generate principles on instances that they are to shape. The
trials themselves are elsewhere.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace

from generation.principles.draft_trials import DraftTrials
from generation.principles.halving import FINALISTS, halve
from generation.principles.merge import strength
from generation.principles.model import Principle, normalise
from generation.principles.refine import CONTRADICTS
from generation.principles.room import Room
from generation.principles.search import Search, Trials
from generation.principles.solve_trials import SolveTrials
from generation.principles.twins import spread_out, with_twins
from generation.principles.utility import NO_BETTER, UTILITY, beats_placebo, harm
from generation.task import Task

MAX_TRIED = 64
"""Solve and check candidates that are tried; the best supported ones."""
MAX_DRAFTED = 16
"""Generate candidates that are tried: each costs whole instances."""
EQUAL = 0.5
"""Scores of generate candidates that differ by less, in standard deviations, count as equal: then support decides."""
NONE_HELPED = "support alone, as none helped"
NOT_ON_ALL = f"{UTILITY} not tried on all probes"
NOT_BESIDE = "not tried beside the selected ones"


def select(
    candidates: Sequence[Principle], others: Sequence[Principle], task: Task, search: Search, *, fallback: bool = False
) -> Trials[list[Principle]]:
    """Every candidate with its scores, status and reason; the selected ones come first, solve and check before generate.

    Args:
        candidates: Merged, all of the task; retired ones pass through.
        others: Principles of other tasks, for placebos.
        task: The task.
        search: How principles are looked for.
        fallback: Where no solve or check principle helps, take the best supported ones.
    """
    room, trials = Room.of(search.config), SolveTrials(task, search)
    open_ones = sorted((p for p in candidates if p.status == "candidate"), key=strength)
    retired = [p for p in candidates if p.status == "retired"]
    if not trials.possible:
        why = f"static gate and support alone: {len(task.seeds)} seeds are too few to try it on"
        return [*_first(_by_support(open_ones, room, why)), *retired]
    others = _foreign(others, candidates, task)
    chosen = yield from _by_solving(with_twins([p for p in open_ones if p.kind != "generate"]), others, trials, room)
    if fallback and not any(p.status == "active" for p in chosen):
        chosen = _fallen_back(chosen, room)
    solving = [p for p in chosen if p.status == "active"]
    drafts = DraftTrials(task, search, solving, others, trials.held_out)
    generating = with_twins([p for p in open_ones if p.kind == "generate"])
    written = yield from _by_drafting(generating, drafts, trials.tried_on, room)
    return [*_first((*chosen, *written)), *retired]


def reselect(
    candidates: Sequence[Principle], others: Sequence[Principle], task: Task, search: Search, gone: Collection[str]
) -> Trials[list[Principle]]:
    """Candidates of a selection, selected anew as if others had not been there. Where no solve or check principle helps, the best supported stand in.

    Nothing is searched more widely than before: only what was tried on all probes may enter, by the scores that it has. The small model
    tries new bundles of several, and what contradicted one that is gone, as that was never tried. With too few seeds, support decides.

    Args:
        candidates: Those that are left, with their scores.
        others: Principles of other tasks, for placebos.
        task: The task.
        search: As before, without the levels that are left out.
        gone: Ids of the principles that are left out.
    """
    room, trials = Room.of(search.config), SolveTrials(task, search)
    again = [reopened(p, gone) for p in candidates]
    if not trials.possible:
        return (yield from select(again, others, task, search))
    open_ones = sorted((p for p in again if p.status == "candidate"), key=lambda p: (-(p.utility or 0.0), strength(p)))
    solving = [p for p in open_ones if p.kind != "generate"]
    freed = [p for p in solving if any(p.principle_id == q.principle_id and _contradicts(q, gone) for q in candidates)]
    scored = yield from trials.alone(freed, search.config.probe_seeds)
    scored = yield from trials.over_placebos(scored, _foreign(others, candidates, task))
    tried = [*(p for p in solving if p.placebo_gain is not None), *scored]
    chosen = yield from _forward(tried, trials, room)
    solved = [*chosen, *_not_among(tried, solving, room)]
    if not any(p.status == "active" for p in chosen):
        solved = _fallen_back(solved, room)
    generating = [p for p in open_ones if p.kind == "generate"]
    drafted = [p for p in generating if p.yield_delta and p.yield_delta.items >= search.config.probe_drafts]
    written = [*_in_turn(drafted, room), *_not_among(drafted, generating, room)]
    return [*_first((*solved, *written)), *(p for p in again if p.status == "retired")]


def reopened(principle: Principle, gone: Collection[str] = ()) -> Principle:
    """The principle as it was before it was selected or not; what failed a gate, was merged or contradicts one that is not gone stays retired."""
    if principle.status != "retired" or principle.reason.startswith(UTILITY) or _contradicts(principle, gone):
        return replace(principle, status="candidate", reason="")
    return principle


def _contradicts(principle: Principle, gone: Collection[str]) -> bool:
    return principle.reason.startswith(CONTRADICTS) and principle.reason.removeprefix(CONTRADICTS).split(",")[0] in gone


def _not_among(tried: Sequence[Principle], candidates: Sequence[Principle], room: Room) -> list[Principle]:
    left = {p.principle_id: p for p in candidates} | {p.principle_id: None for p in tried}
    return [_left(replace(p, reason=NOT_ON_ALL), (), room) for p in left.values() if p]


def _foreign(others: Sequence[Principle], candidates: Sequence[Principle], task: Task) -> list[Principle]:
    """Principles of other tasks that say what none of this task's does."""
    own = {normalise(p.text) for p in candidates}
    return [p for p in others if p.task != task.name and p.text and normalise(p.text) not in own]


def _first(principles: Sequence[Principle]) -> list[Principle]:
    return sorted(principles, key=lambda p: p.status != "active")


def _by_support(candidates: Sequence[Principle], room: Room, why: str) -> list[Principle]:
    selected: list[Principle] = []
    for principle in candidates:
        refusal = room.refusal(principle)
        if not refusal:
            room.take(principle)
        status = "candidate" if refusal else "active"
        selected.append(replace(principle, status=status, reason=refusal or f"selected by {why}"))
    return selected


def _fallen_back(chosen: Sequence[Principle], room: Room) -> list[Principle]:
    """The best supported ones of what was tried and helps nothing; what harms for certain stays retired."""
    open_ones = sorted((p for p in chosen if p.status == "candidate"), key=strength)
    distinct = {normalise(p.text): p for p in reversed(open_ones)}
    first = [p for p in open_ones if distinct[normalise(p.text)] is p]
    taken = {p.principle_id: p for p in _by_support(first, room, NONE_HELPED)}
    return [taken.get(p.principle_id, p) for p in chosen]


def _by_solving(
    groups: list[list[Principle]], others: Sequence[Principle], trials: SolveTrials, room: Room
) -> Trials[list[Principle]]:
    """Sequential halving, then greedy forward selection among the finalists: whichever adds most to those selected."""
    tried = [group[0] for group in groups[:MAX_TRIED]]
    finalists, dropped = yield from halve(tried, len(trials.seeds_for(())), trials.alone)
    finalists = yield from trials.over_placebos(finalists, others)
    chosen = yield from _forward(spread_out(finalists, groups), trials, room)
    selected = [p for p in chosen if p.status == "active"]
    left = [_left(p, selected, room) for p in spread_out(dropped, groups)]
    return [*chosen, *left, *_untried(groups[MAX_TRIED:], MAX_TRIED)]


def _forward(candidates: Sequence[Principle], trials: SolveTrials, room: Room) -> Trials[list[Principle]]:
    """Those that help together, in the order of their selection, then the others with the reason why not."""
    least, selected = trials.search.config.min_solve_gain, list[Principle]()
    candidates = [p if beats_placebo(p, least) else replace(p, reason=NO_BETTER) for p in candidates]
    waiting = [p for p in candidates if not p.reason and not harm(p)]
    while True:
        gains = yield from _gains(selected, waiting, trials, room)
        best = _best(waiting, gains, room, least)
        if best is None:
            tried = {normalise(p.text) for p in waiting if p.principle_id in gains}
            left = [p for p in candidates if p.principle_id not in {chosen.principle_id for chosen in selected}]
            return [*selected, *(_left(p, selected, room, tried) for p in left)]
        room.take(best)
        waiting = [p for p in waiting if p is not best]
        said = f"selected: adds {gains[best.principle_id]:.3f} to the accuracy of the bundle"
        selected.append(replace(best, status="active", reason=said))


def _gains(
    selected: list[Principle], waiting: list[Principle], trials: SolveTrials, room: Room
) -> Trials[dict[str, float]]:
    """Principle id to what it adds to the accuracy of those selected, on seeds that none of them was mined from."""
    said = {normalise(p.text) for p in selected}
    fitting = [p for p in waiting if not room.refusal(p) and normalise(p.text) not in said]
    texts = list(dict.fromkeys(normalise(p.text) for p in fitting))[:FINALISTS]  # equal texts are tried once
    tried = [p for p in fitting if normalise(p.text) in texts]
    before = tuple(selected)
    seeds = {p.principle_id: trials.seeds_for((*before, p)) for p in tried}
    yield from trials.measure([(b, seeds[p.principle_id]) for p in tried for b in (before, (*before, p))])
    return {
        p.principle_id: float(trials.rights((*before, p), seeds[p.principle_id]).mean())
        - float(trials.rights(before, seeds[p.principle_id]).mean())
        for p in tried
    }


def _best(waiting: Sequence[Principle], gains: dict[str, float], room: Room, least: float) -> Principle | None:
    """Who adds most; of equals, who speaks for most seeds that no one selected does, then who scores best."""
    fitting = [p for p in waiting if gains.get(p.principle_id, least) > least and not room.refusal(p)]
    return max(
        fitting,
        key=lambda p: (round(gains[p.principle_id], 9), room.new_cover(p), p.utility or 0.0),
        default=None,
    )


def _by_drafting(
    groups: list[list[Principle]], drafts: DraftTrials, tried_on: str, room: Room
) -> Trials[list[Principle]]:
    """Sequential halving by what drafts gain over a placebo, then the best in turn as far as there is room."""
    tried = [replace(group[0], tried_on=tried_on) for group in groups[:MAX_DRAFTED]]
    finalists, dropped = yield from halve(tried, drafts.search.config.probe_drafts, drafts.alone)
    drafted = _in_turn(spread_out(finalists, groups), room)
    left = [_left(p, drafted, room) for p in spread_out(dropped, groups)]
    return [*drafted, *left, *_untried(groups[MAX_DRAFTED:], MAX_DRAFTED)]


def _in_turn(candidates: Sequence[Principle], room: Room) -> list[Principle]:
    """Generate candidates, the best scored selected as far as there is room; of nearly equals, who speaks for most new seeds."""
    waiting, selected = list(candidates), list[Principle]()
    while fitting := [p for p in waiting if not room.refusal(p) and not harm(p) and not _said(p, selected)]:
        best = max(fitting, key=lambda p: (round((p.utility or 0.0) / EQUAL), room.new_cover(p), p.utility or 0.0))
        room.take(best)
        waiting = [p for p in waiting if p is not best]
        selected.append(replace(best, status="active", reason="selected by what it does to drafts"))
    return [*selected, *(_left(p, selected, room) for p in waiting)]


def _said(principle: Principle, selected: Sequence[Principle]) -> bool:
    return any(normalise(p.text) == normalise(principle.text) for p in selected)


def _left(
    principle: Principle, selected: Sequence[Principle], room: Room, beside: Collection[str] | None = None
) -> Principle:
    """Why a tried candidate was not selected; one that harms for certain is retired. `beside`: texts that were tried in the last step."""
    if harmful := harm(principle):
        return replace(principle, status="retired", reason=harmful)
    twin = next((p for p in selected if normalise(p.text) == normalise(principle.text)), None)
    if twin is not None:
        return replace(principle, reason=f"same text as {twin.principle_id}")
    if principle.solve_gain is not None and principle.solve_gain.value <= 0:
        return replace(principle, reason=f"{UTILITY} no gain alone")
    tried = beside is None or normalise(principle.text) in beside
    said = f"{UTILITY} adds nothing to those selected" if tried else NOT_BESIDE
    return replace(principle, reason=principle.reason or room.refusal(principle) or said)


def _untried(groups: Sequence[list[Principle]], most: int) -> list[Principle]:
    return [replace(p, reason=f"not tried: {most} have more support") for group in groups for p in group]
