"""Adaptive voting: how many blind answers to ask for next, and what they decide. Knows no prompt and no engine."""

from dataclasses import dataclass, field

from generation.errors import Reject


@dataclass(slots=True)
class Vote:
    """The answers to one input so far.

    Attributes:
        rounds: Answers in hand after each round, ascending; the last one is the most.
        least: An answer is accepted when at least this share equals it and no other answer has as many.
        target: The answer that the input was written for, or None; no other answer is accepted.
        answers: Canonical answers in the order they came; None for one that could not be read, which counts against every answer.
    """

    rounds: tuple[int, ...]
    least: float
    target: str | None = None
    answers: list[str | None] = field(default_factory=list[str | None])

    @property
    def counts(self) -> dict[str, int]:
        """Canonical answer to votes, unreadable ones under the empty text."""
        counts: dict[str, int] = {}  # a sixth of a `Counter`'s time
        for answer in self.answers:
            counts[answer or ""] = counts.get(answer or "", 0) + 1
        return counts

    @property
    def leader(self) -> str | None:
        """The answer with the most votes, the earlier one of a tie; None where no answer could be read."""
        ranking = self._ranking
        return ranking[0][0] if ranking else None

    @property
    def first(self) -> str | None:
        """The first answer that could be read."""
        return next((answer for answer in self.answers if answer is not None), None)

    @property
    def agreement(self) -> float:
        """Share of all answers that equal the leader."""
        ranking = self._ranking
        return ranking[0][1] / len(self.answers) if ranking else 0.0

    def wanted(self) -> int:
        """Answers to ask for now; 0 once the outcome stands."""
        in_hand = len(self.answers)
        following = next((total for total in self.rounds if total > in_hand), in_hand)
        return 0 if in_hand and self._settled() else following - in_hand

    def outcome(self) -> str:
        """The accepted answer.

        Raises:
            Reject: At stage `vote`: no answer could be read, none has the majority, or it is not the target.
        """
        leader = self.leader
        if leader is None:
            raise Reject("vote", "no readable answer")
        if not self._wins(leader, more=0, others_more=0):
            raise Reject("vote", "no majority")
        if self.target is not None and leader != self.target:
            raise Reject("vote", "not the target label")
        return leader

    @property
    def _ranking(self) -> list[tuple[str, int]]:
        counts = self.counts
        counts.pop("", None)
        return sorted(counts.items(), key=lambda item: -item[1])

    def _settled(self) -> bool:
        """Whether more answers cannot change the outcome, or all of them agree so far."""
        leader = self.leader
        if leader is not None and self.answers.count(leader) == len(self.answers):
            return True
        left = self.rounds[-1] - len(self.answers)
        # An answer that nobody has given yet stands for all that may still come.
        best = self.target if self.target is not None else leader if leader is not None else ""
        sure = leader == best and self._wins(best, more=0, others_more=left)
        return sure or not self._wins(best, more=left, others_more=0)

    def _wins(self, answer: str, more: int, others_more: int) -> bool:
        """Whether an answer would be accepted if the answers still to come were so many of it, and so many of its strongest rival."""
        votes = self.answers.count(answer) + more
        rival = max((count for other, count in self._ranking if other != answer), default=0) + others_more
        return votes > rival and votes / (len(self.answers) + more + others_more) >= self.least
