"""Every error that PSI raises on purpose, and the exit code that `psi` ends with for each.

Messages say what, which value, where and what to do. No class has an `__init__` of its own, or it would not survive the trip between
Ray processes.
"""

from typing import ClassVar


class PsiError(Exception):
    """Root of all errors whose message is meant for the user."""

    exit_code: ClassVar[int] = 1


class RecipeError(PsiError):
    """The recipe, an override or a path in it is wrong."""

    exit_code = 2


class SeedError(RecipeError):
    """Seed or evaluation rows are wrong; the message lists every one of them."""


class PrivacyError(RecipeError):
    """A private task would be sent to an endpoint that the recipe does not allow."""


class EngineError(PsiError):
    """An engine failed."""

    exit_code = 3


class EngineDeadError(EngineError):
    """The engine cannot answer any more; its replica must be replaced."""


class EngineMemoryError(EngineDeadError):
    """The engine ran out of memory; one that is started with less may live."""


class RequestError(EngineError):
    """One request was refused (too long, empty, not allowed); the engine lives on."""


class ClusterError(EngineError):
    """The Ray cluster refuses, or is none."""


class UnreachableError(ClusterError):
    """The Ray cluster does not answer, which may pass."""


class StorageError(PsiError):
    """The run folder cannot be read or written, or holds something it should not."""

    exit_code = 4


class RunLockedError(PsiError):
    """Another live driver owns this run."""

    exit_code = 5


class YieldError(PsiError):
    """A stage accepted too little to go on."""

    exit_code = 6


class BudgetError(PsiError):
    """A limit of the recipe is used up; the run is kept and can be resumed with a higher one."""

    exit_code = 7


class GaveUpError(PsiError):
    """Units or replicas failed for good; the message names them."""

    exit_code = 8


class NotSealedError(PsiError):
    """The dataset that training waits for was not sealed before the deadline."""

    exit_code = 9


class TrainingError(PsiError):
    """Training cannot start or cannot go on."""

    exit_code = 10


class PreemptedError(PsiError):
    """This machine is about to be taken away; the state is saved, and the same command goes on from there."""

    exit_code = 143
    """What a process that SIGTERM ends leaves: launchers take codes above 127 for trouble that passes, and start it again."""


class Reject(Exception):  # noqa: N818 - not a failure: a verdict on one row
    """Raised inside a flow: this row ends as a rejection. `Reject("parse", "no input tag")`."""

    @property
    def stage(self) -> str:
        """The stage that dropped the row."""
        return str(self.args[0])

    @property
    def reason(self) -> str:
        """Why, in a few words that are counted in the report."""
        return str(self.args[1])
