"""What of a folder goes along with a job: chosen, measured and packed before anything is sent."""

import fnmatch
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from generation.errors import RecipeError

LIMIT_BYTES = 100 * 2**20
"""What a Ray dashboard takes in one upload."""

EXCLUDED = (".*", "venv", "node_modules", "__pycache__", "*.pyc", "runs", "models")
"""Names of files and folders that stay here, unless the recipe names them: what is large, and hidden files, which may hold keys."""

_BIGGEST = 5
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Parcel:
    """Files for a job.

    Attributes:
        root: The folder that they lie in here.
        prefix: The folder that they will lie in below the job's working directory; empty for that itself.
        files: Relative to `root`, sorted.
    """

    root: Path
    prefix: str
    files: tuple[Path, ...]

    @property
    def size_bytes(self) -> int:
        """What they take here, unpacked."""
        return sum(size for size, _ in self._sizes())

    def pack(self, target: Path) -> None:
        """Write them as a zip archive, the same bytes for the same files, so that a cluster that has them is not sent them again.

        Raises:
            RecipeError: The archive is larger than a cluster takes; the message names the biggest files.
        """
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in self.files:
                info = zipfile.ZipInfo(f"{self.prefix}/{file}".lstrip("/"), _EPOCH)
                info.external_attr = (self.root / file).stat().st_mode << 16
                info.compress_type = zipfile.ZIP_DEFLATED
                with (self.root / file).open("rb") as source, archive.open(info, "w") as place:
                    while block := source.read(1 << 20):
                        place.write(block)
                        if target.stat().st_size > LIMIT_BYTES:
                            raise RecipeError(self._too_large())

    def _too_large(self) -> str:
        sizes = sorted(self._sizes(), reverse=True)[:_BIGGEST]
        biggest = [f"  {size / 2**20:>9,.1f} MiB  {file}" for size, file in sizes]
        return "\n".join(
            [
                f"{self.root}: {self.size_bytes / 2**20:,.0f} MiB, more than the {LIMIT_BYTES // 2**20} MiB, packed, that a"
                " cluster takes along with a job. The biggest files:",
                *biggest,
                "Put them on a filesystem that all nodes share and name them by absolute paths;",
                "or leave out what the run does not need, in .rayignore or .gitignore; or, where",
                "all lies on the cluster already, submit with --in-place.",
            ]
        )

    def _sizes(self) -> Iterator[tuple[int, Path]]:
        for file in self.files:
            yield (self.root / file).stat().st_size, file


def gather(root: Path, prefix: str, named: Iterable[Path]) -> Parcel:
    """The files of a folder that a job needs: all but those that are excluded, and all that the recipe names.

    `.gitignore` and `.rayignore` of the folder and of those below count as they do for `ray job submit`.

    Args:
        root: The folder.
        prefix: Where its files shall lie, below the job's working directory.
        named: Files and folders of it that the recipe names.
    """
    from ray._private.runtime_env.packaging import get_excludes_from_ignore_files

    def ignores(folder: Path) -> list[Callable[[Path], bool]]:
        return get_excludes_from_ignore_files(folder, include_gitignore=True)

    found = set(_walk(root, [], ignores))
    for path in named:
        found.update(_walk(path, [], lambda _: []) if path.is_dir() else [path])
    return Parcel(root, prefix, tuple(sorted(file.relative_to(root) for file in found)))


def _walk(
    folder: Path, excludes: Sequence[Callable[[Path], bool]], ignores: Callable[[Path], list[Callable[[Path], bool]]]
) -> Iterator[Path]:
    excludes = [*excludes, *ignores(folder)]
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = Path(entry.path)
        if any(fnmatch.fnmatch(entry.name, pattern) for pattern in EXCLUDED) or any(skips(path) for skips in excludes):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(path, excludes, ignores)
        elif entry.is_file():
            yield path
