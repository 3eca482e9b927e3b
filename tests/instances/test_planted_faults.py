"""A model of known faults: each filter must catch the share that was planted, and labels must be as wrong as voting predicts."""

import json
from collections import Counter
from itertools import pairwise
from math import comb, sqrt
from pathlib import Path
from random import Random

import pytest

from generation.answers import answers_equal
from generation.arms import arm_spec
from generation.config import AnswerConfig, CurationConfig, GenerationConfig, TaskConfig
from generation.curation.decontaminate import EvaluationIndex
from generation.curation.fold import CausalFold
from generation.curation.quotas import Quotas
from generation.dataset_tally import Oracle, Tally, TruthCount
from generation.engines.base import Request
from generation.flows import FlowCall
from generation.instances.bundles import make_bundles, make_cells
from generation.instances.flow import InstanceContext, seen_key, without_seeds, write_instance
from generation.instances.plan import Bundle, Cell, PlanRecord, unit_flows
from generation.instances.screen import make_screen
from generation.principles.model import Principle
from generation.prompts.prompt_set import load_prompt_set
from generation.rows import Row
from generation.task import Seed, Task
from tests.principles.stand_in import LocalPool

CHAT = load_prompt_set("chat", Path())
FLOWS = 1600
RIGHT = 0.75
SHARES = {"parse": 0.1, "length": 0.05, "duplicate": 0.1, "copy": 0.05, "contamination": 0.1, "fresh": 0.6}
SEEDS = tuple(Seed(f"s{i}", f"What is {i} and then {i + 31} together?", str(2 * i + 31)) for i in range(8))
EVALUATION = tuple(f"What is {i} and then {i + 57} together?" for i in range(20))


def truth(text: str) -> str:
    return str(sum(int(word) for word in text.split() if word.isdigit()))


class FaultyModel:
    """Writes for the cell numbered i what was planted for i, and answers rightly so often; wrong answers are all alike."""

    def __init__(self) -> None:
        self.planted = Random(1).choices(list(SHARES), list(SHARES.values()), k=FLOWS)
        self._rng = Random(2)

    def fresh(self, number: int) -> str:
        return f"What is {1000 + number} and then {3 * number + 17} together?"

    def __call__(self, request: Request) -> str:
        if request.stage == "draft":
            return self._draft(int(request.text))
        text = next(line for line in request.text.splitlines() if line.startswith("What"))
        answer = int(truth(text)) + (0 if self._rng.random() < RIGHT else 1)
        return f"It is <answer>{answer}</answer>"

    def _draft(self, number: int) -> str:
        written = {
            "parse": "I cannot do that.",
            "length": f"<input>{'What and ' * 400}</input>",
            "duplicate": f"<input>{self.fresh(0).upper().replace('WHAT', 'What')}</input>",
            "copy": f"<input>{SEEDS[number % 8].input}</input>",
            "contamination": f"<input> {EVALUATION[number % 20]} </input>",
            "fresh": f"<input>{self.fresh(number)}</input>",
        }
        return written[self.planted[number]]


def write_rows(model: FaultyModel, **voting) -> list[Row]:
    """The rows of one unit whose flow i works on the cell numbered i."""
    config = TaskConfig(name="t", description="Add.", answer=AnswerConfig(kind="number"), seeds="x")
    task, curation = Task(config, SEEDS), CurationConfig()
    screen = make_screen(task, (), EvaluationIndex([tuple(EVALUATION)], curation.decontaminate_ngram), curation, 0.001)
    generation = GenerationConfig.model_validate({"accepted_rows": 1, "voting": voting})
    context = InstanceContext("run", {"t": without_seeds(task)}, CHAT, generation, "model", {"t": screen})
    cells = tuple(Cell(str(i), str(i)) for i in range(FLOWS))
    record = PlanRecord(0, "t", 0, Bundle("b", ("p",), "", "A:"), cells, 1, FLOWS, (1,) * FLOWS)
    seen = {seen_key("t", model.fresh(0))}
    calls = [FlowCall(str(f.index), write_instance, (f, record, context, seen)) for f in unit_flows(record, 0)]
    return sorted((result.value for result in LocalPool(model).ask(calls)), key=lambda row: row.index)


def near(share: float, expected: float, count: int) -> bool:
    """Within four standard errors."""
    return abs(share - expected) <= 4 * sqrt(expected * (1 - expected) / count)


def accepted_by_vote(share: float) -> float:
    """How often an answer of that share of all is accepted: the first two agree on it, or else 5 to 7 of 8 do."""
    later = sum(comb(6, k) * share**k * (1 - share) ** (6 - k) for k in range(4, 7))
    return share**2 + 2 * share * (1 - share) * later


@pytest.fixture(scope="module")
def written() -> tuple[FaultyModel, list[Row]]:
    model = FaultyModel()
    return model, write_rows(model)


def test_each_filter_catches_what_was_planted_for_it_and_nothing_else(written):
    model, rows = written
    stages = {
        "parse": "parse",
        "length": "bounds",
        "duplicate": "duplicate",
        "copy": "copy",
        "contamination": "contamination",
    }
    for row in rows:
        kind = model.planted[int(row.cell)]
        assert row.stage == stages[kind] if kind in stages else row.stage in ("", "vote")
    assert Counter(model.planted) == Counter(
        {kind: sum(row.stage == stage for row in rows) for kind, stage in stages.items()}
        | {"fresh": sum(row.stage in ("", "vote") for row in rows)}
    )


