"""Reading completions by the patterns of a prompt set: the input in a draft, the answer in an answer. Knows no engine."""

import re

from generation.answers import extract_answer
from generation.config import AnswerConfig
from generation.engines.base import Completion
from generation.errors import Reject
from generation.prompts.prompt_set import PromptSet

_SENTENCE_ENDS = ".!?:"


def parse_draft(draft: Completion, prompts: PromptSet, num_principles: int) -> str:
    """The drafted input, without citations of principles.

    Args:
        draft: What the model wrote.
        prompts: The prompt set that it was asked with.
        num_principles: Principles in the draft prompt; a draft may cite numbers 1 to this.

    Raises:
        Reject: `engine` when the request was refused, `length` when the draft was cut, `parse` when it does not hold exactly one input
            that mentions no principle by its number.
    """
    if draft.finish == "error":
        raise Reject("engine", "draft refused")
    if draft.finish == "length":
        raise Reject("length", "draft cut")
    text = _without_used(draft.text, prompts, num_principles)
    found = [match["input"].strip() for match in prompts.pattern("input").finditer(text)]
    if not found:
        raise Reject("parse", "no input")
    if len(found) > 1:
        raise Reject("parse", "several inputs")
    if not found[0]:
        raise Reject("parse", "empty input")
    if num_principles and prompts.has_pattern("citation") and prompts.pattern("citation").search(found[0]):
        raise Reject("parse", "mentions a principle")
    return found[0]


def read_answer(text: str, prompts: PromptSet, config: AnswerConfig) -> str | None:
    """The canonical answer in a completion, by the last match of the prompt set's `answer`; None where there is none."""
    matches = list(prompts.pattern("answer").finditer(_strip(text, "used", prompts)))
    return extract_answer(config, matches[-1]["answer"].strip()) if matches else None


def strip_citations(text: str, prompts: PromptSet) -> str:
    """The text without the prompt set's `used` passages and `citation` phrases, and without the space around it.

    A sentence that loses its start gets a capital: "According to P2, add first." is "Add first."
    """
    text = _strip(text, "used", prompts)
    if not prompts.has_pattern("citation"):
        return text
    while (match := prompts.pattern("citation").search(text)) and match.group():
        before, after = text[: match.start()], text[match.end() :]
        begins = not before or before.endswith("\n")
        rest = after.lstrip(" ")
        if begins or before.rstrip()[-1:] in _SENTENCE_ENDS:
            rest = rest[:1].upper() + rest[1:]
        text = before + (" " if after.startswith(" ") and not begins else "") + rest
    return text.strip()


def _without_used(text: str, prompts: PromptSet, num_principles: int) -> str:
    if prompts.has_pattern("used"):
        cited = [int(n) for match in prompts.pattern("used").finditer(text) for n in re.findall(r"\d+", match["ids"])]
        if any(not 1 <= number <= num_principles for number in cited):
            raise Reject("parse", "cites an unknown principle")
    return _strip(text, "used", prompts)


def _strip(text: str, name: str, prompts: PromptSet) -> str:
    return (prompts.pattern(name).sub("", text) if prompts.has_pattern(name) else text).strip()
