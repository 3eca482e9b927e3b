import json
import shutil
from dataclasses import replace

import pytest
import torch

from generation.errors import TrainingError
from tests.training.build_job import make_job, write_model
from training.checkpoint import MARKER, Position, best_checkpoint, complete_checkpoints, read_marker, save_checkpoint
from training.config import TrainingConfig
from training.engine import start_engine
from training.model import load_model
from training.probe import take_probe
from training.ranks import Ranks, join_ranks
from training.resume import Resumed, load_checkpoint, resume

START = Position(plan="p", epoch=0, step=0, world=1, zero_stage=1)
IDS = torch.arange(12)[None]


@pytest.fixture(scope="module")
def ranks() -> Ranks:
    return join_ranks(TrainingConfig())


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def make_engine(model, ranks, tmp_path_factory):
    """Starts real DeepSpeed engines of a tiny model, with the weight decay of matrices alone."""

    def start(stage=1):
        config = make_job(tmp_path_factory.mktemp("job"), model, "", None, zero_stage=stage, weight_decay=0.1).config
        return start_engine(load_model(str(model), config), config, ranks)

    return start


@pytest.fixture(scope="module")
def engine(make_engine):
    return make_engine()


def update(engine, times=1):
    """The loss before each of some updates."""
    losses = []
    for _ in range(times):
        loss = engine(input_ids=IDS, position_ids=IDS, targets=IDS + 1)
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return losses


def save(engine, folder, step, ranks, evaluation_loss=None):
    save_checkpoint(engine, folder, replace(START, step=step), ranks, evaluation_loss)


def steps_in(folder):
    return [int(path.name.removeprefix("step-")) for path in complete_checkpoints(folder)]


@pytest.fixture(scope="module")
def saved(engine, ranks, tmp_path_factory):
    """Checkpoints of steps 1 to 3, and what the engine was at each."""
    folder, probes = tmp_path_factory.mktemp("saved"), {}
    for step in (1, 2, 3):
        update(engine)
        save(engine, folder, step, ranks)
        probes[step] = take_probe(engine, ranks)
    return folder, probes


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved[0], tmp_path / "checkpoints")


def test_the_newest_checkpoint_is_loaded_and_old_ones_are_gone(saved, folder, make_engine, ranks):
    fresh = make_engine()
    assert take_probe(fresh, ranks) != saved[1][3]
    assert resume(fresh, folder, START, ranks) == Resumed(3, ())
    assert take_probe(fresh, ranks) == saved[1][3]
    assert steps_in(folder) == [2, 3]
    assert not (folder / "step-00000001").exists()


def test_the_best_checkpoint_stays_with_the_newest_and_the_one_before(engine, tmp_path, ranks):
    assert best_checkpoint(tmp_path) is None
    for step, loss in enumerate([None, 2.0, 1.5, 1.5, 3.0, None], start=1):
        save(engine, tmp_path, step, ranks, loss)
    assert best_checkpoint(tmp_path) == tmp_path / "step-00000003"
    assert steps_in(tmp_path) == [3, 5, 6]
    save(engine, tmp_path, 7, ranks, 1.0)
    assert steps_in(tmp_path) == [6, 7]


def test_a_checkpoint_without_its_marker_does_not_exist(folder, engine, ranks):
    (folder / "step-00000003" / MARKER).unlink()
    assert resume(engine, folder, START, ranks) == Resumed(2, ())
    save(engine, folder, 3, ranks)
    assert resume(engine, folder, START, ranks) == Resumed(3, ())


@pytest.mark.parametrize("damage", ["changed", "truncated", "missing", "not of this run"])
def test_a_damaged_checkpoint_is_passed_over_and_this_is_said(saved, folder, engine, ranks, damage, capfd):
    state = next((folder / "step-00000003").glob("*model_states.pt"))
    match damage:
        case "changed":
            state.write_bytes(state.read_bytes()[:-1] + b"x")
        case "truncated":
            state.write_bytes(state.read_bytes()[:-1])
        case "missing":
            state.unlink()
        case _:
            (state := state.with_name("more.pt")).write_bytes(b"")
    kind = "changed" if damage == "truncated" else damage
    resumed = resume(engine, folder, START, ranks)
    assert resumed == Resumed(2, (f"step-00000003: {kind}: {state.name}",))
    assert take_probe(engine, ranks) == saved[1][2]
    assert f"step-00000003: not used, an earlier checkpoint is: {kind}: {state.name}" in capfd.readouterr().err
    assert steps_in(folder) == [2]


