"""The flow that writes one instance: a draft, cheap checks, then blind answers that vote. It ends as exactly one row, whatever happens."""

import json
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property

from generation.config import GenerationConfig
from generation.curation.text import read_input
from generation.engines.base import Completion, Request, Sampling
from generation.errors import Reject
from generation.flows import Flow
from generation.instances.parse import parse_draft, read_answer, strip_citations
from generation.instances.plan import FlowPlan, PlanRecord
from generation.instances.round_trip import recover
from generation.instances.screen import Screen
from generation.instances.vote import Vote
from generation.prompts.prompt_set import PromptSet
from generation.rows import Row, row_id
from generation.storage import json_bytes
from generation.task import Task

SEEN_STAGE = "duplicate"
"""Of rows whose input was accepted before it was drafted again."""
_VOTES = json.JSONEncoder(sort_keys=True, ensure_ascii=False)
_SINGLE_ANSWER = (1,)
"""Free texts cannot be compared, so one of them is all the evidence there is."""


@dataclass(frozen=True)
class InstanceContext:
    """What all instance flows of one arm share. Pickles; with tasks `without_seeds` it is small.

    Attributes:
        run_id: Of the arm's run folder; part of each row id.
        tasks: By name.
        prompts: The prompt set.
        generation: Its section of the recipe.
        model: Weight digest of the small model.
        screens: By task, what drafts must pass before votes are spent on them; a task without one has none.
    """

    run_id: str
    tasks: Mapping[str, Task]
    prompts: PromptSet
    generation: GenerationConfig
    model: str
    screens: Mapping[str, Screen] = field(default_factory=dict[str, Screen])

    @cached_property
    def answer_sampling(self) -> Sampling:
        """How answers are drawn."""
        return Sampling(**self.generation.answer.model_dump())

    def draft_sampling(self, record: PlanRecord) -> Sampling:
        """How the drafts of a plan record are drawn."""
        temperature = record.draft_temperature
        return self._draft_sampling if temperature is None else replace(self._draft_sampling, temperature=temperature)

    def sampling_json(self, record: PlanRecord) -> str:
        """Both, as rows hold them."""
        known = self._sampling_json.get(record.draft_temperature)
        if known is None:
            values = {"draft": asdict(self.draft_sampling(record)), "answer": asdict(self.answer_sampling)}
            known = self._sampling_json[record.draft_temperature] = json_bytes(values).decode()
        return known

    @cached_property
    def _draft_sampling(self) -> Sampling:
        return Sampling(**self.generation.draft.model_dump())

    @cached_property
    def _sampling_json(self) -> dict[float | None, str]:
        """By draft temperature, of which a run has few: each row asks."""
        return {}


def without_seeds(task: Task) -> Task:
    """The task as flows need it: seeds would travel to every replica with each call."""
    return Task(task.config, ())


def seen_key(task: str, text: str) -> str:
    """Under which an accepted input is known to later flows. Tasks are curated apart, so one may keep what another has."""
    return f"{task}/{read_input(text).key}"


def write_instance(
    plan: FlowPlan, record: PlanRecord, context: InstanceContext, seen: AbstractSet[str] = frozenset()
) -> Flow:
    """Write one instance; returns its `Row`, an instance or a rejection.

    Args:
        plan: Which cell, at which place of which unit.
        record: The plan record of the unit.
        context: What the flows of the arm share.
        seen: `seen_key` of inputs that curation kept before: drafts of these are dropped before votes are spent. Read, never changed.
    """
    row = _started(plan, record, context)
    draft: Completion = yield Request(
        record.bundle.draft_prefix, plan.cell.draft_text, context.draft_sampling(record), stage="draft"
    )
    try:
        text = parse_draft(draft, context.prompts, len(record.bundle.principles))
    except Reject as reject:
        return _rejected(row, reject, draft.error or draft.text)
    row = row._replace(input=text)
    if seen_key(record.task, text) in seen:
        return _rejected(row, Reject(SEEN_STAGE, "input accepted before"))
    screen = context.screens.get(record.task)
    if screen is not None and (dropped := screen.reason(row)):
        return _rejected(row, Reject(*dropped))
    row = yield from _answered(row, plan, record, context)
    if context.generation.round_trip and row.status == "instance":
        task = context.tasks[record.task]
        if not (yield from recover(row, task, context.prompts, context.answer_sampling)):
            return _rejected(row, Reject("round_trip", "hidden part not found again"))
    return row


def _started(plan: FlowPlan, record: PlanRecord, context: InstanceContext) -> Row:
    return Row(
        row_id=row_id(context.run_id, plan.unit, plan.index),
        unit=plan.unit,
        index=plan.index,
        task=record.task,
        status="instance",
        bundle=record.bundle.bundle_id,
        principles=record.bundle.principles,
        cell=plan.cell.cell_id,
        model=context.model,
        sampling=context.sampling_json(record),
        round=record.round,
    )


def _rejected(row: Row, reject: Reject, raw: str = "") -> Row:
    return row._replace(status="rejection", stage=reject.stage, reason=reject.reason, raw=raw)


def _answered(row: Row, plan: FlowPlan, record: PlanRecord, context: InstanceContext) -> Flow:
    """Ask for blind answers until their vote is settled, and finish the row."""
    task = context.tasks[record.task]
    answer_config, voting = task.config.answer, context.generation.voting
    rounds = _SINGLE_ANSWER if answer_config.kind == "open" else tuple(sorted(voting.rounds))
    vote = Vote(rounds, voting.least_agreement(answer_config.kind), plan.cell.label)
    text = context.prompts.render("answer_text", task=task, input=row.input)
    request = Request(record.bundle.answer_prefix, text, context.answer_sampling, stage="answer")
    given: list[Completion] = []
    while wanted := vote.wanted():
        completions: list[Completion] = yield [request] * wanted
        refused = next((c for c in completions if c.finish == "error"), None)
        if refused is not None:
            return _rejected(row, Reject("engine", "answer refused"), refused.error)
        given += completions
        vote.answers += [
            read_answer(c.text, context.prompts, answer_config) if c.finish == "stop" else None for c in completions
        ]
    return _voted(row, vote, given, context.prompts)


def _voted(row: Row, vote: Vote, given: list[Completion], prompts: PromptSet) -> Row:
    reject, rationale = None, ""
    try:
        majority = vote.outcome()
    except Reject as error:
        reject = error
    else:
        agreeing = (c.text for c, answer in zip(given, vote.answers, strict=True) if answer == majority)
        rationale = min((strip_citations(text, prompts) for text in agreeing), key=len)
    row = row._replace(
        answer=vote.leader or "",
        first_answer=vote.first or "",
        rationale=rationale,
        votes=_VOTES.encode(vote.counts),
        agreement=vote.agreement,
    )
    return row if reject is None else _rejected(row, reject, given[0].text if vote.leader is None else "")
