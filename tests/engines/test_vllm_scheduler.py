"""The lean scheduler beside vLLM's own: both are given the same requests, tokens, aborts and too little room, and must do the same."""

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generation.engines.config import VllmEngine
from generation.engines.presets import settings_here
from generation.engines.vllm import VllmModel
from generation.engines.vllm_arguments import engine_arguments
from generation.engines.vllm_scheduler import LeanLoops, can_be_lean, lean_scheduler
from tests.engines.models import MINIATURE

BLOCK_SIZE, EOS, STOP, WORDS = 32, 2, 5, 20
CONFIG = VllmEngine.model_validate(
    {
        "model": str(MINIATURE), "max_model_len": 128, "max_num_seqs": 8, "max_num_batched_tokens": 128, "kv_cache_bytes": 2**24,
        "gpu_memory_utilization": 0.2, "enforce_eager": True, "threads": 1, "dtype": "float32",
    }
)  # fmt: skip


@dataclass
class Side:
    """A scheduler with a device of which the last `depth` steps are still being computed."""

    scheduler: Any
    depth: int
    under_way: deque[tuple[Any, Any]] = field(default_factory=deque[tuple[Any, Any]])


@pytest.fixture(scope="module")
def vllm_config() -> Any:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.utils.hashing import get_hash_fn_by_name
    from vllm.v1.core.kv_cache_utils import init_none_hash

    init_none_hash(get_hash_fn_by_name("xxhash"))
    arguments = engine_arguments(CONFIG, settings_here(CONFIG), on_cpu=True)
    return EngineArgs(**arguments).create_engine_config(UsageContext.LLM_CLASS)


def make(vllm_config: Any, blocks: int, *, ahead: bool, lean: bool, **kept: bool) -> Any:
    import torch
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    spec = FullAttentionSpec(block_size=BLOCK_SIZE, num_kv_heads=1, head_size=32, dtype=torch.float32)
    vllm_config.cache_config.num_gpu_blocks = blocks
    vllm_config.scheduler_config.async_scheduling = ahead
    kind: Any = lean_scheduler if lean else AsyncScheduler if ahead else Scheduler
    return kind(
        vllm_config=vllm_config,
        kv_cache_config=KVCacheConfig(blocks, [], [KVCacheGroupSpec(["layer"], spec)]),
        structured_output_manager=StructuredOutputManager(vllm_config),
        block_size=BLOCK_SIZE,
        hash_block_size=BLOCK_SIZE,
        **kept,
    )


def request(name: str, prompt: list[int], max_tokens: int, **sampling: Any) -> Any:
    from vllm.sampling_params import SamplingParams
    from vllm.utils.hashing import get_hash_fn_by_name
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher
    from vllm.v1.request import Request

    parameters = SamplingParams(max_tokens=max_tokens, stop_token_ids=[STOP], detokenize=False, **sampling)
    parameters.update_from_generation_config({}, EOS)
    hasher = get_request_block_hasher(BLOCK_SIZE, get_hash_fn_by_name("xxhash"))
    return Request(name, list(prompt), parameters, None, arrival_time=float(name), block_hasher=hasher)


def token_of(name: str, place: int) -> int:
    return random.Random(f"{name}/{place}").randrange(1, WORDS)


def computed(scheduler: Any, scheduled: Any) -> Any:
    """What the device gives back: a token for each request whose prompt is all computed."""
    from vllm.v1.outputs import ModelRunnerOutput

    names = list(scheduled.num_scheduled_tokens)
    starts = {one.req_id: one.num_computed_tokens for one in scheduled.scheduled_new_reqs}
    cached = scheduled.scheduled_cached_reqs
    starts |= dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
    tokens: list[list[int]] = []
    for name in names:
        known = scheduler.requests[name]
        end = starts[name] + scheduled.num_scheduled_tokens[name]
        whole = end >= known.num_tokens + max(0, known.num_output_placeholders - 1)
        tokens.append([token_of(name, end)] if whole else [])
    return ModelRunnerOutput(req_ids=names, req_id_to_index={name: i for i, name in enumerate(names)}, sampled_token_ids=tokens)  # fmt: skip


def step(side: Side) -> tuple[Any, Any]:
    """Schedule one step, and book the one that has been computed meanwhile."""
    scheduled = side.scheduler.schedule()
    seen = shown(scheduled)
    if scheduled.total_num_scheduled_tokens:
        side.under_way.append((scheduled, computed(side.scheduler, scheduled)))
    booked = None
    if side.under_way and (len(side.under_way) > side.depth or not scheduled.total_num_scheduled_tokens):
        outputs = side.scheduler.update_from_output(*side.under_way.popleft())
        booked = {client: [shown(one) for one in each.outputs] for client, each in outputs.items()}
    return seen, booked


