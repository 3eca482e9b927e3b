from generation.engines.base import CanaryCounts, Engine, Request, Sampling
from generation.engines.build import build_engine
from generation.engines.config import VllmEngine
from generation.flows import Flow, FlowCall
from generation.pump import Pump
from generation.spent import Spent
from tests.engines.models import MINIATURE
from tests.engines.test_vllm import PREFIX, SETTINGS


def ask(text: str) -> Flow:
    return (yield Request(PREFIX, text, Sampling(12), "draft"))


def spent_on_sixty_requests(engine: Engine) -> Spent:
    pump = Pump(engine)
    pump.start()
    pump.wait_ready()
    texts = [f"solve {'abcdefghij'[i % 10]}{'ab' * (i % 3)}" for i in range(60)]
    pump.ask([FlowCall(str(i), ask, (text,)) for i, text in enumerate(texts)])
    pump.stop()
    return pump.spent()


def test_the_statistics_of_vllm_on_a_canary_agree_with_ours_and_are_off_elsewhere() -> None:
    config = VllmEngine.model_validate({"model": str(MINIATURE), **SETTINGS})
    canary, other = build_engine(config, canary=True), build_engine(config)
    spent = spent_on_sixty_requests(canary)
    counts = canary.stats().canary
    assert (counts.prompt_tokens, counts.cached_tokens) == (spent.prompt_tokens, spent.cached_tokens)
    assert counts.cached_tokens > counts.prompt_tokens / 4
    assert (counts.steps, counts.preemptions) == (spent.steps, 0)
    assert 0 < counts.kv_use < counts.steps
    assert (spent.canary_steps, spent.canary_cached_tokens) == (counts.steps, counts.cached_tokens)
    unwatched = spent_on_sixty_requests(other)
    assert unwatched.cached_tokens > 0
    assert unwatched.canary_steps == 0
    assert other.stats().canary == CanaryCounts()
