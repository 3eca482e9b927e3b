"""Reading completions by the patterns of a prompt set: the input in a draft, the answer in an answer. Knows no engine."""

import re

from generation.answers import extract_answer
from generation.config import AnswerConfig
from generation.engines.base import Completion
from generation.errors import Reject
from generation.prompts.prompt_set import PromptSet


def parse_draft(draft: Completion, prompts: PromptSet, num_principles: int) -> str:
    """The drafted input, without citations of principles.

    Args:
        draft: What the model wrote.
        prompts: The prompt set that it was asked with.
        num_principles: Principles in the draft prompt; a draft may cite numbers 1 to this.

    Raises:
        Reject: `engine` when the request was refused, `length` when the draft was cut, `parse` when it does not hold exactly one input.
    """
    if draft.finish == "error":
        raise Reject("engine", "draft refused")
    if draft.finish == "length":
        raise Reject("length", "draft cut")
    text = _without_citations(draft.text, prompts, num_principles)
    found = [match["input"].strip() for match in prompts.pattern("input").finditer(text)]
    if not found:
        raise Reject("parse", "no input")
    if len(found) > 1:
        raise Reject("parse", "several inputs")
    if not found[0]:
        raise Reject("parse", "empty input")
    return found[0]


def read_answer(text: str, prompts: PromptSet, config: AnswerConfig) -> str | None:
    """The canonical answer in a completion, by the last match of the prompt set's `answer`; None where there is none."""
    matches = list(prompts.pattern("answer").finditer(strip_citations(text, prompts)))
    return extract_answer(config, matches[-1]["answer"].strip()) if matches else None


def strip_citations(text: str, prompts: PromptSet) -> str:
    """The text without the prompt set's `used` passages and the space around it."""
    return (prompts.pattern("used").sub("", text) if prompts.has_pattern("used") else text).strip()


def _without_citations(text: str, prompts: PromptSet, num_principles: int) -> str:
    if not prompts.has_pattern("used"):
        return text.strip()
    cited = [
        int(number) for match in prompts.pattern("used").finditer(text) for number in re.findall(r"\d+", match["ids"])
    ]
    if any(not 1 <= number <= num_principles for number in cited):
        raise Reject("parse", "cites an unknown principle")
    return strip_citations(text, prompts)
