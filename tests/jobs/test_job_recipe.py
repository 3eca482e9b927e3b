"""What of a recipe goes along, and what of it is refused before anything is sent."""

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from cluster import job_files
from cluster.job_files import gather
from cluster.job_recipe import RemoteRecipe, read_remote_recipe
from cluster.job_server import Job
from cluster.submit import COMMAND, RUN, Order, Submission, order_of, refuse_second
from generation.errors import RecipeError, RunLockedError
from tests.chaos.recipes import scripted_recipe

OUTPUT = "run.output=/shared/runs/mytask"


@pytest.fixture
def task(tmp_path: Path) -> Path:
    (tmp_path / "mytask").mkdir()
    scripted_recipe(tmp_path / "mytask", 10)
    return tmp_path / "mytask"


def read(task: Path, overrides: Sequence[str] = (), root: Path | None = None) -> RemoteRecipe:
    return read_remote_recipe(task / "recipe.toml", [OUTPUT, "run.scratch=/scratch", *overrides], root or task)


def packed(task: Path, named: Sequence[Path] = (), prefix: str = "mytask") -> dict[str, bytes]:
    gather(task, prefix, named).pack(task.parent / "job.zip")
    with zipfile.ZipFile(task.parent / "job.zip") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_folder_of_a_recipe_goes_along_without_what_is_large_or_ignored(task: Path) -> None:
    for name in (
        ".venv/bin/python",
        "runs/old/recipe.json",
        "models/x/model.safetensors",
        ".env",
        "notes/a.md",
        "notes/b.log",
    ):
        (task / name).parent.mkdir(parents=True, exist_ok=True)
        (task / name).write_text(name)
    (task / ".rayignore").write_text("*.csv\n")
    (task / "private.csv").write_text("secret")
    (task / "notes/.gitignore").write_text("*.log\n")
    kept = {"recipe.toml", "seeds.jsonl", "principles.jsonl", "notes/a.md"}
    assert packed(task).keys() == {f"mytask/{name}" for name in kept}


def test_what_a_recipe_names_goes_along_whatever_is_ignored(task: Path) -> None:
    (task / ".gitignore").write_text("seeds.jsonl\n")
    (task / "models/small").mkdir(parents=True)
    (task / "models/small/config.json").write_text("{}")
    engine = 'pools.small.engine={kind = "vllm", model = "models/small"}'
    assert "mytask/seeds.jsonl" not in packed(task)
    needed = read(task, [engine]).needed
    assert packed(task, needed).keys() >= {"mytask/seeds.jsonl", "mytask/models/small/config.json"}


def test_what_may_hold_keys_stays_here_unless_the_recipe_names_it_and_that_is_told(task: Path) -> None:
    keys = ["keys.env", "service-account.json", "tls/server.pem", "API.KEY", "id_rsa", "aws_credentials", "credentials"]
    for name in keys:
        (task / name).parent.mkdir(exist_ok=True)
        (task / name).write_text("secret")
    (task / "plain.txt").symlink_to("keys.env")
    kept, parcel = packed(task).keys(), gather(task, "mytask", [])
    assert kept == {f"mytask/{name}" for name in ("recipe.toml", "seeds.jsonl", "principles.jsonl")}
    assert {str(path) for path in parcel.withheld} == {*keys, "plain.txt"}
    named = gather(task, "mytask", [task / "tls/server.pem"])
    assert Path("tls/server.pem") in named.files
    assert {str(path) for path in named.withheld} == {*keys, "plain.txt"} - {"tls/server.pem"}


def test_links_are_followed_where_what_they_lead_to_goes_along_and_refused_elsewhere(task: Path) -> None:
    for name in ("data/rows/a.jsonl", "runs/old/recipe.json"):
        (task / name).parent.mkdir(parents=True)
        (task / name).write_text(name)
    (task / "current").symlink_to("data/rows")
    (task / "latest").symlink_to(task / "runs/old")
    (task / "broken").symlink_to("nowhere")
    sent = packed(task)
    assert sent["mytask/current/a.jsonl"] == sent["mytask/data/rows/a.jsonl"] == b"data/rows/a.jsonl"
    assert not [name for name in sent if name.startswith(("mytask/latest", "mytask/broken"))]
    (task / "data/up").symlink_to("..")
    with pytest.raises(RecipeError, match=r"data/up: is a link to .*/mytask, a folder that holds it"):
        gather(task, "mytask", [])
    (task / "data/up").unlink()
    (task.parent / "far").mkdir()
    (task.parent / "far/b.jsonl").write_text("far")
    (task / "far").symlink_to(task.parent / "far")
    with pytest.raises(RecipeError, match=r"mytask/far: is a link to .*/far, a folder that does not go along"):
        gather(task, "mytask", [])
    (task / ".rayignore").write_text("far\n")
    assert packed(task, [task / "far/b.jsonl"])["mytask/far/b.jsonl"] == b"far"


def test_the_same_files_make_the_same_archive(task: Path) -> None:
    parcel = gather(task, "mytask", [])
    parcel.pack(task.parent / "one.zip")
    os.utime(task / "seeds.jsonl", (1, 1))
    parcel.pack(task.parent / "two.zip")
    assert (task.parent / "one.zip").read_bytes() == (task.parent / "two.zip").read_bytes()


