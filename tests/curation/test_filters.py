import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from generation.config import AnswerConfig, TaskConfig
from generation.curation.copies import CopyFinder
from generation.curation.filters import label_reason, special_tokens, token_set
from generation.curation.text import input_key, ngram_hashes, read_input, run_hashes, word_hashes
from generation.rows import Row
from generation.task import Task

LETTERS = "How many letters {} are in the word {} ?"
WORDS = ["apple", "banana", "cherry", "damson", "elder", "fig", "grape", "hazel", "iris", "juniper"]


def row(answer: str) -> Row:
    return Row("id", "000000-000000", 0, "t", "instance", input="a b c", answer=answer)


def choice_task() -> Task:
    answer = AnswerConfig(kind="choice", labels=("yes", "no"))
    return Task(TaskConfig(name="t", description="d", answer=answer, seeds="seeds.jsonl"), ())


@given(st.text(st.characters(codec="utf-8")))
def test_the_key_ignores_case_width_and_white_space_and_normalising_twice_changes_nothing(text: str) -> None:
    once = read_input(text)
    assert once.key == input_key(text) == input_key(f"  {text}\n")
    assert read_input(once.normalised).words == once.words or input_key(once.normalised) != once.key


def test_words_lose_the_punctuation_at_their_edges_but_punctuation_alone_stays() -> None:
    assert read_input("( 3 + 4 ) * 2.").words == ("(", "3", "+", "4", ")", "*", "2")
    assert read_input("“Don't”, she said: (no)!").words == ("don't", "she", "said", "no")


def test_text_without_spaces_between_words_is_cut_into_signs() -> None:
    assert read_input("猫が好き ok").words == ("猫", "が", "好", "き", "ok")


@given(st.lists(st.sampled_from(WORDS), max_size=70), st.integers(0, 75))
def test_the_hash_of_a_run_is_a_polynomial_of_those_of_its_words(words: list[str], length: int) -> None:
    hashes, factor = word_hashes(words), 0x9E3779B97F4A7C15
    runs = [hashes[start : start + length] for start in range(len(words) - length + 1)] if length else []
    expected = [sum(one * factor**power for power, one in enumerate(reversed(run))) % 2**64 for run in runs]
    assert ngram_hashes(words, length).tolist() == expected
    assert run_hashes(np.array(hashes, dtype=np.uint64), length).tolist() == expected


def test_an_answer_outside_the_label_space_is_no_label() -> None:
    assert label_reason(row("maybe"), choice_task()) == "not a label"
    assert label_reason(row(" "), choice_task()) == "no answer"
    assert label_reason(row("no"), choice_task()) is None


def test_copies_of_seeds_are_found_also_when_a_few_words_changed() -> None:
    seed = "Ada sold twelve red apples at the market and then bought three pears"
    copies = CopyFinder([seed, "Something else entirely happened on the moon last year"], 0.7, 8)
    assert copies.reason(read_input(seed.upper())) == "copy of a seed"
    assert copies.reason(read_input(seed.replace("Ada", "Bob").replace("at", "near"))) == "nearly a copy of a seed"
    assert copies.reason(read_input("market apples red and pears Ada three twelve then at the sold bought")) is None
    assert copies.reason(read_input("The river rose by two metres before the bridge was closed")) is None


def test_eight_words_in_a_row_of_a_seed_are_a_copy_wherever_they_stand() -> None:
    seed = "Ada sold twelve red apples at the market and then bought three pears for her aunt in the next village"
    copies = CopyFinder([seed, "Something else entirely happened on the moon last year"], 0.7, 8)
    pasted = (
        "Long ago, on a cold day, someone " + " ".join(seed.split()[1:9]) + " which nobody else had done in those years"
    )
    assert copies.reason(read_input(pasted)) == "shares 8 words in a row with a seed"
    assert copies.reason(read_input(pasted.replace("apples", "plums"))) is None


def test_names_and_odd_numbers_are_special_and_words_at_the_start_of_a_sentence_are_not() -> None:
    text = "In spring Natalia sold 137 clips to Betty's friends in May, and 200 more in June. Then all of them went home again in the rain."
    assert special_tokens([text]) == {"Natalia", "Betty", "May", "June", "137"}
    assert token_set("Then Natalia's brother may come.") == {"Then", "Natalia", "brother", "may", "come"}


def test_where_every_noun_has_a_capital_no_word_is_taken_for_a_name() -> None:
    assert special_tokens(["Ein Bauer hat 137 Schafe und sein Bruder hat Ziegen im Stall"]) == {"137"}


def test_the_words_of_a_template_that_the_seeds_share_are_no_copy() -> None:
    copies = CopyFinder([LETTERS.format(word[0], word) for word in WORDS], 0.7, 8)
    assert copies.reason(read_input(LETTERS.format("r", "strawberry"))) is None
    assert copies.reason(read_input(LETTERS.format("a", "apple"))) == "copy of a seed"


def test_one_word_inputs_are_copies_only_when_equal() -> None:
    copies = CopyFinder(["badgc", "cab", "fade"], 0.0, 8)
    assert copies.reason(read_input("badgc")) == "copy of a seed"
    assert copies.reason(read_input("badgd")) is None


def lcs(one: list[str], other: list[str]) -> int:
    best = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, a in enumerate(one):
        for j, b in enumerate(other):
            best[i + 1][j + 1] = best[i][j] + 1 if a == b else max(best[i][j + 1], best[i + 1][j])
    return best[-1][-1]


@given(
    st.lists(st.sampled_from("abcd"), min_size=2, max_size=12),
    st.lists(st.sampled_from("abcd"), min_size=2, max_size=12),
    st.sampled_from([0.3, 0.5, 0.7, 0.9]),
)
def test_copy_overlap_is_rouge_l(seed: list[str], words: list[str], threshold: float) -> None:
    score = 2 * lcs(seed, words) / (len(seed) + len(words))
    found = CopyFinder([" ".join(seed)], threshold, 99).reason(read_input(" ".join(words)))
    assert (found is not None) == (score >= threshold - 1e-12)