def shown(value: Any) -> Any:
    """As plain values: two schedulers share no objects."""
    if hasattr(value, "__struct_fields__"):
        return {name: shown(getattr(value, name)) for name in value.__struct_fields__}
    if hasattr(value, "__dataclass_fields__"):
        return {one.name: shown(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, (list, tuple)):
        return [shown(one) for one in value]
    if isinstance(value, dict):
        return {key: shown(one) for key, one in value.items()}
    return value if isinstance(value, (int, float, str, set, type(None))) else repr(type(value))


def state_of(scheduler: Any) -> Any:
    pool = scheduler.kv_cache_manager.block_pool
    return (
        [one.request_id for one in scheduler.running],
        {one.request_id for one in scheduler._inflight_prefills},
        {
            name: (list(one.all_token_ids), len(one.block_hashes), one.status)
            for name, one in scheduler.requests.items()
        },
        pool.get_num_free_blocks(),
        sorted(pool.cached_block_hash_to_block._cache),
    )


def draws(seed: int) -> Iterator[tuple[str, Any]]:
    """What happens: requests of a few shared prefixes, aborts, and many steps."""
    draw, number = random.Random(seed), 0
    prefixes = [[draw.randrange(6, WORDS) for _ in range(length)] for length in (0, 31, 33, 64, 90)]
    for _ in range(120):
        for _ in range(draw.choice((0, 0, 1, 1, 2))):
            own = [draw.randrange(6, WORDS) for _ in range(draw.randint(1, 30))]
            yield "add", (str(number), draw.choice(prefixes) + own, draw.randint(1, 60))
            number += 1
        if number and draw.random() < 0.08:
            yield "abort", str(draw.randrange(number))
        yield "step", None
    for _ in range(400):
        yield "step", None


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), ahead=st.booleans(), blocks=st.integers(14, 40))
def test_every_step_is_that_of_vllms_own_scheduler(vllm_config: Any, seed: int, ahead: bool, blocks: int):
    from vllm.v1.request import RequestStatus

    sides = [Side(make(vllm_config, blocks, ahead=ahead, lean=lean), int(ahead)) for lean in (True, False)]
    assert "update_from_output" in vars(sides[0].scheduler)
    for what, values in draws(seed):
        if what == "add":
            for side in sides:
                side.scheduler.add_request(request(*values))
        elif what == "abort":
            for side in sides:
                side.scheduler.finish_requests(values, RequestStatus.FINISHED_ABORTED)
        else:
            ours, theirs = (step(side) for side in sides)
            assert ours == theirs
            assert state_of(sides[0].scheduler) == state_of(sides[1].scheduler)
    assert not sides[0].scheduler.requests


@pytest.mark.parametrize("ahead", [False, True])
def test_too_little_room_puts_requests_off_and_they_end_all_the_same(vllm_config: Any, ahead: bool):
    side = Side(make(vllm_config, 8, ahead=ahead, lean=True), int(ahead))
    for number in range(6):
        side.scheduler.add_request(request(str(number), [6 + number] * 30, 60, ignore_eos=True))
    put_off, ended = 0, 0
    for _ in range(600):
        seen, booked = step(side)
        put_off += len(seen["preempted_req_ids"] or ())
        ended += sum(one["finish_reason"] is not None for one in (booked or {}).get(0, []))
    assert put_off > 0
    assert ended == 6


@pytest.mark.parametrize("sampling", [{"logprobs": 1}, {"min_tokens": 3}])
def test_a_request_out_of_the_ordinary_goes_through_vllms_own_loops(vllm_config: Any, sampling: dict[str, Any]):
    sides = [Side(make(vllm_config, 20, ahead=False, lean=lean), 0) for lean in (True, False)]
    for side in sides:
        side.scheduler.add_request(request("0", [7, 8, 9], 9, **sampling))
        side.scheduler.add_request(request("1", [7, 8, 9], 9))
    for _ in range(12):
        assert step(sides[0]) == step(sides[1])


@pytest.mark.parametrize("kept", ["log_stats", "include_finished_set"])
def test_an_engine_that_keeps_more_than_tokens_keeps_vllms_loops(vllm_config: Any, kept: str):
    scheduler = make(vllm_config, 20, ahead=False, lean=True, **{kept: True})
    assert not can_be_lean(scheduler)
    assert "update_from_output" not in vars(scheduler)


def test_psis_engine_runs_on_it():
    model = VllmModel(CONFIG)
    model.start()
    try:
        scheduler = model.engine.engine_core.engine_core.scheduler
        assert isinstance(vars(scheduler)["update_from_output"].__self__, LeanLoops)
    finally:
        model.close()
