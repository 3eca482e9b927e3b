"""A trained model of a run folder in a bucket, copied to the disk of the node that is to serve it."""

import fcntl
import hashlib
import json
import shutil
from pathlib import Path

from generation.engines.config import EngineConfig, VllmEngine
from generation.errors import StorageError
from generation.large_files import download
from generation.storage import Store
from training.job import LINEAGE, UNCHECKED


def fetch_model(engine: EngineConfig) -> None:
    """Have the folder of an engine's model there, where that is a copy.

    Raises:
        StorageError: The model cannot be copied.
    """
    if isinstance(engine, VllmEngine) and engine.copied_from:
        copy_model(Store(engine.copied_from), Path(engine.model))


def copy_model(store: Store, folder: Path) -> None:
    """Copy a model, unless the folder holds it already. Replicas of one node, which all come here at once, wait for the first.

    Raises:
        StorageError: It cannot be read, or is not what its lineage says.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lineage = store.read(LINEAGE if store.exists(LINEAGE) else UNCHECKED)
        if (folder / LINEAGE).exists() and (folder / LINEAGE).read_bytes() == lineage:
            return
        shutil.rmtree(folder, ignore_errors=True)
        hashes: dict[str, str] = json.loads(lineage)["files"]
        download(store, {name: folder / name for name in hashes})
        wrong = sorted(name for name, sha256 in hashes.items() if _sha256(folder / name) != sha256)
        if wrong:
            raise StorageError(
                f"{store.uri}: not the files that were published (SHA-256 differs): {', '.join(wrong)}; restore them, or delete the folder "
                "and run `psi train` again"
            )
        (folder / LINEAGE).write_bytes(lineage)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
