import pytest
from hypothesis import given
from hypothesis import strategies as st

from generation.config import VotingConfig
from generation.errors import Reject
from generation.instances.vote import Vote

ANSWERS = st.one_of(st.none(), st.sampled_from("abc"))


def run(vote: Vote, answers: list[str | None]) -> int:
    """Feed answers in order until the vote is settled; returns how many were used."""
    used = 0
    while wanted := vote.wanted():
        vote.answers += answers[used : used + wanted]
        used += wanted
    return used


def test_two_equal_answers_settle_a_vote():
    vote = Vote(VotingConfig())
    assert run(vote, ["a", "a", "b", "b"]) == 2
    assert vote.outcome() == "a"
    assert vote.agreement == 1.0


def test_two_different_answers_ask_for_four_and_then_eight():
    vote = Vote(VotingConfig())
    assert run(vote, list("abaaabaa")) == 8
    assert vote.outcome() == "a"
    assert vote.agreement == 0.75


def test_a_vote_stops_when_the_majority_cannot_change_any_more():
    vote = Vote(VotingConfig(rounds=(2, 4, 5)))
    assert run(vote, list("abaax")) == 4
    assert vote.outcome() == "a"


def test_half_of_the_answers_is_no_majority():
    vote = Vote(VotingConfig(rounds=(2, 4)))
    run(vote, list("abab"))
    with pytest.raises(Reject, match="no majority"):
        vote.outcome()


def test_answers_that_cannot_be_read_count_against_every_answer():
    vote = Vote(VotingConfig(rounds=(2, 4)))
    assert run(vote, [None, None, "a", "a"]) == 2
    assert vote.counts == {"": 2}
    with pytest.raises(Reject):
        vote.outcome()


def test_agreement_on_another_label_than_the_target_settles_and_is_rejected():
    vote = Vote(VotingConfig(), target="yes")
    assert run(vote, ["no", "no"]) == 2
    with pytest.raises(Reject, match="not the target label"):
        vote.outcome()


def test_a_majority_below_the_least_agreement_is_rejected():
    vote = Vote(VotingConfig(rounds=(2, 3), min_agreement=0.9))
    run(vote, list("aba"))
    with pytest.raises(Reject, match="no majority"):
        vote.outcome()


@given(st.lists(ANSWERS, min_size=8, max_size=8), st.sampled_from([None, "a"]))
def test_stopping_early_without_agreement_of_the_first_answers_decides_as_all_answers_would(answers, target):
    adaptive, full = Vote(VotingConfig(), target), Vote(VotingConfig(), target)
    used = run(adaptive, answers)
    full.answers = answers
    unanimous = len(set(answers[:used])) == 1 and answers[0] is not None

    def decided(vote: Vote) -> str | None:
        try:
            return vote.outcome()
        except Reject:
            return None

    assert used in (2, 4, 8)
    assert unanimous or decided(adaptive) == decided(full)
