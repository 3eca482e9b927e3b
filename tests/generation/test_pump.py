import threading
from collections.abc import Iterator

import pytest

from generation.engines.base import Finished, Request, Sampling
from generation.engines.build import build_engine
from generation.engines.config import ScriptedEngine
from generation.engines.scripted import ScriptedModel
from generation.errors import BudgetError, EngineDeadError
from generation.flows import Flow, FlowCall, FlowResult
from generation.pump import Pump

SAMPLING = Sampling(max_output_tokens=10)


def ask_once(text: str) -> Flow:
    completion = yield Request("shared ", text, SAMPLING, "draft")
    return completion.text or completion.error


def ask_then_vote(text: str, votes: int) -> Flow:
    draft = yield Request("shared ", text, SAMPLING, "draft")
    answers = yield [Request("answer ", f"{draft.text} {i}", SAMPLING, "answer") for i in range(votes)]
    return [answer.text for answer in answers]


def ask_forever(text: str) -> Flow:
    while True:
        yield Request("", text, SAMPLING, "draft")


def stumble() -> Flow:
    yield Request("", "hello", SAMPLING, "draft")
    raise ValueError("planted")


def survive_budget(count: int) -> Flow:
    done = 0
    try:
        for i in range(count):
            yield Request("", f"one two {i}", SAMPLING, "mine")
            done += 1
    except BudgetError:
        return done
    return done


def pump_of(**settings: object) -> Pump:
    return Pump(build_engine(ScriptedEngine.model_validate({"kind": "scripted", **settings})))


@pytest.fixture
def pump() -> Iterator[Pump]:
    pump = pump_of(max_in_flight=16, replies=("yes", "no", "maybe so"))
    pump.start()
    yield pump
    pump.stop()


def test_results_come_in_the_order_of_the_calls_with_their_own_keys(pump: Pump) -> None:
    calls = [FlowCall(f"key-{i % 3}", ask_then_vote, (f"text {i}", i % 5)) for i in range(200)]
    results = pump.ask(calls)
    assert [result.key for result in results] == [call.key for call in calls]
    assert [len(result.value) for result in results] == [i % 5 for i in range(200)]
    assert [result.requests for result in results] == [1 + i % 5 for i in range(200)]


def test_counts_of_a_result_are_split_by_stage(pump: Pump) -> None:
    result = pump.ask([FlowCall("a", ask_then_vote, ("text", 4))])[0]
    assert {stage: counts["requests"] for stage, counts in result.by_stage.items()} == {"draft": 1, "answer": 4}
    assert sum(counts["output_tokens"] for counts in result.by_stage.values()) == result.output_tokens > 0
    assert pump.stats().output_tokens == result.output_tokens


def test_one_flow_that_raises_disturbs_no_other(pump: Pump) -> None:
    results = pump.ask([FlowCall("a", ask_once, ("x",)), FlowCall("b", stumble), FlowCall("c", ask_once, (1, 2, 3))])
    assert results[0].error is None
    assert isinstance(results[1].error, ValueError)
    assert isinstance(results[2].error, TypeError)


def test_an_empty_ask_returns_at_once(pump: Pump) -> None:
    assert pump.ask([]) == []


def test_asks_from_many_threads_share_the_engine(pump: Pump) -> None:
    results: dict[int, list[FlowResult]] = {}

    def ask(number: int) -> None:
        results[number] = pump.ask([FlowCall(f"{number}", ask_once, (f"{number} {i}",)) for i in range(50)])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {number: {r.key for r in found} for number, found in results.items()} == {n: {str(n)} for n in range(4)}


def test_a_refused_request_is_an_answer_and_not_a_crash() -> None:
    pump = pump_of(fail_prompts_with="poison")
    pump.start()
    results = pump.ask([FlowCall("a", ask_once, ("poison",)), FlowCall("b", ask_once, ("fine",))])
    pump.stop()
    assert results[0].value == "the prompt contains 'poison'"
    assert results[1].value == "ok"


@pytest.mark.parametrize("budget", [0, 12, 13, 40, 130, 1000])
def test_a_token_budget_is_never_exceeded_and_what_it_allows_is_done(pump: Pump, budget: int) -> None:
    results = pump.ask([FlowCall(str(i), survive_budget, (3,)) for i in range(8)], token_budget=budget)
    spent = sum(result.prompt_tokens + result.output_tokens for result in results)
    assert spent <= budget
    done = sum(result.value for result in results)
    assert done == 24 or spent + 13 > budget
    assert [result.requests for result in results] == [result.value for result in results]


