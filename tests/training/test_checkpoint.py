import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from generation.errors import TrainingError
from training.checkpoint import MARKER, Position, best_checkpoint, complete_checkpoints, resume, save_checkpoint
from training.ranks import Ranks, join_ranks

START = Position(plan="p", epoch=0, step=0, world=1, zero_stage=1)


class FileEngine:
    """Saves and loads a number the way a DeepSpeed engine saves and loads its state."""

    def __init__(self, state: int) -> None:
        self.state = state

    def save_checkpoint(self, folder: str, tag: str, save_latest: bool) -> None:
        (Path(folder) / tag).mkdir(parents=True)
        (Path(folder) / tag / "state.pt").write_text(str(self.state))

    def load_checkpoint(self, folder: str, tag: str) -> None:
        self.state = int((Path(folder) / tag / "state.pt").read_text())


def save(folder, step, ranks, evaluation_loss=None):
    save_checkpoint(FileEngine(step * 10), folder, replace(START, step=step), ranks, evaluation_loss)


def steps_in(folder):
    return [int(path.name.removeprefix("step-")) for path in complete_checkpoints(folder)]


@pytest.fixture(scope="module")
def ranks() -> Ranks:
    return join_ranks(1)


@pytest.fixture
def folder(tmp_path, ranks):
    for step in (1, 2, 3):
        save(tmp_path, step, ranks)
    return tmp_path


def test_the_newest_checkpoint_is_loaded_and_old_ones_are_gone(folder, ranks):
    engine = FileEngine(0)
    assert resume(engine, folder, START, ranks) == 3
    assert engine.state == 30
    assert steps_in(folder) == [2, 3]
    assert not (folder / "step-00000001").exists()


def test_the_best_checkpoint_stays_with_the_newest_and_the_one_before(tmp_path, ranks):
    assert best_checkpoint(tmp_path) is None
    for step, loss in enumerate([None, 2.0, 1.5, 1.5, 3.0, None], start=1):
        save(tmp_path, step, ranks, loss)
    assert best_checkpoint(tmp_path) == tmp_path / "step-00000003"
    assert steps_in(tmp_path) == [3, 5, 6]
    save(tmp_path, 7, ranks, 1.0)
    assert steps_in(tmp_path) == [6, 7]


def test_a_checkpoint_without_its_marker_does_not_exist(folder, ranks):
    (folder / "step-00000003" / MARKER).unlink()
    engine = FileEngine(0)
    assert (resume(engine, folder, START, ranks), engine.state) == (2, 20)
    save_checkpoint(FileEngine(31), folder, replace(START, step=3), ranks, None)
    assert (resume(engine, folder, START, ranks), engine.state) == (3, 31)


@pytest.mark.parametrize("damage", ["changed", "missing", "added"])
def test_a_checkpoint_whose_files_do_not_match_their_hashes_is_passed_over(folder, ranks, damage):
    state = folder / "step-00000003" / "state.pt"
    if damage == "missing":
        state.unlink()
    else:
        (state if damage == "changed" else state.with_name("more.pt")).write_text("31")
    engine = FileEngine(0)
    assert (resume(engine, folder, START, ranks), engine.state) == (2, 20)


def test_a_job_without_checkpoints_starts_at_zero(tmp_path, ranks):
    assert resume(FileEngine(0), tmp_path, START, ranks) == 0


@pytest.mark.parametrize(
    ("change", "named"), [({"world": 2}, "1 ranks"), ({"zero_stage": 3}, "stage 3"), ({"plan": "q"}, "plan p, now q")]
)
def test_a_checkpoint_of_another_job_is_refused_with_what_differs(folder, ranks, change, named):
    with pytest.raises(TrainingError, match=named):
        resume(FileEngine(0), folder, replace(START, **change), ranks)


def test_the_marker_says_where_the_job_stands(folder):
    facts = json.loads((folder / "step-00000003" / MARKER).read_text())
    assert (facts["step"], facts["plan"], facts["world"]) == (3, "p", 1)
    assert list(facts["files"]) == ["state.pt"]


def test_ranks_in_one_process_know_their_place(ranks):
    assert (ranks.rank, ranks.world, ranks.leads, ranks.device) == (0, 1, True, torch.device("cpu"))
    assert ranks.gather("a") == ["a"]