def test_more_than_a_cluster_takes_is_refused_with_the_biggest_files(
    task: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_files, "LIMIT_BYTES", 2 * 2**20)
    (task / "weights").mkdir()
    (task / "weights/big.bin").write_bytes(os.urandom(3 * 2**20))
    (task / "small.bin").write_bytes(b"x" * 1000)
    with pytest.raises(RecipeError, match=r"3 MiB, more than the 2 MiB(.|\n)* 3.0 MiB  weights/big.bin"):
        gather(task, "mytask", []).pack(task.parent / "job.zip")


def test_paths_that_lead_out_of_what_goes_along_are_refused_and_absolute_ones_are_the_clusters(task: Path) -> None:
    (task.parent / "seeds.jsonl").write_text("{}")
    with pytest.raises(RecipeError, match=r"tasks.0.seeds: ../seeds.jsonl lies outside of"):
        read(task, ["tasks.0.seeds=../seeds.jsonl"])
    assert read(task, ["tasks.0.seeds=/data/seeds.jsonl"]).elsewhere == ("/data/seeds.jsonl",)
    wider = read(task, ["tasks.0.seeds=../seeds.jsonl"], task.parent)
    assert task.parent / "seeds.jsonl" in wider.needed
    with pytest.raises(RecipeError, match=r"nowhere\.jsonl does not exist"):
        read(task, ["tasks.0.seeds=nowhere.jsonl"])


def test_paths_that_were_typed_here_are_found_there(task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (task / "more").mkdir()
    (task / "more/mine.jsonl").write_text("{}")
    (task.parent / "mine.jsonl").write_text("{}")
    monkeypatch.chdir(task / "more")
    assert read(task, ["tasks.0.seeds=mine.jsonl"]).overrides[-1] == "tasks.0.seeds=more/mine.jsonl"
    monkeypatch.chdir(task.parent)
    with pytest.raises(RecipeError, match=r"mine\.jsonl lies outside of"):
        read(task, ["tasks.0.seeds=mine.jsonl"])


@pytest.mark.parametrize(
    ("here", "recipe", "working_dir", "there"),
    [
        ("elsewhere", "../mytask", None, "mytask/recipe.toml"),
        ("mytask/more", "..", None, "mytask/recipe.toml"),
        ("mytask", "../mytask/recipe.toml", "..", "mytask/recipe.toml"),
        ("mytask/more", "../recipe.toml", "..", "recipe.toml"),
    ],
)
def test_a_recipe_is_found_from_wherever_it_was_typed(
    task: Path, monkeypatch: pytest.MonkeyPatch, here: str, recipe: str, working_dir: str | None, there: str
) -> None:
    for folder in ("elsewhere", "mytask/more"):
        (task.parent / folder).mkdir()
    monkeypatch.chdir(task.parent / here)
    places = [OUTPUT, "run.scratch=/scratch", "tasks.0.seeds=seeds.jsonl"]
    order = order_of(Submission(Path(recipe), places, working_dir=Path(working_dir) if working_dir else None))
    assert f" run {there} " in order.entrypoint
    assert order.parcel
    assert Path(there).with_name("seeds.jsonl") in {order.parcel.prefix / file for file in order.parcel.files}


@pytest.mark.parametrize(
    ("live", "submitted", "refused"),
    [
        ("run", "generate", True), ("train", "train", True), ("train", "generate", False), ("generate", "train", False),
        ("run", "report", False), ("report", "run", False), ("report", "train", False),
    ],
)  # fmt: skip
def test_a_second_driver_of_a_run_is_refused_and_a_reader_is_not(
    task: Path, live: str, submitted: str, refused: bool
) -> None:
    run = read(task).run
    jobs = [Job("j-1", "RUNNING", "", None, 1.0, None, {RUN: run, COMMAND: live}, "psi")]
    order = Order("psi", submitted, "mytask", read(task, [f"{OUTPUT}//"]).run)
    if refused:
        with pytest.raises(RunLockedError, match="job j-1 works on it"):
            refuse_second(jobs, order)
    else:
        refuse_second(jobs, order)


def test_a_run_folder_that_would_be_gone_with_the_job_is_refused(task: Path) -> None:
    with pytest.raises(RecipeError, match=r"run.output: runs/mine is relative(.|\n)*run.scratch: scratch is relative"):
        read_remote_recipe(task / "recipe.toml", ["run.output=runs/mine"], task)
    with pytest.raises(RecipeError, match=r"run.output: runs/chaos is relative"):
        read_remote_recipe(task / "recipe.toml", ['run.output=""', "run.scratch=/scratch"], task)
    assert read(task, ["run.output=s3://bucket/runs/mine"]).run == "s3://bucket/runs/mine"


@pytest.mark.parametrize(
    "override",
    [
        "run.description=sk-proj-abcdefghijklmnop",
        "run.output=s3://AKIAABCDEFGHIJKLMNOP:abc@bucket/run",
        "run.output=s3://user:password@bucket/run",
        'pools.small.engine={kind = "http", url = "https://x/v1", model = "m", api_key_env = "d41d8cd9-8f00"}',
        "tasks.0.description=hf_abcdefghijklmnopqrstuvwxyz",
    ],
)
def test_what_looks_like_a_secret_is_refused_and_not_shown(task: Path, override: str) -> None:
    with pytest.raises(RecipeError, match="looks like a secret") as caught:
        read(task, [override])
    secret = override.rpartition("=")[2].strip(' "}')
    assert secret not in str(caught.value)


def test_all_mistakes_of_a_recipe_are_listed_before_anything_is_sent(task: Path) -> None:
    with pytest.raises(RecipeError, match=r"did you mean 'accepted_rows'"):
        read(task, ["generation.acepted_rows=3"])
