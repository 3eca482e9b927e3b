"""What left for endpoints: prompt tokens of private tasks, booked by the driver as it asks, and summed up for the report.

Local engines are asked in processes of the run's own machines, so nothing that they read is sent. Texts are never booked.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa

from cluster.metrics import SessionMetrics
from cluster.recipe import Recipe
from cluster.report_files import RunFiles, read_metrics
from generation.arms import arm_spec
from generation.engines.config import HttpEngine
from generation.flows import FlowResult
from generation.rows import ROW_SCHEMA
from generation.storage import Store
from generation.sweep import ROWS_FOLDER

FOLDER = "privacy"
LOCAL = "local"
_COUNTED = [ROW_SCHEMA.get_field_index(name) for name in ("task", "prompt_tokens")]


class SendBook:
    """Notes in `privacy/*.jsonl` what each ask of the driver sent of private tasks, over all restarts. One thread uses it.

    Args:
        run: The run folder.
        recipe: Says which tasks are private and which pools are endpoints.
    """

    def __init__(self, run: Store, recipe: Recipe) -> None:
        self._began = time.monotonic()
        self._lines = SessionMetrics(run, "asked", datetime.now(UTC), folder=FOLDER)
        self._private = {task.name: task.privacy == "private" for task in recipe.tasks}
        pools = {"large": recipe.pools.large, "small": recipe.pools.small}
        engines = {name: pool.engine for name, pool in pools.items() if pool}
        self._endpoints = {name: host(engine.url) for name, engine in engines.items() if isinstance(engine, HttpEngine)}

    def add(self, pool: str, results: Sequence[FlowResult]) -> None:
        """Book some flows of a pool by their task, which is the second part of their keys: `mine/sentiment/task/0003`."""
        if pool not in self._endpoints:
            return
        sent: Counter[str] = Counter()
        for result in results:
            sent[result.key.split("/")[1]] += result.prompt_tokens
        now, seconds = datetime.now(UTC).isoformat(), round(time.monotonic() - self._began, 3)
        for task, tokens in sent.items():
            if self._private[task] and tokens:
                endpoint = self._endpoints[pool]
                self._lines.book(
                    {"time": now, "seconds": seconds, "endpoint": endpoint, "task": task, "prompt_tokens": tokens}
                )
        self._lines.flush()


def host(url: str) -> str:
    """`models.example:8443` of `https://models.example:8443/v1`: an endpoint as reports name it."""
    return urlsplit(url).netloc or url


def read_private_sends(files: RunFiles) -> dict[str, Any]:
    """The private tasks, and `private_tokens_sent` by endpoint: prompt tokens of theirs in answered requests of all sessions.

    A run's local engines stand there as `local`, which is 0 by construction.
    """
    private = [task["name"] for task in files.settings.get("tasks", []) if task.get("privacy") == "private"]
    pools = {name: _endpoint(pool) for name, pool in files.settings.get("pools", {}).items() if pool}
    sent = Counter(dict.fromkeys(pools.values(), 0))
    for name in files.run.names(FOLDER):
        for line in read_metrics(files.run, f"{FOLDER}/{name}"):
            sent[line["endpoint"]] += line["prompt_tokens"]
    for arm in files.generating_arms if private else []:
        endpoint = pools.get(arm_spec(arm).writer, LOCAL)
        if endpoint != LOCAL:
            sent[endpoint] += _written_tokens(files.folder(arm), private)
    return {"private_tasks": private, "private_tokens_sent": dict(sent)}


def _endpoint(pool: Mapping[str, Any]) -> str:
    engine = pool["engine"]
    return host(engine["url"]) if engine["kind"] == "http" else LOCAL


def _written_tokens(arm: Store, private: Sequence[str]) -> int:
    """Prompt tokens behind the rows of private tasks, rejected ones and those of lost units included. Reads two columns, no text."""
    total = 0
    for name in arm.names(ROWS_FOLDER):
        with arm.filesystem.open_input_file(arm.path(f"{ROWS_FOLDER}/{name}")) as stream:
            options = pa.ipc.IpcReadOptions(included_fields=_COUNTED)
            rows = pa.ipc.open_file(stream, options=options).read_all()
        total += sum(row["prompt_tokens"] for row in rows.to_pylist() if row["task"] in private)
    return total
