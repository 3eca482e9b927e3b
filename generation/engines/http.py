# ruff: noqa: A005 - named after its engine kind; imports here are absolute, so the standard http stays reachable
"""The HTTP engine: any OpenAI-compatible chat endpoint. The only file that imports the HTTP client.

An event loop in a thread of its own makes the calls; the engine's methods only exchange values with it.
"""

import asyncio
import os
import queue
import threading
import time
from collections.abc import Sequence
from typing import Any

import httpx

from generation.engines.base import Completion, EngineStats, Finished, Prepared, Request
from generation.engines.chat_api import chat_body, may_retry, read_chat, refused, retry_after, wait_seconds
from generation.engines.config import HttpEngine
from generation.engines.tally import Tally
from generation.errors import EngineDeadError, EngineError, RequestError

_STEP_SECONDS = 0.05
"""How long a step waits for an answer before it gives the caller a chance to add more."""

_FATAL = {
    401: "the API key is refused",
    403: "access is forbidden",
    404: "there is no such model or path",
}


class HttpModel:
    """An `Engine` that asks a server."""

    def __init__(self, config: HttpEngine) -> None:
        self.max_in_flight = config.max_in_flight
        self._config = config
        self._tally = Tally()
        self._unfinished: dict[int, tuple[Prepared, asyncio.Task[None]]] = {}
        self._answers: queue.SimpleQueue[tuple[int, Completion]] = queue.SimpleQueue()
        self._dead: str | None = None
        self._key = ""
        self._next_slot = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._client: httpx.AsyncClient | None = None
        self._slots = asyncio.Semaphore(config.max_in_flight)

    def start(self) -> None:
        """Open the client. No request is made.

        Raises:
            EngineError: The environment variable that the recipe names for the key is not set.
        """
        config = self._config
        if config.api_key_env is not None:
            self._key = os.environ.get(config.api_key_env, "")
            if not self._key:
                raise EngineError(f"endpoint {config.url}: environment variable {config.api_key_env} is not set")
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        limits = httpx.Limits(max_connections=config.max_in_flight, max_keepalive_connections=config.max_in_flight)
        self._client = httpx.AsyncClient(headers=headers, timeout=config.timeout_seconds, limits=limits)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="psi-http", daemon=True)
        self._thread.start()

    def prepare(self, request: Request) -> Prepared:
        """Build the JSON body. Prompt tokens are estimated as characters / 3.

        Raises:
            RequestError: The prompt is empty.
        """
        content = request.prefix + request.text
        if not content:
            raise RequestError("the prompt is empty")
        return Prepared(request, -(-len(content) // 3), chat_body(self._config.model, request))

    def add(self, request_id: int, prepared: Prepared) -> None:
        """Send a request as soon as a slot and the rate limit allow."""
        if self._loop is None:
            raise EngineDeadError(f"endpoint {self._config.url}: the engine is not started")
        future = asyncio.run_coroutine_threadsafe(self._spawn(request_id, prepared.payload), self._loop)
        self._unfinished[request_id] = (prepared, future.result())

    def step(self) -> list[Finished]:
        """Wait a moment for answers.

        Raises:
            EngineDeadError: The endpoint refuses this client, or cannot be reached any more.
        """
        answers: list[tuple[int, Completion]] = []
        try:
            answers.append(self._answers.get(timeout=_STEP_SECONDS))
            while True:
                answers.append(self._answers.get_nowait())
        except queue.Empty:
            pass
        if self._dead is not None:
            raise EngineDeadError(self._dead)
        finished = [self._finish(request_id, completion) for request_id, completion in answers]
        self._tally.stepped(len(self._unfinished))
        return [one for one in finished if one is not None]

    def decode(self, finished: Sequence[Finished]) -> list[Completion]:
        """The answers."""
        return [one.payload for one in finished]

    def abort(self, request_ids: Sequence[int]) -> None:
        """Forget requests; their connections are closed."""
        for request_id in request_ids:
            found = self._unfinished.pop(request_id, None)
            if found is not None and self._loop is not None:
                self._loop.call_soon_threadsafe(found[1].cancel)

    def stats(self) -> EngineStats:
        """Counters so far, as the server reports tokens."""
        return self._tally.stats()

    def close(self) -> None:
        """Drop what is unfinished and close the connections."""
        self.abort(list(self._unfinished))
        loop, self._loop = self._loop, None
        if loop is None or self._thread is None or self._client is None:
            return
        asyncio.run_coroutine_threadsafe(self._client.aclose(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        self._thread.join()
        loop.close()

    def _finish(self, request_id: int, completion: Completion) -> Finished | None:
        found = self._unfinished.pop(request_id, None)
        if found is None:
            return None
        self._tally.finished(found[0], completion.prompt_tokens, completion.cached_tokens, completion.output_tokens)
        return Finished(request_id, completion)

    async def _spawn(self, request_id: int, body: dict[str, Any]) -> asyncio.Task[None]:
        return asyncio.create_task(self._answer(request_id, body))

    async def _answer(self, request_id: int, body: dict[str, Any]) -> None:
        async with self._slots:
            try:
                completion = await self._ask(body)
            except Exception as error:  # noqa: BLE001 - a lost request would leave its flow waiting for ever
                completion = refused(f"{type(error).__name__}: {self._safe(str(error))}")
        self._answers.put((request_id, completion))

    async def _ask(self, body: dict[str, Any]) -> Completion:
        assert self._client is not None
        url, last = f"{self._config.url.rstrip('/')}/chat/completions", ""
        unreachable = True
        for attempt in range(self._config.max_retries + 1):
            await self._rate_limit()
            asked: float | None = None
            try:
                response = await self._client.post(url, json=body)
            except httpx.TransportError as error:
                last = f"{type(error).__name__}: {error}"
                unreachable = unreachable and isinstance(error, httpx.ConnectError)
            else:
                unreachable = False
                if not may_retry(response.status_code):
                    return self._read(response)
                last = f"HTTP {response.status_code}: {self._safe(response.text)}"
                asked = retry_after(response.headers.get("retry-after"))
            if attempt < self._config.max_retries:
                await asyncio.sleep(wait_seconds(attempt, asked))
        if unreachable:
            self._dead = f"endpoint {url} cannot be reached: {last}"
        return refused(f"{self._config.max_retries + 1} attempts failed, last: {last}")

    def _read(self, response: httpx.Response) -> Completion:
        status = response.status_code
        if status in _FATAL:
            key = f" (key from {self._config.api_key_env})" if self._config.api_key_env else ""
            self._dead = (
                f"endpoint {self._config.url}, model {self._config.model}: HTTP {status}, {_FATAL[status]}{key}"
            )
            return refused(self._dead)
        if status != 200:
            return refused(f"HTTP {status}: {self._safe(response.text)}")
        try:
            return read_chat(response.json())
        except ValueError:
            return refused(f"not JSON: {self._safe(response.text)}")

    async def _rate_limit(self) -> None:
        if self._config.requests_per_minute is None:
            return
        now = time.monotonic()
        slot = max(now, self._next_slot)
        self._next_slot = slot + 60 / self._config.requests_per_minute
        await asyncio.sleep(slot - now)

    def _safe(self, text: str) -> str:
        return (text.replace(self._key, "***") if self._key else text)[:500]
