"""The committed renderings are what the overlays make."""

import re
import shutil
import subprocess

import pytest
import yaml

from tests.k8s.manifests import K8S, OVERLAYS, RENDERED, ROOT, read

TOOLS = (
    (["kustomize", "build"], ["kustomize", "version"]),
    (["kubectl", "kustomize"], ["kubectl", "version", "--client"]),
)


def builder() -> list[str] | None:
    """The words before a folder that render it, of a tool that knows components as they are today."""
    for words, version in TOOLS:
        if shutil.which(words[0]):
            said = subprocess.run(version, capture_output=True, text=True).stdout
            if re.search(r"v5\.\d+\.\d+", said):
                return words
    return None


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_committed_rendering_is_what_the_overlay_makes(overlay: str) -> None:
    tool = builder()
    if tool is None:
        pytest.skip("no kustomize of version 5 is installed, nor a kubectl that holds one")
    made = subprocess.run([*tool, str(K8S / "overlays" / overlay)], capture_output=True, text=True, check=True).stdout
    again = f"kubectl kustomize k8s/overlays/{overlay} > k8s/rendered/{overlay}.yaml"
    assert list(yaml.load_all(made, yaml.CSafeLoader)) == read(overlay), again


def test_every_overlay_has_a_rendering_and_every_component_is_in_one() -> None:
    assert sorted(path.stem for path in RENDERED.glob("*.yaml")) == OVERLAYS
    used = "".join(path.read_text() for path in (K8S / "overlays").rglob("kustomization.yaml"))
    assert [path.name for path in (K8S / "components").iterdir() if f"components/{path.name}" not in used] == []


def test_what_the_page_names_is_there() -> None:
    page = (K8S / "README.md").read_text()
    assert page.count("\n") <= 120
    named = {path.rstrip("/.") for path in re.findall(r"(?:tests/)?k8s/[A-Za-z0-9_./-]+", page)}
    assert named
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
    assert [overlay for overlay in OVERLAYS if f"`{overlay}`" not in page] == []
