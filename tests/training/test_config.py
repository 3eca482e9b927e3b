import json

import pytest
from pydantic import ValidationError

from training.config import TrainingConfig
from training.engine import deepspeed_config
from training.job import TrainingJob


@pytest.mark.parametrize(
    ("theirs", "named"),
    [
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps"),
        ({"bf16": {"enabled": True}}, "bf16"),
        ({"zero_optimization": {"stage": 3}}, "zero_optimization.stage"),
        ({"zero_optimization": {"overlap_comm": True}}, "zero_optimization.overlap_comm"),
        ({"checkpoint": {"load_universal": True}, "amp": {}}, "amp, checkpoint.load_universal"),
    ],
)
def test_deepspeed_keys_that_other_fields_own_are_refused_by_name(theirs, named):
    with pytest.raises(ValidationError, match=named):
        TrainingConfig(deepspeed=theirs)


@pytest.mark.parametrize("theirs", [{"zero_optimisation": {"stage": 3}}, {"tensor_parallel": {"autotp_size": 2}}])
def test_deepspeed_keys_that_it_would_ignore_or_that_change_what_ranks_are_are_refused(theirs):
    with pytest.raises(ValidationError, match=f"{next(iter(theirs))}: not passed on"):
        TrainingConfig(deepspeed=theirs)


def test_bfloat16_without_zero_is_refused():
    with pytest.raises(ValidationError, match="use zero_stage = 1"):
        TrainingConfig(zero_stage=0)
    assert TrainingConfig(zero_stage=0, precision="float32").zero_stage == 0


@pytest.mark.parametrize("settings", [{}, {"gpus_per_rank": 1.0, "precision": "float32"}])
def test_flash_attention_without_gpus_or_in_float32_is_refused(settings):
    with pytest.raises(ValidationError, match="flash_attention_2 needs precision = bfloat16 and gpus_per_rank"):
        TrainingConfig.model_validate({"attention": "flash_attention_2", **settings})
    assert TrainingConfig(attention="flash_attention_2", gpus_per_rank=1.0)


def test_deepspeed_keys_of_the_user_are_merged_with_ours():
    config = TrainingConfig(
        zero_stage=2, deepspeed={"zero_optimization": {"reduce_bucket_size": 7}, "dump_state": True}
    )
    merged = deepspeed_config(config, 4, 1000)
    assert merged["dump_state"]
    assert merged["zero_optimization"] == {"reduce_bucket_size": 7, "stage": 2, "overlap_comm": False}
    assert merged["train_batch_size"] == 4
    assert deepspeed_config(TrainingConfig(), 1, 1000)["zero_optimization"]["reduce_bucket_size"] == 1000
    assert deepspeed_config(TrainingConfig(), 1, 10**10)["zero_optimization"]["reduce_bucket_size"] == 500_000_000


def test_a_job_survives_its_json():
    job = TrainingJob("m", "d", None, "h", "o", "k", "c", "t", TrainingConfig(deepspeed={"dump_state": True}), 3, "n")
    assert TrainingJob.from_json(job.to_json()) == job
    assert json.loads(job.to_json())["config"]["deepspeed"] == {"dump_state": True}


def test_only_variables_that_say_how_ranks_reach_each_other_are_taken():
    network = {"NCCL_SOCKET_IFNAME": "ib0", "GLOO_SOCKET_IFNAME": "eth0", "TORCH_NCCL_TRACE_BUFFER_SIZE": "1000"}
    assert TrainingConfig(environment=network).environment == network
    for name in ("PATH", "NCCLX", "LD_PRELOAD", "nccl_debug"):
        with pytest.raises(ValidationError, match=f"environment.{name}"):
            TrainingConfig(environment={name: "1"})
