"""The journal of large-model completions: each is written before it is used, so that no restart pays for it twice.

Works in any process that reaches the run folder. Knows nothing of what the completions say.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from generation.engines.base import Completion, Request
from generation.engines.tally import COUNTS
from generation.flows import Flow, FlowCall, FlowPool, FlowResult
from generation.storage import Store, digest, json_bytes, json_lines

FOLDER = "journal"


@dataclass(frozen=True, slots=True)
class Journal:
    """The `journal` folder of a run. Pickles as the run's `Store`.

    Attributes:
        store: The run folder.
    """

    store: Store

    def find(self, entry: str) -> Completion | None:
        """The completion that was written under an entry id, or None."""
        path = f"{FOLDER}/{entry}.jsonl"
        return Completion(**self.store.read_lines(path)[0]["completion"]) if self.store.exists(path) else None

    def record(self, entry: str, key: str, request: Request, completion: Completion) -> Completion:
        """Write a completion for good; returns the one that counts, which is another's if that was written first.

        A refused request is not written: it cost nothing and may succeed after a restart.
        """
        if completion.finish == "error":
            return completion
        line: dict[str, Any] = {"key": key, "stage": request.stage, "completion": asdict(completion)}
        try:
            self.store.write_new(f"{FOLDER}/{entry}.jsonl", json_lines([line]))
        except FileExistsError:
            return self.find(entry) or completion
        return completion

    def counts(self, stage: str) -> dict[str, int]:
        """`requests`, `prompt_tokens`, `cached_tokens` and `output_tokens` of all completions of a stage, over all restarts."""
        totals: dict[str, int] = dict.fromkeys(COUNTS, 0)
        for name in self.store.names(FOLDER):
            for line in self.store.read_lines(f"{FOLDER}/{name}"):
                if line["stage"] == stage:
                    for kind in totals:
                        totals[kind] += 1 if kind == "requests" else line["completion"][kind]
        return totals

    def tokens(self, stage: str) -> int:
        """Prompt plus output tokens of all completions of a stage, over all restarts."""
        counts = self.counts(stage)
        return counts["prompt_tokens"] + counts["output_tokens"]

    def replay(self, call: FlowCall) -> FlowResult | None:
        """How a flow ends on journalled completions alone; None where it would have to ask a model."""
        pool = FlowPool()
        asked = pool.start(FlowCall(call.key, journalled, (call, self)))
        return None if asked else pool.take_ended()[0][1]


def journalled(call: FlowCall, journal: Journal) -> Flow:
    """The flow of `call`, with each completion taken from the journal where it is there, and written to it before the flow sees it.

    An entry is named by the flow's key, the request's place in the flow and all of the request, so that a changed prompt is asked anew.
    """
    flow = call.start()
    answers: Any = None
    place = 0
    while True:
        try:
            wanted = flow.send(answers)
        except StopIteration as stop:
            return stop.value
        requests = [wanted] if isinstance(wanted, Request) else list(wanted)
        entries = [_entry(call.key, place + i, request) for i, request in enumerate(requests)]
        place += len(requests)
        completions = yield from _completed(call.key, entries, requests, journal)
        answers = completions[0] if isinstance(wanted, Request) else completions


def _completed(key: str, entries: Sequence[str], requests: Sequence[Request], journal: Journal) -> Flow:
    found = {entry: journal.find(entry) for entry in entries}
    missing = [i for i, entry in enumerate(entries) if found[entry] is None]
    answers: list[Completion] = (yield [requests[i] for i in missing]) if missing else []
    for i, answer in zip(missing, answers, strict=True):
        found[entries[i]] = journal.record(entries[i], key, requests[i], answer)
    return [found[entry] for entry in entries]


def _entry(key: str, place: int, request: Request) -> str:
    return digest(key, str(place), json_bytes(asdict(request)).decode())
