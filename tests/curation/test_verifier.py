import json
import os
from pathlib import Path

import pytest

from generation.config import AnswerConfig, CurationConfig, TaskConfig
from generation.curation.fold import CausalFold
from generation.curation.quotas import Quotas
from generation.curation.verifier import Verifier
from generation.errors import RecipeError
from generation.instances.plan import unit_id
from generation.rows import Row
from generation.task import Task
from tests.curation import bbh_verifiers

HERE = Path(__file__).parent.absolute()
BBH = Path(os.environ.get("PSI_SHARED_DIR", "../shared")).absolute() / "data/bbh"
NUMBER = AnswerConfig(kind="number")
EXACT = AnswerConfig(kind="exact")
ORACLES = {
    "boolean_expressions": AnswerConfig(kind="choice", labels=("True", "False")),
    "multistep_arithmetic_two": NUMBER,
    "word_sorting": EXACT,
    "object_counting": NUMBER,
}
needs_bbh = pytest.mark.skipif(not BBH.is_dir(), reason="PSI_SHARED_DIR has no data")


def faulty(name: str, seconds: float = 0.3) -> Verifier:
    return Verifier(f"{HERE / 'faulty_verifiers.py'}:{name}", EXACT, seconds)


def bbh_items(task: str) -> list[tuple[str, str]]:
    content = json.loads((BBH / f"{task}.json").read_text(encoding="utf-8"))
    return [(item["input"], item["target"]) for item in content["examples"]]


@needs_bbh
@pytest.mark.parametrize("task", ORACLES)
def test_the_programs_know_every_answer_of_the_bbh_files(task: str) -> None:
    items = bbh_items(task)
    assert len(items) == 250
    assert [item for item in items if getattr(bbh_verifiers, task)(*item) != item[1]] == []


@needs_bbh
@pytest.mark.parametrize("task", ORACLES)
def test_the_sandboxed_program_confirms_right_answers_and_no_other(task: str) -> None:
    items = bbh_items(task)[:40]
    wrong = [
        (text, "False" if answer == "True" else "True" if answer == "False" else f"{answer}7") for text, answer in items
    ]
    verifier = Verifier(f"{HERE / 'bbh_verifiers.py'}:{task}", ORACLES[task])
    assert verifier.reasons(items) == [""] * 40
    assert verifier.reasons(wrong) == ["wrong answer"] * 40
    assert verifier.reasons([("Sing a song", "1")]) == ["verifier raised ValueError"]


def test_what_goes_wrong_is_the_rows_reason_and_the_next_row_gets_its_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PSI_TEST_SECRET", "x")
    expected = {
        "loop": "verifier timed out",
        "crash": "verifier crashed",
        "exit": "verifier crashed",
        "memory": "verifier raised MemoryError",
        "number": "verifier returned int",
        "write": "verifier raised OSError",
        "network": "verifier raised PermissionError",
        "process": "verifier raised PermissionError",
        "print": "",
        "secret": "",
        "else": "verifier raised KeyError",
    }
    verifier = faulty("by_input")
    pairs = [(name, "x") for name in expected]
    assert dict(zip(expected, verifier.reasons(pairs), strict=True)) == expected
    assert dict(zip(expected, verifier.reasons(pairs), strict=True)) == expected


@pytest.mark.parametrize("fault", ["loop", "crash", "memory"])
def test_what_went_wrong_once_is_asked_again_in_a_fresh_worker(tmp_path: Path, fault: str) -> None:
    assert faulty("once").reasons([(str(tmp_path / "asked"), fault)]) == [""]


def test_one_that_sleeps_is_ended_by_the_clock() -> None:
    assert faulty("by_input", 0.1).reasons([("sleep", ""), ("print", "")]) == ["verifier timed out", ""]


def test_a_file_that_cannot_be_loaded_is_the_recipes_mistake(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"AttributeError.*'nothing'"):
        faulty("nothing").reasons([("a", "b")])
    (tmp_path / "v.py").write_text("import nowhere\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="ModuleNotFoundError"):
        Verifier(f"{tmp_path / 'v.py'}:f", EXACT).reasons([("a", "b")])


def test_the_fold_drops_what_is_not_confirmed_and_it_excludes_nobody_however_batches_are_cut() -> None:
    config = TaskConfig(
        name="t", description="d", answer=NUMBER, seeds="s", verifier=f"{HERE / 'faulty_verifiers.py'}:even"
    )
    values = [("aa", "1"), ("aa", "2"), ("aa", "3"), ("bb", "x"), ("cc", "4")]
    rows = [
        Row(f"r{i}", unit_id(0, 0), i, "t", "instance", input=text, answer=answer)
        for i, (text, answer) in enumerate(values)
    ]
    expected = ["verifier", "", "exact_duplicate", "verifier", ""]
    for size in (1, 2, 5):
        fold = CausalFold(CurationConfig(), Task(config, ()), [], Quotas(9))
        verdicts = [verdict for start in range(0, 5, size) for verdict in fold.fold(rows[start : start + size])]
        assert [verdict.stage for verdict in verdicts] == expected
        assert fold.counts["verifier"]["reasons"] == {"wrong answer": 1, "verifier raised ValueError": 1}
