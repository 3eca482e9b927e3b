"""Copies of complete checkpoints in the bucket of the run: what a job goes on from when the disk that it had is gone with its node.

They lie there as they lie on disk, the marker written last, and are copied back only where no newer checkpoint is on disk. With them go the
job's own lines about its steps and starts. A run folder that is no bucket has none: there `run.scratch` is on disk beside it.
"""

import shutil
import sys
from pathlib import Path

from generation.errors import StorageError
from generation.large_files import download, upload
from generation.storage import Store
from training.checkpoint import MARKER, complete_checkpoints, read_marker, write_marker
from training.job import TrainingJob
from training.ranks import Ranks


def send_copy(job: TrainingJob, ranks: Ranks) -> None:
    """Copy the newest checkpoint into the bucket, and delete copies of those that are no longer kept on disk. All ranks must call it.

    Where that fails, it is said, and training goes on: the next checkpoint will be copied.
    """
    if not job.checkpoint_copies:
        return
    store, folder = Store(job.checkpoint_copies), Path(job.checkpoints)
    newest = complete_checkpoints(folder)[-1]
    files = {f"{newest.name}/{name}": newest / name for name in sorted(read_marker(newest)["files"])}
    failure = ranks.side_by_side(lambda: upload(store, _share(files, ranks)))
    if not failure:
        failure = ranks.side_by_side(lambda: _complete(job, store, newest) if ranks.leads else None)
    if failure and ranks.leads:
        sys.stderr.write(f"{newest}: not copied to {store.uri}, training goes on: {failure}\n")


def fetch_copy(job: TrainingJob, ranks: Ranks) -> None:
    """Copy back the checkpoints that the disk lacks, oldest first, where the newest is newer than all on it. All ranks must call it.

    More than the newest, since it may turn out to be damaged, and the one before is used then; and one of them may be the best.

    Raises:
        StorageError: The bucket cannot be read.
    """
    if not job.checkpoint_copies:
        return
    store, folder = Store(job.checkpoint_copies), Path(job.checkpoints)
    if ranks.leads:
        fetch_notes(job)
    for name in ranks.first(_wanted(store, folder) if ranks.leads else None):
        facts = store.read_json(f"{name}/{MARKER}")
        files = {f"{name}/{file}": folder / name / file for file in sorted(facts["files"])}
        if ranks.leads:
            shutil.rmtree(folder / name, ignore_errors=True)  # what is left of a damaged one would not be of this run
        ranks.wait()
        failure = ranks.side_by_side(lambda files=files: download(store, _share(files, ranks)))
        if failure:
            raise StorageError(f"{store.uri}: the checkpoint {name} cannot be copied to {folder}: {failure}")
        if ranks.leads:
            write_marker(folder / name, facts)
        ranks.wait()


def fetch_notes(job: TrainingJob) -> None:
    """Copy back what a job has said about its steps and starts, where that is not on disk.

    Raises:
        StorageError: The bucket cannot be read.
    """
    if not job.checkpoint_copies:
        return
    store = Store(job.checkpoint_copies)
    missing = {name: path for name, path in _notes(job).items() if not path.exists() and store.exists(name)}
    download(store, missing)


def _wanted(store: Store, folder: Path) -> list[str]:
    here = {path.name for path in complete_checkpoints(folder)}
    there = [path.removesuffix(f"/{MARKER}") for path in store.tree() if path.endswith(f"/{MARKER}")]
    if not there or there[-1] <= max(here, default=""):
        return []
    return [name for name in there if name not in here]


def _complete(job: TrainingJob, store: Store, newest: Path) -> None:
    upload(store, {name: path for name, path in _notes(job).items() if path.exists()})
    store.replace(f"{newest.name}/{MARKER}", (newest / MARKER).read_bytes())
    kept = {path.name for path in complete_checkpoints(newest.parent)}
    old = [path for path in store.tree() if "/" in path and path.partition("/")[0] not in kept]
    for path in sorted(old, key=lambda path: not path.endswith(f"/{MARKER}")):  # a copy without its marker is none
        store.delete(path)


def _notes(job: TrainingJob) -> dict[str, Path]:
    return {"training.jsonl": Path(job.metrics), "starts.jsonl": Path(job.checkpoints) / "starts.jsonl"}


def _share(files: dict[str, Path], ranks: Ranks) -> dict[str, Path]:
    """This rank's part."""
    return dict(list(files.items())[ranks.rank :: ranks.world])
