from random import Random

from hypothesis import given
from hypothesis import strategies as st

from generation.curation.dedup import NearDuplicates

VOCABULARY = [f"w{i}" for i in range(2000)]


def text(rng: Random, words: int = 60) -> tuple[str, ...]:
    return tuple(rng.choices(VOCABULARY, k=words))


def changed(words: tuple[str, ...], places: int) -> tuple[str, ...]:
    return words[: len(words) - places] + tuple(f"{word}x" for word in words[len(words) - places :])


def test_texts_with_one_word_changed_are_found_and_unrelated_texts_are_not() -> None:
    rng = Random(1)
    near = NearDuplicates(0.8)
    originals = [text(rng) for _ in range(300)]
    assert not any(near.seen(words) for words in originals)
    assert sum(near.seen(changed(words, 1)) for words in originals) >= 297
    assert not any(near.seen(text(rng)) for _ in range(300))


def test_texts_below_the_threshold_are_never_near_duplicates() -> None:
    rng = Random(2)
    near = NearDuplicates(0.8)
    originals = [text(rng) for _ in range(300)]
    # 14 of 56 shingles differ on either side: Jaccard 42 / 70 = 0.6, often enough in one band, never at the threshold.
    assert not any(near.seen(words) for original in originals for words in (original, changed(original, 14)))


@given(st.lists(st.text("abc", min_size=1, max_size=3), max_size=4))
def test_inputs_of_fewer_than_five_words_are_never_near_duplicates(words: list[str]) -> None:
    near = NearDuplicates(0.1)
    assert not near.seen(tuple(words))
    assert not near.seen(tuple(words))


@given(st.lists(st.sampled_from("abcdefgh"), min_size=5, max_size=30), st.sampled_from([0.3, 0.5, 0.8, 1.0]))
def test_the_same_words_are_a_near_duplicate_at_any_threshold(words: list[str], threshold: float) -> None:
    near = NearDuplicates(threshold)
    assert not near.seen(tuple(words))
    assert near.seen(tuple(words))
