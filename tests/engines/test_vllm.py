import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from generation.engines.base import Completion, Engine, Request, Sampling
from generation.engines.build import build_engine
from generation.engines.config import VllmEngine
from generation.errors import EngineDeadError, EngineError, RequestError
from generation.flows import Flow, FlowCall
from generation.pump import Pump
from tests.end_to_end.live_run import descendants
from tests.engines.models import MINIATURE

BLOCK_SIZE = 32
PREFIX = "P: reverse\nP: sort down\n" * 8
SETTINGS = {
    "max_model_len": 512, "max_num_seqs": 16, "max_num_batched_tokens": 1024, "kv_cache_bytes": 2**26,
    "gpu_memory_utilization": 0.2, "enforce_eager": True, "threads": 1, "dtype": "float32",
}  # fmt: skip


@pytest.fixture(scope="module")
def engine() -> Engine:
    return build_engine(VllmEngine.model_validate({"model": str(MINIATURE), **SETTINGS}))


@pytest.fixture(scope="module")
def pump(engine: Engine) -> Iterator[Pump]:
    pump = Pump(engine)
    pump.start()
    pump.wait_ready()
    yield pump
    pump.stop()


def ask(text: str, sampling: Sampling, prefix: str = PREFIX) -> Flow:
    return (yield Request(prefix, text, sampling, "draft"))


def answers(pump: Pump, texts: list[str], sampling: Sampling) -> list[Completion]:
    return [result.value for result in pump.ask([FlowCall(str(i), ask, (t, sampling)) for i, t in enumerate(texts)])]


def test_many_flows_share_one_engine_and_the_prefix_comes_from_the_cache(pump: Pump, engine: Engine):
    completions = answers(pump, [f"solve {'abcdefghij'[i % 10]}{'ab' * (i % 3)}" for i in range(60)], Sampling(12))
    assert {completion.finish for completion in completions} <= {"stop", "length"}
    assert all(0 < completion.output_tokens <= 12 for completion in completions)
    assert all("<eos>" not in completion.text for completion in completions)
    stats = engine.stats()
    assert stats.by_stage["draft"]["requests"] == 60
    assert stats.output_tokens == sum(completion.output_tokens for completion in completions)
    assert stats.cached_tokens == sum(completion.cached_tokens for completion in completions) > stats.prompt_tokens / 4
    assert stats.unfinished == 0


def test_prompts_are_those_of_the_chat_template(engine: Engine, pump: Pump):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MINIATURE)
    message = [{"role": "user", "content": PREFIX + "solve abc"}]
    text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    prepared = engine.prepare(Request(PREFIX, "solve abc", Sampling(4), "draft"))
    assert prepared.payload == tokenizer.encode(text, add_special_tokens=False)


def test_temperature_zero_repeats_itself(pump: Pump):
    first, second = (answers(pump, ["solve abc"] * 3, Sampling(16, temperature=0.0)) for _ in range(2))
    assert len({completion.text for completion in [*first, *second]}) == 1


def test_a_completion_that_is_cut_says_so_and_counts_its_tokens(pump: Pump):
    (completion,) = answers(pump, ["write"], Sampling(1, temperature=0.0))
    assert completion.output_tokens == 1


def test_a_prompt_that_cannot_fit_is_refused_and_never_truncated(pump: Pump, engine: Engine):
    with pytest.raises(RequestError, match="exceed max_model_len 512"):
        engine.prepare(Request(PREFIX, "a" * 600, Sampling(10), "draft"))
    (completion,) = answers(pump, ["a" * 600], Sampling(10))
    assert completion.finish == "error"
    assert "max_model_len" in completion.error


def test_telemetry_is_off(pump: Pump):
    assert os.environ["VLLM_NO_USAGE_STATS"] == "1"


def test_a_folder_that_holds_no_model_is_named(tmp_path: Path):
    engine = build_engine(VllmEngine(model=str(tmp_path)))
    with pytest.raises(EngineError, match=f"{tmp_path}: there is no config.json"):
        engine.start()


def test_a_broken_model_is_named_with_the_cause(tmp_path: Path):
    (tmp_path / "config.json").write_text("{")
    engine = build_engine(VllmEngine(model=str(tmp_path)))
    with pytest.raises(EngineError, match=f"{tmp_path} cannot be loaded"):
        engine.start()


def test_a_core_that_is_killed_ends_the_step_that_waits_for_it():
    engine = build_engine(VllmEngine.model_validate({"model": str(MINIATURE), **SETTINGS, "multiprocess": True}))
    engine.start()
    (core,) = [pid for pid, title in descendants(os.getpid()) if "EngineCore" in title]
    os.kill(core, signal.SIGSTOP)
    engine.add(1, engine.prepare(Request(PREFIX, "solve abc", Sampling(100), "draft")))
    threading.Timer(0.5, os.kill, (core, signal.SIGKILL)).start()
    with pytest.raises(EngineDeadError):
        engine.step()
    engine.close()


def test_a_shared_prefix_is_computed_once_for_a_replica_and_not_once_for_a_request(pump: Pump):
    """Of all prompts of a bundle but the first, every whole block of the prefix comes from the cache, however many are in flight."""
    prefix = "P: sort up\nP: rotate left\n" * 8
    encode = pump_encoder()
    blocks = len(encode(prefix)) // BLOCK_SIZE
    assert blocks >= 2
    texts = [f"solve {'abcdefghij'[i % 10]}{'cde' * (i % 4)}{'fg' * (i // 10)}" for i in range(40)]
    calls = [FlowCall(str(i), ask, (text, Sampling(4), prefix)) for i, text in enumerate(texts)]
    cached = sorted(result.value.cached_tokens for result in pump.ask(calls))
    assert cached[0] < blocks * BLOCK_SIZE
    assert cached[1] >= blocks * BLOCK_SIZE


def pump_encoder() -> Callable[[str], list[int]]:
    """Ids of the start of a prompt, with what the chat template puts before it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MINIATURE)
    framed = tokenizer.apply_chat_template(
        [{"role": "user", "content": "|"}], tokenize=False, add_generation_prompt=True
    )
    before = framed.partition("|")[0]
    return lambda text: tokenizer.encode(before + text, add_special_tokens=False)
