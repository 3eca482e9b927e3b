import pytest

from generation.engines.base import Engine, Request, Sampling
from generation.engines.build import build_engine
from generation.engines.config import ScriptedEngine
from generation.errors import EngineDeadError, RequestError


def engine(**settings: object) -> Engine:
    return build_engine(ScriptedEngine.model_validate({"kind": "scripted", **settings}))


def request(text: str, limit: int = 50) -> Request:
    return Request("prefix ", text, Sampling(limit), "draft")


def answers(model: Engine, texts: list[str]) -> list[str]:
    for number, text in enumerate(texts):
        model.add(number, model.prepare(request(text)))
    return [completion.text for completion in model.decode(model.step())]


def test_a_prompt_has_one_answer_whatever_else_is_asked():
    texts = [f"question {i}" for i in range(30)]
    together = answers(engine(replies=("a", "b", "c")), texts)
    alone = [answers(engine(replies=("a", "b", "c")), [text])[0] for text in texts]
    assert together == alone
    assert set(together) == {"a", "b", "c"}


def test_planted_faults_come_when_they_are_planted():
    model = engine(fail_prompts_with="poison", die_after_requests=3)
    for number, text in enumerate(["poison", "a", "b", "c"]):
        model.add(number, model.prepare(request(text)))
    assert [completion.finish for completion in model.decode(model.step())] == ["error", "stop", "stop"]
    with pytest.raises(EngineDeadError):
        model.step()


def test_long_replies_are_cut_and_empty_prompts_refused():
    model = engine(replies=("one two three",))
    model.add(0, model.prepare(request("x", limit=2)))
    (cut,) = model.decode(model.step())
    assert (cut.text, cut.finish, cut.output_tokens) == ("one two", "length", 2)
    with pytest.raises(RequestError):
        model.prepare(Request("", "", Sampling(1), "draft"))


def test_an_aborted_request_never_finishes():
    model = engine()
    for number in range(3):
        model.add(number, model.prepare(request(str(number))))
    model.abort([1])
    assert [one.request_id for one in model.step()] == [0, 2]
    assert model.stats().unfinished == 0
