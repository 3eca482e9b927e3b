"""Texts to curate, and what is planted among them: copies of them that were changed less or more."""

import json
import random
import re
from collections.abc import Callable, Mapping
from pathlib import Path

_NUMBER = re.compile(r"\d+")
_NAME = re.compile(r"\b[A-Z][a-z]{2,}\b")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_SYNONYMS = {
    "how many": "what number of", "how much": "what amount of", "each": "every", "has": "owns", "have": "own", "had": "used to own",
    "and": "as well as", "buys": "gets", "bought": "got", "gives": "hands", "gave": "handed", "makes": "produces", "then": "afterwards",
    "if": "given that", "total": "sum", "in all": "overall", "left": "remaining", "more than": "above", "less than": "below",
    "also": "too", "takes": "needs", "costs": "is priced at", "the": "this", "a": "one", "an": "one", "of": "out of", "for": "during",
    "is": "happens to be", "are": "happen to be", "write": "compose", "following": "given", "with": "using", "that": "which",
    "you": "one", "your": "a", "list": "set", "what": "which thing", "to": "in order to",
}  # fmt: skip


def verbatim(text: str, _: random.Random) -> str:
    """The same but for case and spaces."""
    return f"  {text.upper()} "


def wrapped(text: str, _: random.Random) -> str:
    """The same in the middle of something else."""
    return f"Here is another one for you. {text} Explain your steps."


def renumbered(text: str, rng: random.Random) -> str:
    """All numbers changed."""
    return _NUMBER.sub(lambda found: str(int(found[0]) + rng.randint(1, 9)), text)


def near_duplicate(text: str, rng: random.Random) -> str:
    """One word changed."""
    words = text.split()
    words[rng.randrange(len(words))] = "something"
    return " ".join(words)


def renamed(text: str, _: random.Random) -> str:
    """All capitalised words changed, and all numbers."""
    return _NAME.sub(lambda found: f"Qu{found[0][1:]}", renumbered(text, random.Random(0)))


def paraphrased(text: str, _: random.Random) -> str:
    """Sentences in the opposite order, and common words replaced by others: what a light human paraphrase does, without its taste."""
    turned = " ".join(reversed(_SENTENCE_END.split(text.strip())))
    pattern = re.compile(rf"\b({'|'.join(sorted(_SYNONYMS, key=len, reverse=True))})\b", re.IGNORECASE)
    return pattern.sub(lambda found: _SYNONYMS[found[0].lower()], turned)


KINDS: Mapping[str, Callable[[str, random.Random], str]] = {
    function.__name__: function for function in (verbatim, wrapped, renumbered, near_duplicate, renamed, paraphrased)
}


def sources(shared: Path, count: int) -> dict[str, list[str]]:
    """Name of each source that is there -> up to `count` different texts in a fixed random order; `made` is always there."""
    texts = {"made": made_texts(count)}
    for name, read in (("gsm8k", _gsm8k), ("self_instruct", _self_instruct)):
        folder = shared / "data" / name
        if folder.is_dir():
            found = sorted(dict.fromkeys(read(folder)))
            texts[name] = random.Random(0).sample(found, min(count, len(found)))
    return texts


def made_texts(count: int) -> list[str]:
    """Small stories with numbers, of words that mean nothing, in sentences as long as in a school book."""
    rng = random.Random(1)
    vocabulary = [
        "".join(rng.choice(("ka", "lo", "mi", "ren", "su", "tor", "vi", "zan")) for _ in range(3)) for _ in range(900)
    ]
    return [_story(rng, vocabulary) for _ in range(count)]


def _story(rng: random.Random, vocabulary: list[str]) -> str:
    name = rng.choice(vocabulary).capitalize()
    said = [name]
    for _ in range(rng.randint(2, 4)):
        said += [
            *rng.choices(vocabulary, k=rng.randint(4, 7)),
            str(rng.randint(2, 90)),
            *rng.choices(vocabulary, k=2),
            "and",
            "the",
        ]
        said += [f"{rng.choice(vocabulary)}."]
    return " ".join([*said, "How many", rng.choice(vocabulary), "has", f"{name} in all?"])


def _gsm8k(folder: Path) -> list[str]:
    lines = (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["question"] for line in lines]


def _self_instruct(folder: Path) -> list[str]:
    tasks = [json.loads(line) for line in (folder / "seed_tasks.jsonl").read_text(encoding="utf-8").splitlines()]
    return [f"{task['instruction']} {task['instances'][0]['input']}".strip() for task in tasks]
