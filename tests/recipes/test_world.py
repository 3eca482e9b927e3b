import itertools
import json
import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from recipes.miniature.tokens import CHARACTERS, WORDS, build_tokenizer
from recipes.miniature.world import (
    FUNCTIONS,
    LETTERS,
    SPLIT,
    TASKS,
    Rule,
    apply,
    document,
    oracle,
    parse_rule,
    random_word,
    trace,
)

FOLDER = Path(__file__).parents[2] / "recipes/miniature"
MODELS = ("small", "large")
MAX_WEIGHT_BYTES = 12e6
RULE_LINE = re.compile(r"P: (?!len )(.+)")
TOKENIZER = build_tokenizer()


def adjacent(rule: Rule) -> set[Rule]:
    return set(itertools.pairwise(rule))


def rules_of(turns: list[tuple[str, str]]) -> list[Rule]:
    """Every rule that a conversation names: those that the user gives, and those that the assistant finds."""
    texts = [text for user, _ in turns for text in RULE_LINE.findall(user)]
    texts += [answer for user, answer in turns if user.endswith("rule")]
    rules = [parse_rule(text) for text in texts]
    assert None not in rules
    return [rule for rule in rules if rule]


def meaning(rule: Rule) -> tuple[str, ...]:
    rng = random.Random(7)
    return tuple(apply(rule, random_word(rng, 3, 8)) for _ in range(200))


def test_no_rule_that_pretraining_can_draw_holds_a_held_out_pair() -> None:
    held_out = set(SPLIT.held_out)
    assert len(held_out) >= 30
    drawable = [*SPLIT.singles, *SPLIT.pairs, *SPLIT.triples]
    assert [rule for rule in drawable if adjacent(rule) & held_out] == []
    assert {len(rule) for rule in drawable} == {1, 2, 3}
    assert set(SPLIT.pairs) | held_out == set(itertools.permutations(FUNCTIONS, 2))


@pytest.mark.parametrize("large", [False, True], ids=MODELS)
def test_five_thousand_documents_name_no_held_out_pair(large: bool) -> None:
    rng, held_out = random.Random(3), set(SPLIT.held_out)
    named = [rule for _ in range(5000) for rule in rules_of(document(rng, large))]
    assert len(named) > 3000
    assert [rule for rule in named if adjacent(rule) & held_out] == []
    assert {len(rule) for rule in named} == {1, 2, 3}


def test_no_seen_rule_of_two_functions_or_fewer_computes_what_a_held_out_pair_does() -> None:
    seen = {meaning(rule) for rule in [*SPLIT.singles, *SPLIT.pairs]}
    assert [rule for rule in SPLIT.held_out if meaning(rule) in seen] == []


def test_the_tasks_are_held_out_pairs_and_their_files_tell_the_truth() -> None:
    assert set(TASKS.values()) <= set(SPLIT.held_out)
    for task in TASKS:
        seeds, held_out = (
            [json.loads(line) for line in (FOLDER / part / f"{task}.jsonl").read_text().splitlines()]
            for part in ("seeds", "evaluation")
        )
        assert all(row["output"] == oracle(task, row["input"]) for row in [*seeds, *held_out])
        inputs = [row["input"] for row in [*seeds, *held_out]]
        assert len(set(inputs)) == len(inputs)


@given(st.sampled_from(sorted(FUNCTIONS)), st.sampled_from(sorted(FUNCTIONS)), st.text(LETTERS, min_size=3, max_size=8))
def test_a_rule_applies_its_functions_one_after_the_other(first: str, second: str, word: str) -> None:
    steps = trace((first, second), word)
    assert steps == [FUNCTIONS[first](word), FUNCTIONS[second](FUNCTIONS[first](word))]
    assert steps[-1] == apply((first, second), word)
    assert set(steps[-1]) <= set(LETTERS)


@given(st.lists(st.sampled_from([*WORDS, *CHARACTERS]), max_size=40).map("".join))
def test_any_text_comes_back_from_the_tokenizer(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    assert TOKENIZER.unk_token_id not in ids
    assert TOKENIZER.decode(ids) == text


@pytest.mark.parametrize("model", MODELS)
def test_the_committed_tokenizer_is_the_one_that_the_code_builds(model: str) -> None:
    committed = AutoTokenizer.from_pretrained(FOLDER / "models" / model)
    assert committed.get_vocab() == TOKENIZER.get_vocab()
    chat = [{"role": "user", "content": "P: sort; reverse\nsolve badc"}, {"role": "assistant", "content": "abcd>dcba"}]
    for tokenizer in (committed, TOKENIZER):
        text = "<bos><|user|>P: sort; reverse\nsolve badc<|assistant|>abcd>dcba<eos>"
        assert tokenizer.apply_chat_template(chat, tokenize=False) == text


def test_the_weights_of_both_models_are_small_enough_to_be_committed() -> None:
    sizes = [path.stat().st_size for path in FOLDER.glob("models/*/*.safetensors")]
    assert len(sizes) == len(MODELS)
    assert sum(sizes) <= MAX_WEIGHT_BYTES
