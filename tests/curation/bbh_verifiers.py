"""Programs that know the right answers of four BBH tasks, as a recipe would name them: `verifier = "bbh_verifiers.py:word_sorting"`.

The standard library alone, since a verifier's process holds nothing of PSI. They return the right answer; what is no input of the task
raises, and is so rejected.
"""

import re

_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_VALUES = {"a": 1, "an": 1} | {word: place for place, word in enumerate(_NUMBERS, start=1)}
_PLURALS = {"mice": "mouse", "couches": "couch", "peaches": "peach", "potatoes": "potato"}
_KINDS = {
    "musical instruments": "accordion clarinet drum flute piano trombone trumpet violin",
    "fruits": "apple banana blackberry grape nectarine orange peach plum raspberry strawberry",
    "animals": "bear cat chicken cow dog donkey duck fish frog goat mouse pig rabbit snail snake",
    "vegetables": "broccoli cabbage carrot cauliflower celery garlic lettuce onion potato yam",
}


def boolean_expressions(text: str, answer: str) -> str:
    """`not ( True ) and ( True ) is`."""
    expression = _matched(r"((?:True|False|and|or|not|[()\s])+) is", text)
    return str(eval(expression))


def multistep_arithmetic_two(text: str, answer: str) -> str:
    """`((-1 + 2 + 9 * 5) - (-2 + -4 + -4 * -7)) =`."""
    expression = _matched(r"([-+*()\d\s]+) =", text)
    if "**" in expression:
        raise ValueError("a power")
    return str(eval(expression))


def word_sorting(text: str, answer: str) -> str:
    """`Sort the following words alphabetically: List: syndrome therefrom`."""
    return " ".join(sorted(_matched(r"Sort the following words alphabetically: List: (.+)", text).split()))


def object_counting(text: str, answer: str) -> str:
    """`I have a flute, a piano, and four stoves. How many musical instruments do I have?`."""
    things = _matched(r"I have (.+)\. How many [\w ]+ do I have\?", text)
    kind = _matched(r".*How many ([\w ]+) do I have\?", text)
    total = 0
    for thing in re.split(r",? and |, ", things):
        number, _, name = thing.partition(" ")
        total += _VALUES[number] if kind == "objects" or _is_kind(name, kind) else 0
    return str(total)


def _is_kind(name: str, kind: str) -> bool:
    wanted = _KINDS[kind].split()
    words = (_PLURALS.get(word, word) for word in name.split())
    return any({word, word.removesuffix("s"), re.sub("ies$", "y", word)} & set(wanted) for word in words)


def _matched(pattern: str, text: str) -> str:
    found = re.fullmatch(pattern, text)
    if found is None:
        raise ValueError("not an input of the task")
    return found[1]
