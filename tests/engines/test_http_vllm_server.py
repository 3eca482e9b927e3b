"""The http engine against the real vLLM API server."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from generation.engines.base import Completion, Request, Sampling
from generation.engines.build import build_engine
from generation.engines.config import HttpEngine
from generation.errors import EngineDeadError
from generation.flows import Flow, FlowCall
from generation.pump import Pump
from tests.engines.models import story_model

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    model = story_model()
    if model is None:
        pytest.skip("PSI_SHARED_DIR has no models/stories260K")
    folder = tmp_path_factory.mktemp("server")
    (folder / "chat.jinja").write_text(TEMPLATE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {
        "--model": str(model), "--served-model-name": "stories", "--host": "127.0.0.1", "--port": str(port),
        "--chat-template": str(folder / "chat.jinja"), "--max-model-len": "256", "--max-num-seqs": "16",
        "--kv-cache-memory-bytes": str(2**26), "--gpu-memory-utilization": "0.2", "--dtype": "float32",
        "--api-key": "test-key",
    }  # fmt: skip
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager"]
    environment = {**os.environ, "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    with (folder / "log").open("w") as log:
        arguments = [*command, *(part for option in options.items() for part in option)]
        process = subprocess.Popen(arguments, env=environment, stdout=log, stderr=log)
    try:
        wait_until_healthy(f"http://127.0.0.1:{port}/health", process, folder / "log")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(300)


def wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    while process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5)
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
        else:
            return
    pytest.fail(log.read_text()[-3000:])


def ask(prefix: str, text: str, limit: int) -> Flow:
    return (yield Request(prefix, text, Sampling(limit, temperature=0.8), "mine"))


def answers(url: str, calls: list[FlowCall], **settings: object) -> list[Completion]:
    config = {"kind": "http", "url": url, "model": "stories", "api_key_env": "TEST_KEY", **settings}
    pump = Pump(build_engine(HttpEngine.model_validate(config)))
    pump.start()
    try:
        return [result.value for result in pump.ask(calls)]
    finally:
        pump.stop()


def test_a_real_server_answers_refuses_and_rejects(server: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TEST_KEY", "test-key")
    calls = [FlowCall(str(i), ask, ("Once upon a time there was ", f"a dog number {i}.", 12)) for i in range(40)]
    completions = answers(server, [*calls, FlowCall("long", ask, ("x " * 400, "y", 12))], max_in_flight=8)
    assert {completion.finish for completion in completions[:-1]} <= {"stop", "length"}
    assert all(completion.prompt_tokens > 5 and 0 < completion.output_tokens <= 12 for completion in completions[:-1])
    assert len({completion.text for completion in completions[:-1]}) > 10
    assert completions[-1].finish == "error"
    assert "HTTP 400" in completions[-1].error
    with pytest.raises(EngineDeadError, match="HTTP 404, there is no such model"):
        answers(server, calls[:1], model="another")
    monkeypatch.setenv("TEST_KEY", "wrong")
    with pytest.raises(EngineDeadError, match="HTTP 401, the API key is refused"):
        answers(server, calls[:1])
