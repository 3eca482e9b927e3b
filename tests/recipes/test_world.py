import itertools
import json
import math
import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import AutoTokenizer

from recipes.miniature.corpus import MAX_EXAMPLES, MIXES, document, induce_document
from recipes.miniature.make_tasks import EVALUATION, LENGTHS, SEEDS
from recipes.miniature.tokens import CHARACTERS, WORDS, build_tokenizer
from recipes.miniature.world import (
    FUNCTIONS,
    HELD_OUT_PAIRS,
    LETTERS,
    SPLIT,
    TASKS,
    Rule,
    apply,
    draw_split,
    draw_tasks,
    oracle,
    parse_rule,
    random_word,
    trace,
)

FOLDER = Path(__file__).parents[2] / "recipes/miniature"
MODELS = ("small", "large")
MAX_WEIGHT_BYTES = 12e6
MIN_RATIO = 8
RULE_LINE = re.compile(r"P: (?!len )(.+)")
EXAMPLE_LINE = re.compile(r"^([a-j]+)>([a-j>]*)(?: not ([a-j]*))?$", re.MULTILINE)
TOKENIZER = build_tokenizer()
DRAWABLE = (*SPLIT.singles, *SPLIT.pairs, *SPLIT.triples)


def adjacent(rule: Rule) -> set[Rule]:
    return set(itertools.pairwise(rule))


def rules_of(turns: list[tuple[str, str]]) -> list[Rule]:
    """Every rule that a conversation names: those that the user gives, and those that the assistant finds."""
    texts = [text for user, _ in turns for text in RULE_LINE.findall(user)]
    texts += [answer for user, answer in turns if user.endswith("rule")]
    rules = [parse_rule(text) for text in texts]
    assert None not in rules
    return [rule for rule in rules if rule]


def computed(rule: Rule, words: list[str]) -> tuple[str, ...]:
    return tuple(apply(rule, word) for word in words)


def probe_words(count: int) -> list[str]:
    """Other words than those that the split was drawn with, and of more lengths."""
    rng = random.Random(7)
    return [random_word(rng, 3, 8) for _ in range(count)]


def test_no_rule_that_pretraining_can_draw_holds_a_held_out_pair_or_is_a_task() -> None:
    held_out = set(SPLIT.held_out)
    assert len(FUNCTIONS) >= 14
    assert len(held_out) >= HELD_OUT_PAIRS
    assert [rule for rule in DRAWABLE if adjacent(rule) & held_out] == []
    assert {len(rule) for rule in DRAWABLE} == {1, 2, 3}
    assert set(SPLIT.pairs) | held_out == set(itertools.permutations(FUNCTIONS, 2))
    assert set(TASKS.values()) & set(DRAWABLE) == set()
    assert all(adjacent(rule) & held_out for rule in TASKS.values())


def test_the_split_and_the_tasks_follow_from_their_seed_alone() -> None:
    assert draw_split() == SPLIT
    assert draw_tasks(SPLIT) == TASKS
    assert [len(rule) for rule in TASKS.values()] == [2, 2, 2, 2, 3, 3, 3, 3]


def test_no_seen_rule_computes_what_a_held_out_pair_or_a_task_does() -> None:
    words = probe_words(100)
    short = {computed(rule, words) for rule in [*SPLIT.singles, *SPLIT.pairs]}
    assert [rule for rule in SPLIT.held_out if computed(rule, words) in short] == []
    every = short | {computed(rule, words) for rule in SPLIT.triples}
    assert [rule for rule in TASKS.values() if len(rule) == 3 and computed(rule, words) in every] == []


@pytest.mark.parametrize("model", MODELS)
def test_five_thousand_documents_follow_and_show_seen_rules_only(model: str) -> None:
    rng, drawable = random.Random(3), set(DRAWABLE)
    documents = [document(rng, MIXES[model]) for _ in range(5000)]
    named = [rule for turns in documents for rule in rules_of(turns)]
    assert len(named) > 3000
    assert set(named) <= drawable
    assert {len(rule) for rule in named} == {1, 2, 3}
    shown = [EXAMPLE_LINE.findall(turns[0][0]) for turns in documents]
    assert max(map(len, shown)) == MAX_EXAMPLES
    induced = sum(turns[0][0].endswith(("rule", "words")) for turns in documents) / len(documents)
    assert induced == pytest.approx(MIXES[model].induce, abs=0.03)


def test_examples_and_even_wrong_answers_come_from_seen_rules() -> None:
    rng = random.Random(5)
    drawable, wrong_ones = set(DRAWABLE), 0
    for _ in range(1000):
        ((asked, found),) = induce_document(rng)
        rule = parse_rule(found)
        for word, steps, wrong in EXAMPLE_LINE.findall(asked):
            assert rule is None or steps == ">".join(trace(rule, word))
            if " not " in asked and rule:
                one_away = {(*rule[:i], name, *rule[i + 1 :]) for i in range(len(rule)) for name in FUNCTIONS}
                assert wrong in {apply(other, word) for other in one_away & drawable}
                wrong_ones += 1
    assert wrong_ones > 300


@pytest.mark.parametrize("task", TASKS)
def test_the_files_of_the_tasks_tell_the_truth_step_by_step(task: str) -> None:
    seeds, held_out = (
        [json.loads(line) for line in (FOLDER / part / f"{task}.jsonl").read_text().splitlines()]
        for part in ("seeds", "evaluation")
    )
    assert (len(seeds), len(held_out)) == (SEEDS, EVALUATION)
    rows = [*seeds, *held_out]
    assert all(row["output"] == oracle(task, row["input"]) for row in rows)
    assert all(row["steps"] == ">".join(trace(TASKS[task], row["input"])) for row in rows)
    inputs = [row["input"] for row in rows]
    assert len(set(inputs)) == len(inputs)
    assert (min(map(len, inputs)), max(map(len, inputs))) in LENGTHS


def test_there_are_files_of_the_tasks_and_of_nothing_else() -> None:
    for part in ("seeds", "evaluation"):
        assert {path.stem for path in (FOLDER / part).iterdir()} == set(TASKS)


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


def test_the_large_model_has_eight_times_the_parameters_and_both_are_small_enough_to_be_committed() -> None:
    counts: dict[str, int] = {}
    for model in MODELS:
        with safe_open(FOLDER / f"models/{model}/model.safetensors", framework="numpy") as weights:
            counts[model] = sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    assert counts["large"] >= MIN_RATIO * counts["small"]
    assert sum(path.stat().st_size for path in FOLDER.glob("models/*/*.safetensors")) <= MAX_WEIGHT_BYTES
