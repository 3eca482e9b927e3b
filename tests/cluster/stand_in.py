"""The real coordinator on an event loop of its own, and a job that the scripted engine can do."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.coordinator import Coordinator
from cluster.protocol import GenerateJob
from generation.config import AnswerConfig, GenerationConfig, TaskConfig
from generation.engines.config import ScriptedEngine
from generation.instances.flow import InstanceContext
from generation.instances.plan import Bundle, Cell, PlanRecord, even_parts
from generation.manifest import replay
from generation.prompts.prompt_set import load_prompt_set
from generation.rows import Row
from generation.storage import Store
from generation.task import Task
from generation.visible import ShardReader

REPLIES = ("<input>1 + 2?</input> <answer>3</answer>", "<input>2 + 2?</input> <answer>4</answer>", "nothing of use")


def scripted(**settings: Any) -> ScriptedEngine:
    return ScriptedEngine.model_validate({"kind": "scripted", "replies": REPLIES, "max_in_flight": 32, **settings})


def add_job(store: Store, **settings: Any) -> GenerateJob:
    config = TaskConfig(name="t", description="Add.", answer=AnswerConfig(kind="number"), seeds="x")
    prompts = load_prompt_set("chat", Path())
    context = InstanceContext("run", {"t": Task(config, ())}, prompts, GenerationConfig(accepted_rows=1), "model")
    return GenerateJob(store.uri, "run", context, **settings)


def plan_of(units: int, flows_per_unit: int = 8, index: int = 0) -> PlanRecord:
    cells = tuple(Cell(f"c{i}", f"draft {i}") for i in range(12))
    return PlanRecord(
        index,
        "t",
        0,
        Bundle("b", ("p",), "D:", "A:"),
        cells,
        units,
        flows_per_unit,
        even_parts(units * flows_per_unit, 12),
    )


def visible_rows(store: Store) -> dict[str, list[Row]]:
    reader = ShardReader(store)
    return {unit: reader.rows(place) for unit, place in replay(store).state.places.items()}


class LocalCoordinator:
    """Calls the coroutines of a coordinator as a replica's remote handle does."""

    def __init__(self, coordinator: Coordinator, loop: asyncio.AbstractEventLoop) -> None:
        self._coordinator = coordinator
        self._loop = loop

    def __getattr__(self, method: str) -> Any:
        def call(*arguments: Any) -> Any:
            coroutine = getattr(self._coordinator, method)(*arguments)
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

        return call

    def send(self, method: str, *arguments: Any) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(getattr(self._coordinator, method)(*arguments), self._loop)


@contextmanager
def local_coordinator(store: Store, lease_seconds: float = 60.0) -> Iterator[LocalCoordinator]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield LocalCoordinator(Coordinator(store.uri, lease_seconds), loop)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
