from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generation.config import VotingConfig
from generation.errors import Reject
from generation.instances.vote import Vote

ROUNDS = (2, 4, 8)
ANSWERS = st.one_of(st.none(), st.sampled_from("abc"))


def run(vote: Vote, answers: list[str | None]) -> int:
    """Feed answers in order until the vote is settled; returns how many were used."""
    used = 0
    while wanted := vote.wanted():
        vote.answers += answers[used : used + wanted]
        used += wanted
    return used


def decided(vote: Vote) -> str | None:
    try:
        return vote.outcome()
    except Reject:
        return None


def test_two_equal_answers_settle_a_vote():
    vote = Vote(ROUNDS, 0.5)
    assert run(vote, ["a", "a", "b", "b"]) == 2
    assert vote.outcome() == "a"
    assert vote.agreement == 1.0


def test_two_different_answers_ask_for_four_and_then_eight():
    vote = Vote(ROUNDS, 0.5)
    assert run(vote, list("abaaabaa")) == 8
    assert vote.outcome() == "a"
    assert vote.agreement == 0.75


def test_a_vote_stops_when_the_majority_cannot_change_any_more():
    vote = Vote((2, 4, 5), 0.5)
    assert run(vote, list("abaax")) == 4
    assert vote.outcome() == "a"


def test_half_of_the_answers_is_enough_where_no_other_answer_has_as_many():
    alone, tied = Vote(ROUNDS, 0.5), Vote((2, 4), 0.5)
    run(alone, list("abcaabca"))
    assert alone.outcome() == "a"
    run(tied, list("abab"))
    with pytest.raises(Reject, match="no majority"):
        tied.outcome()


def test_answers_that_cannot_be_read_count_against_every_answer():
    vote = Vote((2, 4), 0.5)
    assert run(vote, [None, None, "a", None]) == 4
    assert vote.counts == {"": 3, "a": 1}
    assert (vote.first, vote.agreement) == ("a", 0.25)
    with pytest.raises(Reject):
        vote.outcome()


def test_agreement_on_another_label_than_the_target_settles_and_is_rejected():
    vote = Vote(ROUNDS, 0.6, target="yes")
    assert run(vote, ["no", "no"]) == 2
    with pytest.raises(Reject, match="not the target label"):
        vote.outcome()


def test_a_majority_below_the_least_agreement_is_rejected():
    vote = Vote((2, 3), 0.9)
    run(vote, list("aba"))
    with pytest.raises(Reject, match="no majority"):
        vote.outcome()


def test_choices_need_more_agreement_than_other_answers_unless_the_recipe_says_how_much():
    assert VotingConfig().least_agreement("choice") == 0.6
    assert VotingConfig().least_agreement("number") == 0.5
    assert VotingConfig(min_agreement=0.8).least_agreement("choice") == 0.8


def test_a_vote_of_one_answer_takes_it():
    for target, answer in product((None, "a"), ("a", "b", None)):
        vote = Vote((1,), 0.6, target)
        assert run(vote, [answer]) == 1
        assert decided(vote) == (answer if target in (None, answer) else None)


@given(
    st.lists(ANSWERS, min_size=8, max_size=8),
    st.sampled_from([None, "a"]),
    st.sampled_from([0.0, 0.3, 0.5, 0.6, 0.75, 1.0]),
    st.sampled_from([(2, 4, 8), (1, 8), (3, 5, 7), (8,)]),
)
def test_stopping_early_without_agreement_of_the_first_answers_decides_as_all_answers_would(
    answers, target, least, rounds
):
    adaptive, full = Vote(rounds, least, target), Vote(rounds, least, target)
    used = run(adaptive, answers)
    full.answers = answers[: rounds[-1]]
    unanimous = len(set(answers[:used])) == 1 and answers[0] is not None
    assert used in rounds
    assert unanimous or decided(adaptive) == decided(full)


@given(st.lists(ANSWERS, min_size=2, max_size=7), st.sampled_from([None, "a"]), st.sampled_from([0.3, 0.5, 0.6, 0.9]))
def test_answers_are_asked_for_as_long_as_they_can_change_the_outcome(answers, target, least):
    vote = Vote((len(answers), len(answers) + 2), least, target, list(answers))
    if vote.wanted():
        ends = [Vote(vote.rounds, least, target, [*answers, *more]) for more in product("abcd", repeat=2)]
        assert len({decided(end) for end in ends}) > 1
