import pickle

import pytest

from generation.engines.base import Completion, Request, Sampling
from generation.flows import Flow, FlowCall
from generation.journal import Journal, journalled
from generation.storage import Store
from tests.principles.stand_in import LocalPool

SAMPLING = Sampling(8)


def two_questions(first: str) -> Flow:
    one: Completion = yield Request("", first, SAMPLING, stage="mine")
    others: list[Completion] = yield [Request("", f"{one.text} {i}", SAMPLING, stage="mine") for i in range(3)]
    return [one.text, *(other.text for other in others)]


def call(first: str = "q") -> FlowCall:
    return FlowCall("key", two_questions, (first,))


@pytest.fixture
def journal(tmp_path) -> Journal:
    return Journal(Store(str(tmp_path)))


def ask(pool: LocalPool, journal: Journal, one: FlowCall) -> list[str]:
    (result,) = pool.ask([FlowCall(one.key, journalled, (one, journal))])
    assert result.error is None
    return result.value


def test_a_restart_asks_nothing_twice_and_gets_the_same(journal):
    pool = LocalPool(lambda request: f"a({request.text})")
    first = ask(pool, journal, call())
    assert len(pool.asked) == 4
    assert ask(LocalPool(lambda request: pytest.fail("asked again")), journal, call()) == first
    replayed = journal.replay(call())
    assert replayed is not None
    assert replayed.value == first


def test_a_flow_that_died_half_way_goes_on_where_it_was(journal):
    def dies_late(request: Request) -> str:
        if request.text.endswith("2"):
            raise RuntimeError("killed")
        return "a"

    with pytest.raises(RuntimeError):
        ask(LocalPool(dies_late), journal, call())
    assert journal.replay(call()) is None
    pool = LocalPool(lambda request: "b")
    assert ask(pool, journal, call()) == ["a", "b", "b", "b"]
    assert [request.text for request in pool.asked] == ["a 0", "a 1", "a 2"]


def test_a_completion_is_on_storage_before_the_flow_sees_it(journal):
    def watched() -> Flow:
        yield Request("", "q", SAMPLING, stage="mine")
        return journal.store.names("journal")

    assert len(ask(LocalPool(lambda request: "a"), journal, FlowCall("w", watched))) == 1


def test_a_changed_prompt_is_asked_anew(journal):
    ask(LocalPool(lambda request: "a"), journal, call("q"))
    assert journal.replay(call("other")) is None


def test_tokens_are_counted_by_stage_over_all_flows(journal):
    ask(LocalPool(lambda request: Completion("a", "stop", 10, 0, 5)), journal, call())
    assert journal.tokens("mine") == 4 * 15
    assert journal.tokens("probe") == 0


def test_a_refused_request_is_asked_again(journal):
    refusing = LocalPool(lambda request: Completion("", "error", error="busy"))
    ask(refusing, journal, call())
    assert journal.store.names("journal") == []
    assert journal.replay(call()) is None


def test_what_was_written_first_counts(journal):
    request = Request("", "q", SAMPLING, stage="mine")
    assert journal.record("e", "key", request, Completion("first", "stop")).text == "first"
    assert journal.record("e", "key", request, Completion("second", "stop")).text == "first"
    assert pickle.loads(pickle.dumps(journal)).find("e") == Completion("first", "stop")
