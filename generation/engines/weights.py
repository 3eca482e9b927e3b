"""The identity of a model: a digest of its weights."""

import hashlib
from functools import lru_cache
from pathlib import Path

from generation.errors import EngineError


def model_digest(folder: str | Path) -> str:
    """Digest of a model folder's safetensors files: names, sizes and contents. Read once per process and version of the files.

    Raises:
        EngineError: The folder holds none.
    """
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise EngineError(f"{folder}: no *.safetensors there; name a folder with a model's weights")
    return _digest(tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files))


@lru_cache(maxsize=32)
def _digest(files: tuple[tuple[str, int, int], ...]) -> str:
    whole = hashlib.blake2b(digest_size=16)
    for name, size, _ in files:
        with Path(name).open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        whole.update(f"{Path(name).name}\x1f{size}\x1f{content}\n".encode())
    return whole.hexdigest()
