"""Trouble with storage: what may pass is tried again for a while, what lasts is said at once. Knows nothing of what is stored."""

import errno
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from generation.errors import StorageError

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 10.0

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_CLOSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_PASSING = _FULL | {
    errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EREMOTEIO,
    errno.ESTALE, errno.ETIMEDOUT, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTDOWN,
    errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETRESET, errno.ENETUNREACH, errno.ENOTCONN, errno.EPIPE, errno.ESHUTDOWN,
}  # fmt: skip

_PASSING_TEXT = re.compile(
    r"AWS Error (SLOW_DOWN|THROTTLING|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|REQUEST_TIMEOUT|RequestTimeout|NETWORK_CONNECTION)\b"
    r"|AWS Error NO_SUCH_UPLOAD\b"  # of parts that were put together already, when that answer was lost
    r"|HTTP status (408|409|429|5\d\d)\b"  # 409: two writers at the same moment
    r"|google::cloud::Status\((UNAVAILABLE|RESOURCE_EXHAUSTED|DEADLINE_EXCEEDED|INTERNAL)\b"
)
"""Object stores: pyarrow has no errno for them, only what their server said."""

_CLOSED_TEXT = re.compile(
    r"AWS Error (ACCESS_DENIED|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH)\b|HTTP status 40[13]\b|[Cc]redentials"
)

T = TypeVar("T")

_jitter = secrets.SystemRandom()
"""Not `random`: engines seed that one alike in all replicas, which would then all come back at the same moments."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long trouble that may pass is waited for, with pauses that double and are drawn at random from 0 up (full jitter).

    Attributes:
        seconds: From the first attempt to the last; 0 allows no second one.
        clock: Seconds from any origin.
        sleep: Waits for so many seconds.
    """

    seconds: float = 60.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def run(self, operation: Callable[[], T], what: str) -> T:
        """Do something that can be repeated until it succeeds.

        Args:
            operation: Raises OSError where it fails.
            what: Where it happens and what fails: `file: cannot write`.

        Raises:
            FileExistsError: From the operation: an answer, not trouble.
            StorageError: The trouble lasts, or lasted for `seconds`.
        """
        began, attempts = self.clock(), 0
        while True:
            attempts += 1
            try:
                return operation()
            except FileExistsError:
                raise
            except OSError as error:
                left = began + self.seconds - self.clock()
                if left <= 0 or not may_pass(error):
                    tried = f"; tried {attempts} times in {self.seconds - left:.0f} s" if attempts > 1 else ""
                    raise StorageError(f"{what}: {error}{tried}; {_advice(error)}") from error
            longest = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2**attempts)
            self.sleep(min(left, _jitter.uniform(0, longest)))


PATIENT = Patience()
"""A minute: a disk is cleared and a throttled bucket recovers in seconds, and an engine whose rows wait so long has long stood still."""


def may_pass(error: OSError) -> bool:
    """Whether the same operation may succeed a little later. What is not known to pass is taken to last."""
    return error.errno in _PASSING or (error.errno is None and _PASSING_TEXT.search(str(error)) is not None)


def _advice(error: OSError) -> str:
    if error.errno in _FULL:
        return "free some space or raise the quota, and the same command goes on"
    if error.errno in _CLOSED or _CLOSED_TEXT.search(str(error)):
        return "give this user the right to use it, on every node"
    if error.errno == errno.ENOTDIR:
        return "a file stands where a folder should be: move it away"
    if may_pass(error):
        return "see to the storage, and the same command goes on"
    return "check run.output"
