"""`psi submit` on a real cluster with token authentication."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from generation.dataset import read_sealed
from tests.chaos.recipes import scripted_recipe
from tests.jobs.job_cluster import JobCluster, job_cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[JobCluster]:
    with job_cluster(cpus=4) as started:
        yield started


def make_task(folder: Path, rows: int) -> list[str]:
    """A recipe folder; returns the words that have it generated."""
    (folder / "mytask").mkdir()
    scripted_recipe(folder / "mytask", rows)
    return [str(folder / "mytask"), "--stage", "generate", f"run.output={folder}/run", f"run.scratch={folder}/scratch"]


@pytest.mark.slow
def test_a_run_is_generated_by_a_job_whose_log_is_shown_once_and_whose_exit_code_is_returned(
    cluster: JobCluster, tmp_path: Path
) -> None:
    words = ["submit", *make_task(tmp_path, 40), "--address", cluster.address]
    done = cluster.psi(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_sealed(f"{tmp_path}/run/dataset/round-0").rows == 40
    assert done.stdout.count("generate-psi took") == 1
    assert "SUCCEEDED, exit code 0" in done.stderr
    again = cluster.psi(*words)
    assert again.returncode == 0
    assert "-2 SUCCEEDED" in again.stderr
    assert "generate-psi took" not in again.stdout  # what is there is not done again


@pytest.mark.slow
def test_a_cluster_that_wants_a_token_says_what_to_set(cluster: JobCluster) -> None:
    without = cluster.psi("logs", "nothing", "--address", cluster.address, RAY_AUTH_MODE="disabled")
    wrong = cluster.psi("logs", "nothing", "--address", cluster.address, RAY_AUTH_TOKEN="0" * 64)
    assert (without.returncode, wrong.returncode) == (3, 3)
    assert "RAY_AUTH_TOKEN is set, but RAY_AUTH_MODE=token is not" in without.stderr
    assert "another token" in wrong.stderr
    assert cluster.token not in without.stderr + wrong.stderr
