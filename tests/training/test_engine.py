import pytest
import torch

from generation.errors import TrainingError
from tests.training.build_job import make_job, run_ranks, write_dataset, write_model
from training.config import TrainingConfig
from training.engine import start_engine
from training.model import load_model
from training.ranks import Ranks

SETTINGS = {"rows_per_step": 4, "max_steps": 4, "epochs": 4, "ranks": 2}
OFFLOADED = {"zero_optimization": {"offload_optimizer": {"device": "cpu", "pin_memory": False}}}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    return write_model(folder / "model"), write_dataset(folder / "dataset"), None


@pytest.fixture(scope="module")
def reference(inputs, tmp_path_factory):
    return run_ranks(make_job(tmp_path_factory.mktemp("jobs") / "plain", *inputs, zero_stage=1, **SETTINGS), 2)


@pytest.mark.parametrize(
    ("stage", "theirs"),
    [
        (2, OFFLOADED),
        (3, OFFLOADED),
        (3, {"zero_optimization": {"zero_hpz_partition_size": 2}}),
        (3, {"zero_optimization": {"offload_param": {"device": "cpu", "pin_memory": False}, **OFFLOADED["zero_optimization"]}}),
    ],
    ids=["optimizer offloaded, stage 2", "optimizer offloaded, stage 3", "hpZ", "all offloaded"],
)  # fmt: skip
def test_what_the_user_passes_on_to_deepspeed_changes_no_loss(inputs, reference, tmp_path, stage, theirs):
    lines = run_ranks(make_job(tmp_path / "job", *inputs, zero_stage=stage, deepspeed=theirs, **SETTINGS), 2)
    assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in reference], abs=1e-4)


@pytest.mark.parametrize("theirs", [{"zero_optimization": {"offload_optimiser": {}}}, {"communication_data_type": "8"}])
def test_what_deepspeed_refuses_is_an_error_of_ours(inputs, theirs):
    config = TrainingConfig.model_validate({"precision": "float32", "deepspeed": theirs})
    with pytest.raises(TrainingError, match="DeepSpeed refuses it"):
        start_engine(load_model(str(inputs[0]), config), config, Ranks(0, 1, torch.device("cpu")))