@pytest.mark.parametrize("text", ["", "[]", '{"step": 3}', '{"step": 3'])
def test_a_checkpoint_whose_marker_was_tampered_with_is_passed_over(folder, engine, ranks, text):
    (folder / "step-00000003" / MARKER).write_text(text)
    assert resume(engine, folder, START, ranks) == Resumed(2, (f"step-00000003: {MARKER} is not as it was written",))


def test_nothing_of_a_damaged_checkpoint_is_unpickled(folder, engine, ranks, tmp_path):
    for path in folder.rglob("*.pt"):
        path.write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "run").encode() + b"'\ntR.")
    assert resume(engine, folder, START, ranks).step == 0
    assert not (tmp_path / "run").exists()


def test_a_job_without_checkpoints_starts_at_zero(tmp_path, engine, ranks):
    assert resume(engine, tmp_path, START, ranks) == Resumed(0, ())


@pytest.mark.parametrize(
    ("change", "named"), [({"zero_stage": 3}, "training.zero_stage = 1"), ({"plan": "q"}, "plan p, now q")]
)
def test_a_checkpoint_of_another_plan_or_zero_stage_is_refused_with_what_to_do(folder, engine, ranks, change, named):
    with pytest.raises(TrainingError, match=named) as alone:
        resume(engine, folder, replace(START, **change), ranks)
    assert f"remove {folder} to train from the start" in str(alone.value)
    with pytest.raises(TrainingError, match=named) as copied:
        resume(engine, folder, replace(START, **change), ranks, "s3://bucket/copies?region=x")
    assert f"remove {folder} and its copy s3://bucket/copies?region=x to train" in str(copied.value)


def test_a_model_that_is_not_what_was_saved_is_refused(folder, engine, ranks):
    target = folder / "step-00000003"
    facts = read_marker(target)
    for name in ("loss", "moments"):
        other = {**facts, "probe": {**facts["probe"], name: facts["probe"][name] * 1.01}}
        (target / MARKER).write_text(json.dumps(other))
        with pytest.raises(TrainingError, match="not what it was when it was saved") as refused:
            load_checkpoint(engine, target, START, ranks, "s3://bucket/copies?region=x")
        assert f"remove {target} and its copy s3://bucket/copies/{target.name}?region=x to go on" in str(refused.value)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_saving_right_after_loading_and_resuming_twice_changes_nothing(make_engine, ranks, tmp_path, stage):
    engine, start = make_engine(stage), replace(START, zero_stage=stage)
    update(engine, 2)
    save_checkpoint(engine, tmp_path, replace(start, step=2), ranks, None)
    losses = update(engine, 3)
    for step in (3, 4):
        fresh = make_engine(stage)
        assert resume(fresh, tmp_path, start, ranks).step == step - 1
        save_checkpoint(fresh, tmp_path, replace(start, step=step), ranks, None)
        assert update(fresh, 3) == losses


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_an_engine_that_has_gone_on_can_go_back_to_a_checkpoint(make_engine, ranks, tmp_path, stage):
    engine, start = make_engine(stage), replace(START, zero_stage=stage)
    update(engine, 2)
    save_checkpoint(engine, tmp_path, replace(start, step=2), ranks, None)
    losses = update(engine, 3)
    load_checkpoint(engine, tmp_path / "step-00000002", start, ranks)
    assert update(engine, 3) == losses


def test_the_marker_says_where_the_job_stands(folder):
    facts = read_marker(folder / "step-00000003")
    assert (facts["step"], facts["plan"], facts["world"]) == (3, "p", 1)
    assert sorted(facts["files"]) == sorted(path.name for path in (folder / "step-00000003").glob("*.pt"))


def test_ranks_in_one_process_know_their_place(ranks):
    assert (ranks.rank, ranks.world, ranks.leads, ranks.device) == (0, 1, True, torch.device("cpu"))
    assert ranks.gather("a") == ["a"]