def test_labels_are_as_wrong_as_the_vote_predicts(written):
    _, rows = written
    voted = [row for row in rows if row.first_answer]
    right, wrong = accepted_by_vote(RIGHT), accepted_by_vote(1 - RIGHT)
    accepted = [row for row in voted if row.status == "instance"]
    assert near(len(accepted) / len(voted), right + wrong, len(voted))
    share = sum(row.answer == truth(row.input) for row in accepted) / len(accepted)
    assert near(share, right / (right + wrong), len(accepted))
    assert near(sum(row.first_answer == truth(row.input) for row in voted) / len(voted), RIGHT, len(voted))


def test_without_voting_labels_are_as_wrong_as_the_model():
    rows = [row for row in write_rows(FaultyModel(), rounds=[1]) if row.first_answer]
    assert {row.status for row in rows} == {"instance"}
    assert near(sum(row.answer == truth(row.input) for row in rows) / len(rows), RIGHT, len(rows))
    assert all(json.loads(row.votes) == {row.answer: 1} for row in rows)


def test_the_yields_of_all_stages_add_up_to_the_rows(written):
    _, rows = written
    config = TaskConfig(name="t", description="Add.", answer=AnswerConfig(kind="number"), seeds="x")
    fold = CausalFold(CurationConfig(), Task(config, SEEDS), [tuple(EVALUATION)], Quotas(300))
    verdicts = fold.fold(rows)
    stages = list(fold.counts.values())
    assert stages[0]["in"] == FLOWS
    assert stages[-1]["out"] == fold.kept == sum(verdict.kept for verdict in verdicts) == 300
    assert all(one["out"] == after["in"] for one, after in pairwise(stages))
    assert sum(sum(stage["reasons"].values()) for stage in stages) == FLOWS - 300
    assert fold.counts["copy"]["reasons"].keys() == {"copy of a seed"}


def test_label_accuracy_is_told_before_and_after_the_vote_and_how_varied_the_rows_are(written):
    _, rows = written
    oracle = Oracle(lambda task, text: truth(text), answers_equal)
    config = TaskConfig(name="t", description="Add.", answer=AnswerConfig(kind="number"), seeds="x")
    first = TruthCount(config.answer, oracle)
    tally = Tally(config, oracle, first)
    for row in rows:
        first.add(row, row.first_answer)
        if row.status == "instance":
            tally.add(row, [])
    facts = tally.facts()
    assert facts["label_checked_first"] == sum(bool(row.first_answer) for row in rows) > facts["label_checked"]
    assert near(facts["label_accuracy_first"], RIGHT, facts["label_checked_first"])
    assert facts["label_accuracy"] > facts["label_accuracy_first"] + 0.05
    assert 0 < facts["distinct_2"] < 1
    assert facts["cell_entropy_bits"] == pytest.approx(
        len({row.cell for row in rows if row.status == "instance"}).bit_length(), abs=1
    )


def test_what_was_not_measured_is_not_told():
    config = TaskConfig(name="t", description="Add.", answer=AnswerConfig(kind="number"), seeds="x")
    facts = Tally(config, None).facts()
    assert [facts[key] for key in ("label_accuracy", "label_accuracy_first", "distinct_2", "cell_entropy_bits")] == [
        None
    ] * 4


def test_answers_of_a_cell_with_a_label_are_asked_for_as_those_of_any_other_label():
    labels = ("heads", "tails")
    config = TaskConfig(name="t", description="A coin.", answer=AnswerConfig(kind="choice", labels=labels), seeds="x")
    task = Task(config, tuple(Seed(str(i), f"Toss {i}", labels[i % 2], split="demo") for i in range(6)))
    principles = [Principle("p", "t", "task", "solve", "Count the turns.", status="active")]
    generation = GenerationConfig(accepted_rows=1, contexts=("at home", "in court"))
    bundle = make_bundles(task, principles, CHAT, generation, arm_spec("psi"))[0]
    cells = make_cells(bundle, task, CHAT, generation)
    assert {(cell.context, cell.label) for cell in cells} == {(c, a) for c in ("at home", "in court") for a in labels}
    assert all(cell.context in cell.draft_text and cell.label in cell.draft_text for cell in cells)
    record = PlanRecord(0, "t", 0, bundle, cells, 1, 4, (1, 1, 1, 1))
    context = InstanceContext("run", {"t": task}, CHAT, generation, "model")
    pool = LocalPool(
        lambda request: "<input>A coin lies.</input>" if request.stage == "draft" else "<answer>heads</answer>"
    )
    flows = unit_flows(record, 0)
    rows = {
        r.key: r.value
        for r in pool.ask([FlowCall(f.cell.cell_id, write_instance, (f, record, context)) for f in flows])
    }
    assert len({(asked.prefix, asked.text) for asked in pool.asked if asked.stage == "answer"}) == 1
    assert {cell.label: rows[cell.cell_id].reason for cell in cells} == {"heads": "", "tails": "not the target label"}