def test_a_flow_that_does_not_catch_it_ends_with_the_budget_error(pump: Pump) -> None:
    result = pump.ask([FlowCall("a", ask_forever, ("word",))], token_budget=100)[0]
    assert isinstance(result.error, BudgetError)
    assert result.prompt_tokens + result.output_tokens <= 100


def test_all_open_asks_hear_of_the_engines_death_and_so_do_later_ones() -> None:
    pump = pump_of(die_after_requests=10)
    pump.start()
    with pytest.raises(EngineDeadError, match="as planned"):
        pump.ask([FlowCall(str(i), ask_forever, (f"{i}",)) for i in range(5)])
    with pytest.raises(EngineDeadError, match="as planned"):
        pump.ask([FlowCall("a", ask_once, ("x",))])
    pump.stop()


def test_stopping_fails_what_is_open() -> None:
    pump = pump_of(seconds_per_step=0.001)
    pump.start()
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            pump.ask([FlowCall("a", ask_forever, ("x",))])
        except EngineDeadError as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    while pump.stats().steps == 0:
        pass
    pump.stop()
    thread.join()
    assert "stopped" in str(errors[0])


def test_an_engine_that_hangs_in_its_first_step_is_seen_to_have_work() -> None:
    release, stuck = threading.Event(), threading.Event()
    engine = ScriptedModel(ScriptedEngine(kind="scripted"))
    step = engine.step

    def hang() -> list[Finished]:
        stuck.set()
        release.wait()
        return step()

    engine.step = hang
    pump = Pump(engine)
    pump.start()
    asking = threading.Thread(target=pump.ask, args=([FlowCall("a", ask_once, ("x",))],))
    asking.start()
    stuck.wait()
    assert (pump.stats().steps, pump.stats().unfinished) == (0, 1)
    release.set()
    asking.join()
    pump.stop()


class Stream:
    """Work without end; delivery waits for `gate`."""

    token_budget = None
    more_may_come = True

    def __init__(self) -> None:
        self.started = 0
        self.delivered = 0
        self.errors: list[Exception] = []
        self.gate = threading.Event()
        self.enough = threading.Event()

    def next_call(self) -> FlowCall | None:
        self.started += 1
        return FlowCall(str(self.started), ask_once, (f"{self.started}",))

    def deliver(self, result: FlowResult) -> None:
        self.gate.wait()
        self.delivered += 1
        if self.delivered >= 500:
            self.enough.set()

    def fail(self, error: Exception) -> None:
        self.errors.append(error)


def test_dropped_flows_end_their_requests_and_leave_their_places_to_others() -> None:
    class Mixed(Stream):
        def next_call(self) -> FlowCall | None:
            self.started += 1
            endless = self.started <= 4
            return FlowCall(
                f"{'endless' if endless else 'short'}/{self.started}", ask_forever if endless else ask_once, ("x",)
            )

        def deliver(self, result: FlowResult) -> None:
            assert result.key.startswith("short")
            super().deliver(result)

    pump = pump_of(max_in_flight=4, replies=("word",))
    pump.start()
    mixed = Mixed()
    mixed.gate.set()
    pump.attach(mixed)
    while pump.stats().steps < 3:
        pass
    pump.drop(mixed, lambda key: key.startswith("endless"))
    assert mixed.enough.wait(120)
    assert not any(running.key.startswith("endless") for running, *_ in list(pump._board._pool._by_request.values()))
    pump.detach(mixed)
    pump.stop()
    assert mixed.errors == []


def test_a_stuck_writer_stops_new_flows_and_loses_none() -> None:
    pump = pump_of(max_in_flight=4)
    pump.start()
    stream = Stream()
    pump.attach(stream)
    answered = -1
    while answered != (answered := pump.stats().by_stage.get("draft", {}).get("requests", 0)) or answered == 0:
        threading.Event().wait(0.05)
    assert stream.started < 100
    stream.gate.set()
    assert stream.enough.wait(120)
    pump.detach(stream)
    pump.stop()
    assert stream.errors == []


def test_an_error_of_delivery_reaches_its_work_only(pump: Pump) -> None:
    class Broken(Stream):
        def deliver(self, result: FlowResult) -> None:
            self.enough.set()
            raise OSError("disk full")

    broken = Broken()
    pump.attach(broken)
    assert broken.enough.wait(120)
    assert pump.ask([FlowCall("a", ask_once, ("x",))])[0].value
    pump.detach(broken)
    assert str(broken.errors[0]) == "disk full"
