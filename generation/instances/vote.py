"""Adaptive voting: how many blind answers to ask for next, and what they decide. Knows no prompt and no engine."""

from collections import Counter
from dataclasses import dataclass, field

from generation.config import VotingConfig
from generation.errors import Reject


@dataclass(slots=True)
class Vote:
    """The answers to one input so far.

    Attributes:
        config: After how many answers to look, and how many must agree.
        target: The answer that the input was written for, or None; no other answer is accepted.
        answers: Canonical answers in the order they came; None for one that could not be read, which counts against every answer.
    """

    config: VotingConfig
    target: str | None = None
    answers: list[str | None] = field(default_factory=list[str | None])

    @property
    def counts(self) -> Counter[str]:
        """Canonical answer to votes, unreadable ones under the empty text."""
        return Counter(answer or "" for answer in self.answers)

    @property
    def leader(self) -> str | None:
        """The answer with the most votes, the earlier one of a tie; None where no answer could be read."""
        readable = Counter(answer for answer in self.answers if answer is not None)
        return readable.most_common(1)[0][0] if readable else None

    @property
    def agreement(self) -> float:
        """Share of all answers that equal the leader."""
        leader = self.leader
        return 0.0 if leader is None else self.answers.count(leader) / len(self.answers)

    def wanted(self) -> int:
        """Answers to ask for now; 0 once the outcome stands."""
        in_hand = len(self.answers)
        following = next((total for total in sorted(self.config.rounds) if total > in_hand), in_hand)
        return 0 if in_hand and self._settled() else following - in_hand

    def outcome(self) -> str:
        """The accepted answer.

        Raises:
            Reject: At stage `vote`: no answer could be read, none has the majority, or it is not the target.
        """
        leader = self.leader
        if leader is None:
            raise Reject("vote", "no readable answer")
        if not self._wins(self.answers.count(leader), len(self.answers)):
            raise Reject("vote", "no majority")
        if self.target is not None and leader != self.target:
            raise Reject("vote", "not the target label")
        return leader

    def _settled(self) -> bool:
        """Whether more answers cannot change the outcome, or all of them agree so far."""
        leader = self.leader
        if leader is not None and self.answers.count(leader) == len(self.answers):
            return True
        most = max(self.config.rounds)
        best = self.answers.count(leader if self.target is None else self.target) if leader is not None else 0
        return self._wins(best, most) or not self._wins(best + most - len(self.answers), most)

    def _wins(self, votes: int, total: int) -> bool:
        return 2 * votes > total and votes / total >= self.config.min_agreement
