"""vLLM against Hugging Face on a real checkpoint: the same greedy tokens, and the same log-probabilities of a prompt."""

import math
from collections.abc import Iterator
from typing import Any

import pytest

from generation.engines.base import Sampling
from generation.engines.config import VllmEngine
from generation.engines.vllm import VllmModel
from generation.engines.vllm_core import EngineCore
from tests.engines.models import story_model

TEXTS = [
    ("Once upon a time, there was a little girl named", " Lily. She loved to play outside in the park."),
    ("Tom had a big red ball.", " He kicked it and it went up into the tree."),
    ("The dog was very", " happy and wagged his tail."),
]
NEW_TOKENS = 48
TOLERANCE = 2e-4
"""Nats per token: float32 sums in another order. A wrong position, mask or weight shifts it by a hundred times as much."""


@pytest.fixture(scope="module")
def stories() -> Iterator[Any]:
    """vLLM's engine as our engine starts it."""
    model = story_model()
    if model is None:
        pytest.skip("PSI_SHARED_DIR has no models/stories260K")
    settings = {"max_model_len": 256, "max_num_seqs": 8, "kv_cache_bytes": 2**26, "enforce_eager": True}
    config = {"model": str(model), "dtype": "float32", "gpu_memory_utilization": 0.2, "threads": 1, **settings}
    engine = VllmModel(VllmEngine.model_validate(config))
    engine.start()
    yield engine.engine
    engine.close()


@pytest.fixture(scope="module")
def reference() -> Any:
    import transformers

    library: Any = transformers  # its loaders have no usable types
    return library.AutoModelForCausalLM.from_pretrained(story_model(), dtype="float32").eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    import transformers

    library: Any = transformers
    return library.AutoTokenizer.from_pretrained(story_model())


def complete(engine: Any, prompts: list[list[int]], **sampling: Any) -> list[Any]:
    """vLLM's outputs for some prompts, in their order."""
    from vllm.sampling_params import SamplingParams

    for number, ids in enumerate(prompts):
        prompt = {"type": "token", "prompt_token_ids": ids}
        engine.add_request(str(number), prompt, SamplingParams(temperature=0.0, detokenize=False, **sampling))
    done: dict[int, Any] = {}
    while len(done) < len(prompts):
        done |= {int(output.request_id): output for output in engine.step() if output.finished}
    return [done[number] for number in range(len(prompts))]


def test_greedy_completions_are_those_of_hugging_face(stories: Any, reference: Any, tokenizer: Any) -> None:
    import torch

    prompts = [tokenizer.encode(start) for start, _ in TEXTS]
    for ids, output in zip(prompts, complete(stories, prompts, max_tokens=NEW_TOKENS, ignore_eos=True), strict=True):
        with torch.no_grad():
            expected = reference.generate(
                torch.tensor([ids]), max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False
            )
        assert list(output.outputs[0].token_ids) == expected[0, len(ids) :].tolist()


def test_the_core_answers_as_the_whole_engine_does(stories: Any, tokenizer: Any) -> None:
    """Requests of one sampling share its parameters, and one that is aborted is not heard of again."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    prompts = [tokenizer.encode(start) for start, _ in TEXTS]
    whole = complete(stories, prompts, max_tokens=NEW_TOKENS, ignore_eos=True)
    final: dict[str, Any] = {"ignore_eos": True, "output_kind": RequestOutputKind.FINAL_ONLY, "detokenize": False}
    core = EngineCore(stories, lambda one: SamplingParams(max_tokens=one.max_output_tokens, temperature=0.0, **final))
    for number, ids in enumerate([*prompts, prompts[0]]):
        core.add(number, ids, Sampling(NEW_TOKENS, temperature=0.0))
    ended = core.step()
    core.abort([len(prompts)])
    while len(ended) < len(prompts):
        ended += core.step()
    ended.sort(key=lambda one: one.request_id)
    assert [one.ids for one in ended] == [list(output.outputs[0].token_ids) for output in whole]
    assert {one.reason for one in ended} == {"length"}


def vllm_loss(engine: Any, ids: list[int], start: int) -> float:
    """Mean negative log-likelihood of `ids[start:]` by the log-probabilities that vLLM gives of a prompt."""
    import torch

    with torch.compiler.set_stance("force_eager"):  # vLLM would compile the ranks of the tokens, for 15 s
        (output,) = complete(engine, [ids], max_tokens=1, prompt_logprobs=0)
    chosen = [output.prompt_logprobs[place][ids[place]].logprob for place in range(start, len(ids))]
    return -sum(chosen) / len(chosen)


def reference_loss(model: Any, ids: list[int], start: int) -> float:
    import torch

    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return -sum(logits[place - 1, ids[place]].item() for place in range(start, len(ids))) / (len(ids) - start)


@pytest.mark.parametrize(("start", "end"), TEXTS)
def test_how_hard_an_answer_is_to_follow_is_the_same_by_both(
    stories: Any, reference: Any, tokenizer: Any, start: str, end: str
) -> None:
    """Instruction-following difficulty: perplexity of the answer after its prompt, over that of the answer alone."""
    bos = [tokenizer.bos_token_id]
    asked = [token for token in tokenizer.encode(start) if token not in bos]
    answer = tokenizer.encode(end, add_special_tokens=False)
    after, alone = ([*bos, *asked, *answer], 1 + len(asked)), ([*bos, *answer], 1)
    losses = [(vllm_loss(stories, *text), reference_loss(reference, *text)) for text in (after, alone)]
    for ours, theirs in losses:
        assert ours == pytest.approx(theirs, abs=TOLERANCE)
    ours, theirs = (math.exp(losses[0][side] - losses[1][side]) for side in (0, 1))
    assert ours == pytest.approx(theirs, rel=2 * TOLERANCE)
    assert ours < 1
