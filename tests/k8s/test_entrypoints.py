"""What the jobs run is a command that `psi` has, on a recipe that loads; and, slowly, it does what it is there for."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import typer.main
from safetensors.numpy import save_file

from cluster.check import check_recipe
from cluster.cli import app
from cluster.recipe import load_recipe
from generation.storage import Store
from tests.bucket.proxy import faulty
from tests.bucket.server import BUCKET, object_store
from tests.k8s.hub_stand_in import FILES, hub
from tests.k8s.manifests import OVERLAYS, ROOT, Manifest, find, of_kind, ray_pods, read, recipe_of

FOLDER = "/etc/psi"
JOBS = ("psi-generate", "psi-train")
MODEL = {"model_type": "qwen2", "max_position_embeddings": 32768, "hidden_size": 896, "vocab_size": 151936}


def write_recipe(manifests: list[Manifest], folder: Path) -> None:
    """The files of the recipe's config map, with the image's, the models' and the runs' folders found below others."""
    found = next(each for each in of_kind(manifests, "ConfigMap") if "recipe.toml" in each["data"])
    places = {'"/opt/psi/': f'"{ROOT}/', '"/models/': f'"{folder}/models/', '"/runs/': f'"{folder}/runs/'}
    for name, text in found["data"].items():
        for path, place in places.items():
            text = text.replace(path, place)
        (folder / name).write_text(text)


def write_models(manifests: list[Manifest], folder: Path) -> None:
    """What the download job leaves behind, as far as a recipe looks at it."""
    pod = find(manifests, "Job", "psi-models")["spec"]["template"]["spec"]
    words = [word for container in pod["initContainers"] for word in container["command"]]
    for place in (word.partition("=")[2] for word in words if word.startswith("--local-dir=")):
        path = folder / Path(place).relative_to("/")
        path.mkdir(parents=True)
        (path / "config.json").write_text(json.dumps(MODEL))
        save_file({"weight": np.zeros((4, 4), np.float16)}, path / "model.safetensors")


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("job", JOBS)
def test_every_entrypoint_is_a_command_on_the_mounted_recipe(overlay: str, job: str) -> None:
    manifests = read(overlay)
    program, command, *arguments = shlex.split(find(manifests, "RayJob", job)["spec"]["entrypoint"])
    assert program == "psi"
    parsed = typer.main.get_command(app).commands[command].make_context(command, arguments)
    recipe = parsed.params["recipe"]
    assert str(recipe.parent) == FOLDER
    for pod in ray_pods([find(manifests, "RayJob", job)]):
        name = pod.volume_at(FOLDER)["configMap"]["name"]
        assert recipe.name in find(manifests, "ConfigMap", name)["data"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_recipe_is_without_mistakes_and_joins_the_cluster(overlay: str, tmp_path: Path) -> None:
    manifests = read(overlay)
    write_recipe(manifests, tmp_path)
    if overlay != "cpu-smoke":
        write_models(manifests, tmp_path)
    assert check_recipe(tmp_path / "recipe.toml", []).startswith(f"{tmp_path}/recipe.toml: no mistakes")
    loaded = load_recipe(tmp_path / "recipe.toml")
    assert loaded.recipe.cluster.address == "auto"
    assert loaded.recipe.run.output.startswith((f"{tmp_path}/runs/", "gs://BUCKET/", "s3://BUCKET/"))


def test_the_models_are_downloaded_at_their_revisions_and_heads_wait_until_all_are_there(tmp_path: Path) -> None:
    """The commands of the download job, one after the other, and what a head waits with, as they stand in the manifests."""
    manifests = read("gke")
    download = find(manifests, "Job", "psi-models")["spec"]["template"]["spec"]
    waiting = next(pod for pod in ray_pods(manifests) if pod.is_head).spec["initContainers"][0]["command"]
    models, environment = tmp_path / "models", {**os.environ, "HF_HOME": str(tmp_path / "home")}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"

    def here(command: list[str]) -> list[str]:
        return [word.replace("/models", str(models)) for word in command]

    with hub() as (address, asked):
        head = subprocess.Popen(here(waiting), env=environment)
        try:
            for container in [*download["initContainers"], *download["containers"]]:
                assert head.poll() is None
                told = {each["name"]: each["value"] for each in container.get("env", []) if "value" in each}
                variables = environment | told | {"HF_ENDPOINT": address}
                done = subprocess.run(here(container["command"]), env=variables, capture_output=True, text=True)
                assert done.returncode == 0, done.stderr
            assert head.wait(timeout=60) == 0
        finally:
            head.kill()
    for model, revision in re.findall(r"'(Qwen/[^']+)', '--revision=([0-9a-f]{40})'", str(download["initContainers"])):
        assert f"/api/models/{model}/tree/{revision}" in asked
        assert {path.name for path in (models / model.partition("/")[2]).iterdir()} >= FILES.keys()


def ways() -> list[tuple[str, str, str]]:
    """The commands of both jobs, and where their run folder is: each way that an overlay runs them, once."""
    found = set[tuple[str, str, str]]()
    for overlay in OVERLAYS:
        manifests = read(overlay)
        entrypoints = [find(manifests, "RayJob", name)["spec"]["entrypoint"] for name in JOBS]
        found.add((*entrypoints, "bucket" if "://" in recipe_of(manifests)["run"]["output"] else "folder"))
    return sorted(found)


@pytest.fixture
def run_folder(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A run folder on this machine, or in a bucket of a server that speaks S3."""
    if place == "folder":
        yield f"{tmp_path}/runs/smoke"
        return
    for name, value in {"ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "y", "EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    with object_store() as port, faulty(port) as proxy:
        yield f"s3://{BUCKET}/smoke{proxy.uri_options}"


@pytest.mark.slow
@pytest.mark.parametrize(("generate", "train", "place"), ways(), ids=[way[-1] for way in ways()])
def test_both_jobs_of_every_overlay_run_with_the_smoke_settings_and_the_second_waits_for_the_first(
    generate: str, train: str, run_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head without CPUs and one worker, as `cpu-smoke` has them; training is started first, and waits for the dataset."""
    from ray.cluster_utils import Cluster

    write_recipe(read("cpu-smoke"), tmp_path)
    recipe = tmp_path / "recipe.toml"
    where = f'output = "{run_folder}"\nscratch = "{tmp_path}/scratch"'
    recipe.write_text(recipe.read_text().replace(f'output = "{tmp_path}/runs/smoke"', where))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80 * 2**20})
    try:
        cluster.add_node(num_cpus=2, object_store_memory=200 * 2**20)
        environment = {**os.environ, "RAY_ADDRESS": cluster.address, "PYTHONPATH": str(ROOT)}

        def start(entrypoint: str, name: str) -> subprocess.Popen[bytes]:
            program, *arguments = shlex.split(entrypoint.replace(FOLDER, str(tmp_path)))
            words = [str(Path(sys.executable).with_name(program)), *arguments]
            with (tmp_path / f"{name}.log").open("wb") as log:
                return subprocess.Popen(words, env=environment, stderr=log)

        training = start(train, "train")
        time.sleep(5.0)
        assert training.poll() is None
        codes = start(generate, "generate").wait(), training.wait()
    finally:
        cluster.shutdown()
    said = {name: (tmp_path / f"{name}.log").read_text() for name in ("generate", "train")}
    assert codes == (0, 0), said
    assert "to be sealed by `psi generate`" in said["train"]
    assert Store(run_folder).exists("models/round-0/model.safetensors")
