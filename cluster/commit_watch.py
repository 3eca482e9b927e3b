"""Whether a coordinator commits: what is committed shows that engines that died did not stop the work."""

import time
from typing import Any

from cluster.pool_member import error_of

_LOOK_SECONDS = 10.0


class CommitWatch:
    """Looks at one generation. One thread uses it."""

    def __init__(self) -> None:
        self._asked: Any = None
        self._asked_at, self._committed = 0.0, 0

    def has_grown(self, coordinator: Any) -> bool:
        """Whether more is committed than when it last was looked, every ten seconds. Never waits."""
        import ray

        if self._asked is None and time.monotonic() - self._asked_at >= _LOOK_SECONDS:
            self._asked, self._asked_at = coordinator.progress.remote(), time.monotonic()
        elif self._asked is not None and ray.wait([self._asked], timeout=0)[0]:
            progress, _ = error_of(self._asked)
            self._asked = None
            if progress is not None and progress.committed > self._committed:
                self._committed = progress.committed
                return True
        return False
