from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.asking import Asking
from generation.errors import BudgetError
from generation.flows import FlowCall, FlowResult


def no_flow() -> None:
    raise AssertionError


@settings(deadline=None)
@given(
    count=st.integers(0, 120),
    replicas=st.integers(1, 4),
    budget=st.none() | st.integers(0, 3000),
    deaths=st.lists(st.booleans(), max_size=30),
    data=st.data(),
)
def test_every_call_gets_a_result_in_order_and_no_budget_is_exceeded(count, replicas, budget, deaths, data):
    asking = Asking([FlowCall(str(i), no_flow) for i in range(count)], budget, replicas)
    open_chunks, used, dying = [], 0, iter(deaths)
    while not asking.done:
        while len(open_chunks) < 2 * replicas and (chunk := asking.next_chunk()) is not None:
            open_chunks.append(chunk)
        chunk = open_chunks.pop(data.draw(st.integers(0, len(open_chunks) - 1)))
        left, results = chunk.budget, []
        for call in chunk.calls:
            cost = 10 + int(call.key) % 30
            if left is not None and cost > left:
                results.append(FlowResult(call.key, None, BudgetError("too little")))
                continue
            left = None if left is None else left - cost
            used += cost
            results.append(FlowResult(call.key, call.key, prompt_tokens=cost))
        if next(dying, False):
            asking.lose(chunk)
        else:
            asking.finish(chunk, results)
    assert budget is None or used <= budget
    assert [result.key for result in asking.results()] == [str(i) for i in range(count)]
    if budget is None or (not any(deaths) and budget >= 39 * count):
        assert all(result.error is None for result in asking.results())
