import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from generation.engines.base import Completion, Engine, Request, Sampling
from generation.engines.build import build_engine
from generation.engines.chat_api import read_chat, retry_after, wait_seconds
from generation.engines.config import HttpEngine
from generation.errors import EngineDeadError, EngineError, RequestError

CHAT = {
    "choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}},
}


@dataclass
class Server:
    """Answers by script: (status, headers, body) in turn, the last for ever."""

    script: list[tuple[int, dict[str, str], object]]
    seen: list[dict[str, object]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    before: Callable[[], None] = lambda: None
    port: int = 0

    def engine(self, **settings: object) -> Engine:
        url = f"http://127.0.0.1:{self.port}/v1/"
        return build_engine(HttpEngine.model_validate({"kind": "http", "url": url, "model": "m", **settings}))


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            server.before()
            server.seen.append({"path": self.path, **body})
            server.headers.append({name.lower(): value for name, value in self.headers.items()})
            status, headers, value = server.script.pop(0) if len(server.script) > 1 else server.script[0]
            content = value.encode() if isinstance(value, str) else json.dumps(value).encode()
            self.send_response(status)
            for name, text in {**headers, "content-length": str(len(content))}.items():
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.port = httpd.server_address[1]
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield server
    httpd.shutdown()
    httpd.server_close()


def run(engine: Engine, texts: list[str]) -> list[Completion]:
    engine.start()
    try:
        for number, text in enumerate(texts):
            engine.add(number, engine.prepare(Request("pre ", text, Sampling(9, 0.5, 0.9), "mine")))
        finished = {}
        while len(finished) < len(texts):
            for one in engine.step():
                finished[one.request_id] = engine.decode([one])[0]
        return [finished[number] for number in range(len(texts))]
    finally:
        engine.close()
        engine.close()


NOW = {"retry-after": "0"}


def test_a_request_is_one_chat_message_and_its_usage_is_counted():
    with serving(Server([(200, {}, CHAT)])) as server:
        engine = server.engine()
        (completion,) = run(engine, ["text"])
    assert completion == Completion("hello", "stop", 7, 4, 2)
    assert server.seen[0]["path"] == "/v1/chat/completions"
    assert server.seen[0]["messages"] == [{"role": "user", "content": "pre text"}]
    assert (server.seen[0]["max_tokens"], server.seen[0]["temperature"], server.seen[0]["top_p"]) == (9, 0.5, 0.9)
    assert engine.stats().by_stage["mine"] == {
        "requests": 1, "prompt_tokens": 7, "cached_tokens": 4, "output_tokens": 2,
    }  # fmt: skip


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_passing_trouble_is_tried_again(status: int):
    with serving(Server([(status, NOW, "busy"), (status, NOW, "busy"), (200, {}, CHAT)])) as server:
        (completion,) = run(server.engine(), ["text"])
    assert completion.text == "hello"
    assert len(server.seen) == 3


def test_trouble_that_stays_ends_as_an_error_completion_after_all_attempts():
    with serving(Server([(500, NOW, "broken")])) as server:
        (completion,) = run(server.engine(max_retries=2), ["text"])
    assert completion.finish == "error"
    assert "3 attempts failed, last: HTTP 500: broken" in completion.error
    assert len(server.seen) == 3


def test_a_refused_request_is_not_tried_again():
    with serving(Server([(400, {}, "too long")])) as server:
        (completion,) = run(server.engine(), ["text"])
    assert (completion.finish, completion.error) == ("error", "HTTP 400: too long")
    assert len(server.seen) == 1


@pytest.mark.parametrize("status", [401, 403, 404])
def test_an_endpoint_that_will_never_answer_kills_the_engine_and_the_key_is_not_in_the_message(
    status: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TEST_KEY", "sk-secret")
    with (
        serving(Server([(status, {}, "refused sk-secret")])) as server,
        pytest.raises(EngineDeadError, match=f"HTTP {status}.*key from TEST_KEY") as raised,
    ):
        run(server.engine(api_key_env="TEST_KEY"), ["text"])
    assert server.headers[0]["authorization"] == "Bearer sk-secret"
    assert "sk-secret" not in str(raised.value)


def test_the_key_is_cut_out_of_what_a_server_says(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TEST_KEY", "sk-secret")
    with serving(Server([(400, {}, "bad key sk-secret")])) as server:
        (completion,) = run(server.engine(api_key_env="TEST_KEY"), ["text"])
    assert completion.error == "HTTP 400: bad key ***"


def test_a_missing_key_is_named_before_anything_is_sent():
    with serving(Server([(200, {}, CHAT)])) as server, pytest.raises(EngineError, match="NO_SUCH_KEY is not set"):
        run(server.engine(api_key_env="NO_SUCH_KEY"), ["text"])
    assert server.seen == []


def test_a_server_that_is_gone_kills_the_engine():
    with serving(Server([(200, {}, CHAT)])) as server:
        pass
    with pytest.raises(EngineDeadError, match="cannot be reached"):
        run(server.engine(max_retries=1), ["text"])


def test_a_slow_answer_is_given_up_and_tried_again():
    gate = threading.Event()
    with serving(Server([(200, {}, CHAT)])) as server:
        calls: list[int] = []

        def slow_once() -> None:
            calls.append(1)
            if len(calls) == 1:
                gate.wait(30)

        server.before = slow_once
        (completion,) = run(server.engine(timeout_seconds=0.3), ["text"])
        gate.set()
    assert completion.text == "hello"
    assert len(calls) >= 2


def test_no_more_than_max_in_flight_requests_are_open():
    open_now, most, lock = [0], [0], threading.Lock()

    def enter() -> None:
        with lock:
            open_now[0] += 1
            most[0] = max(most[0], open_now[0])
        time.sleep(0.02)
        with lock:
            open_now[0] -= 1

    with serving(Server([(200, {}, CHAT)], before=enter)) as server:
        completions = run(server.engine(max_in_flight=3), [f"{i}" for i in range(20)])
    assert {completion.text for completion in completions} == {"hello"}
    assert most[0] <= 3


def test_requests_per_minute_spaces_requests():
    times: list[float] = []
    with serving(Server([(200, {}, CHAT)], before=lambda: times.append(time.monotonic()))) as server:
        run(server.engine(requests_per_minute=600), [f"{i}" for i in range(11)])
    assert max(times) - min(times) > 0.5  # one nominally


@pytest.mark.parametrize(
    "value", ["not json", {"error": "x"}, {"choices": []}, [1]], ids=["text", "error", "none", "list"]
)
def test_an_unreadable_answer_is_an_error_completion(value: object):
    with serving(Server([(200, {}, value)])) as server:
        (completion,) = run(server.engine(), ["text"])
    assert completion.finish == "error"


def test_an_aborted_request_is_forgotten():
    gate = threading.Event()
    with serving(Server([(200, {}, CHAT)], before=lambda: gate.wait(30))) as server:
        engine = server.engine()
        engine.start()
        engine.add(1, engine.prepare(Request("", "x", Sampling(1), "mine")))
        engine.abort([1])
        gate.set()
        assert engine.step() == []
        engine.close()


def test_empty_prompts_are_refused_and_tokens_estimated():
    engine = Server([]).engine()
    with pytest.raises(RequestError):
        engine.prepare(Request("", "", Sampling(1), "mine"))
    assert engine.prepare(Request("ab", "cd", Sampling(1), "mine")).prompt_tokens == 2


def test_endings_other_than_stop_and_length_are_errors():
    value = {"choices": [{"message": {"content": "half"}, "finish_reason": "content_filter"}]}
    assert read_chat(value) == Completion("", "error", error="the endpoint ended the request with 'content_filter'")


def test_half_a_surrogate_pair_becomes_text_that_files_can_hold():
    value = json.loads('{"choices": [{"message": {"content": "a \\ud800 b"}, "finish_reason": "stop"}]}')
    assert read_chat(value).text == "a ? b"


def test_waits_double_until_a_minute_and_what_the_server_asks_wins():
    assert [0.25 * 2**n <= wait_seconds(n, None) <= 0.5 * 2**n for n in range(7)] == [True] * 7
    assert wait_seconds(50, None) <= 60
    assert 10 <= wait_seconds(0, 10.0) <= 11
    assert retry_after("1.5") == 1.5
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after("soon") is None
