"""What of a folder goes along with a job: chosen, measured and packed before anything is sent."""

import fnmatch
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from generation.errors import RecipeError

LIMIT_BYTES = 100 * 2**20
"""What a Ray dashboard takes in one upload."""

EXCLUDED = (".*", "venv", "node_modules", "__pycache__", "*.pyc", "runs", "models")
"""Names of files and folders that stay here, unless the recipe names them: what is large, and hidden files."""

KEYS = (
    "*.env", "*.pem", "*.key", "*.p12", "*.pfx", "id_rsa*", "id_ed25519*", "id_ecdsa*", "*credentials*",
    "*service-account*", "*service_account*",
)  # fmt: skip
"""Names, in lower case, of what may hold keys: it stays here too, and that is said."""

_BIGGEST = 5
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Parcel:
    """Files for a job.

    Attributes:
        root: The folder that they lie in here.
        prefix: The folder that they will lie in below the job's working directory; empty for that itself.
        files: Relative to `root`, sorted.
        withheld: What stays here because it may hold keys, relative to `root`.
    """

    root: Path
    prefix: str
    files: tuple[Path, ...]
    withheld: tuple[Path, ...] = ()

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

    Raises:
        RecipeError: A link leads to a folder outside of this one, or in a circle.
    """
    from ray._private.runtime_env.packaging import get_excludes_from_ignore_files

    whole, needed = _Walk(root, partial(get_excludes_from_ignore_files, include_gitignore=True)), _Walk(root)
    found = set(whole.files(root))
    for path in named:
        found.update(needed.files(path) if path.is_dir() else [path])
    withheld = {*whole.withheld, *needed.withheld} - found
    return Parcel(
        root, prefix, *(tuple(sorted(path.relative_to(root) for path in paths)) for paths in (found, withheld))
    )


class _Walk:
    """Goes through folders for the files that go along.

    Args:
        root: The folder that all lies in; a link to a folder of it is followed.
        ignores: What a folder's own files say is to be left out below it.

    Attributes:
        withheld: What may hold keys and was left out.
    """

    def __init__(self, root: Path, ignores: Callable[[Path], list[Callable[[Path], bool]]] = lambda _: []) -> None:
        self._root = root.resolve()
        self._ignores = ignores
        self.withheld: list[Path] = []

    def files(
        self, folder: Path, excludes: Sequence[Callable[[Path], bool]] = (), above: Sequence[Path] = ()
    ) -> Iterator[Path]:
        """The files below a folder; `excludes` are those of the folders above it, `above` where these really lie."""
        excludes, above = [*excludes, *self._ignores(folder)], [*above, folder.resolve()]
        for path in sorted(folder.iterdir()):
            names = self._names(path)
            if not path.exists() or _match(names, EXCLUDED) or any(skips(path) for skips in excludes):
                continue
            if _match([name.lower() for name in names], KEYS):
                self.withheld.append(path)
            elif path.is_dir():
                self._check_link(path, above)
                yield from self.files(path, excludes, above)
            elif path.is_file():
                yield path

    def _names(self, path: Path) -> Sequence[str]:
        """By which it may be left out: its own, and where it is a link those of what it leads to."""
        if not path.is_symlink():
            return [path.name]
        target = Path(os.path.realpath(path))
        return [
            path.name,
            *(target.relative_to(self._root).parts if target.is_relative_to(self._root) else [target.name]),
        ]

    def _check_link(self, path: Path, above: Sequence[Path]) -> None:
        target = path.resolve()
        if path.is_symlink() and (target in above or not target.is_relative_to(self._root)):
            raise RecipeError(
                f"{path}: is a link to {target}, a folder {'that holds it' if target in above else 'that does not go along'};"
                " put the folder in its place, or its name, without a slash, into .rayignore: what the recipe names goes along"
            )


def _match(names: Iterable[str], patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)
