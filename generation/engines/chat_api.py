"""What an OpenAI-compatible chat endpoint is asked and answers, as plain values: no client, no I/O."""

import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from generation.engines.base import Completion, FinishReason, Request

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0


def chat_body(model: str, request: Request) -> dict[str, Any]:
    """The JSON body of a request."""
    return {
        "model": model,
        "messages": [{"role": "user", "content": request.prefix + request.text}],
        "max_tokens": request.sampling.max_output_tokens,
        "temperature": request.sampling.temperature,
        "top_p": request.sampling.top_p,
    }


def refused(error: str) -> Completion:
    """The completion of a request that the endpoint did not answer."""
    return Completion("", "error", error=error)


def read_chat(value: Any) -> Completion:
    """The completion in a decoded JSON answer; finish `error` where there is none."""
    try:
        choice: dict[str, Any] = value["choices"][0]
        text, reason = choice["message"].get("content") or "", choice.get("finish_reason")
        usage: dict[str, Any] = value.get("usage") or {}
        details: dict[str, Any] = usage.get("prompt_tokens_details") or {}
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        return refused(f"not a chat completion: {type(error).__name__}: {error}")
    finish: FinishReason = reason if reason in ("stop", "length") else "error"
    error = f"the endpoint ended the request with '{reason}'" if finish == "error" else ""
    # JSON may hold half of a surrogate pair, which no file of ours can.
    readable = text.encode("utf-8", "replace").decode()
    return Completion(
        "" if error else readable,
        finish,
        int(usage.get("prompt_tokens") or 0),
        int(details.get("cached_tokens") or 0),
        int(usage.get("completion_tokens") or 0),
        error,
    )


def may_retry(status: int) -> bool:
    """Whether a request with this HTTP status may succeed later."""
    return status in (408, 429) or status >= 500


def retry_after(value: str | None) -> float | None:
    """Seconds that a `Retry-After` header asks for (a number or an HTTP date), or None."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def wait_seconds(attempt: int, asked: float | None) -> float:
    """Exponential back-off with jitter; what the server asks for wins, plus at most a tenth."""
    if asked is not None:
        return asked * random.uniform(1.0, 1.1)
    return min(_LONGEST_WAIT, _FIRST_WAIT * 2**attempt) * random.uniform(0.5, 1.0)
