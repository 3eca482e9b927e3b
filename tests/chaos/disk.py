"""A small filesystem of its own for a run folder, that can be full for a while: real ENOSPC, real partial writes."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOM_BYTES = 2**30
FILL_ATTEMPTS = 100


class Disk:
    """A tmpfs.

    Args:
        folder: Where it is mounted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self) -> None:
        """Leave no room but for the page that is begun."""
        for _ in range(FILL_ATTEMPTS):
            space = os.statvfs(self.folder)
            if self._resize((space.f_blocks - space.f_bfree + 1) * space.f_frsize):
                return
        raise AssertionError(f"{self.folder} is written to faster than it can be made full")

    def free(self) -> None:
        """There is room again."""
        assert self._resize(ROOM_BYTES)

    def _resize(self, size: int) -> bool:
        """Whether it could be: a disk cannot become smaller than what has been written meanwhile."""
        mount = ["mount", "-o", f"remount,size={size}", str(self.folder)]
        return subprocess.run(mount, check=False, capture_output=True).returncode == 0


@contextmanager
def own_disk(folder: Path) -> Iterator[Disk | None]:
    """A disk mounted at a folder while the block runs; None where this process may not mount."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOM_BYTES}", "psi-chaos", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        yield None
        return
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
