"""Seals: which files make up a dataset. A dataset exists when it is sealed, and training reads what the seal lists and nothing else.

A dataset folder only ever grows. `SEALED.json` lists the first files; when the target grows, more files are added and `SEALED-1.json`
lists them all, then `SEALED-2.json` and so on. The highest seal counts, and the files of the earlier ones stay true. A seal holds what
`summary.json` holds.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from generation.errors import NotSealedError, RecipeError, StorageError
from generation.storage import Store

FORMAT_VERSION = 1
_SEAL = re.compile(r"SEALED(?:-(\d+))?\.json")


@dataclass(frozen=True, slots=True)
class SealedDataset:
    """A dataset that is complete.

    Attributes:
        files: Full URIs of its Parquet files, in order.
        hashes: The sha256 of each, hex.
        rows: Rows in all of them.
        digest: blake2b-128 over the rows' ids and messages in order, hex; independent of how they are cut into files.
    """

    files: tuple[str, ...]
    hashes: tuple[str, ...]
    rows: int
    digest: str


def read_sealed(uri: str) -> SealedDataset:
    """The newest sealed state of a dataset folder.

    Raises:
        NotSealedError: It was never sealed.
        StorageError: A file that the seal lists is missing or has another size.
    """
    folder = Store(uri)
    seal = newest_seal(folder)
    if seal is None:
        raise NotSealedError(
            f"{uri}: holds no SEALED.json, so the dataset is not complete; run `psi generate` on the same recipe first"
        )
    for file in seal["files"]:
        _expect_file(folder, file)
    return SealedDataset(
        files=tuple(folder.uri_of(file["name"]) for file in seal["files"]),
        hashes=tuple(file["sha256"] for file in seal["files"]),
        rows=seal["rows"],
        digest=seal["digest"],
    )


def seals(folder: Store) -> list[dict[str, Any]]:
    """All seals of a dataset folder, oldest first."""
    found = [(int(match[1] or 0), name) for name in folder.names("") if (match := _SEAL.fullmatch(name))]
    return [folder.read_json(name) for _, name in sorted(found)]


def newest_seal(folder: Store) -> dict[str, Any] | None:
    """The seal that counts, or None before the first."""
    return next(reversed(seals(folder)), None)


def has_targets(folder: Store, seal: Mapping[str, Any], targets: Mapping[str, int]) -> bool:
    """Whether a seal has so many rows of every task already.

    Raises:
        RecipeError: It has more.
    """
    sealed = {name: facts["rows"] for name, facts in seal["tasks"].items()}
    for name, rows in sealed.items():
        if targets.get(name, 0) < rows:
            raise RecipeError(
                f"generation.accepted_rows: {folder.uri} is sealed with {rows} rows of task '{name}', {targets.get(name, 0)} are "
                "asked for; targets can only grow. Use a new run folder for a smaller dataset"
            )
    return targets == sealed


def seal_name(version: int) -> str:
    """File name of the seal number `version`, from 0."""
    return f"SEALED-{version}.json" if version else "SEALED.json"


def _expect_file(folder: Store, file: dict[str, Any]) -> None:
    size = folder.size(file["name"])
    if size != file["bytes"]:
        raise StorageError(
            f"{folder.uri_of(file['name'])}: is {size} bytes, the seal says {file['bytes']}; restore the file, or delete the "
            "dataset folder and run `psi generate` again"
        )
