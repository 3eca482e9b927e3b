"""The manifests are valid by the schemas of the kinds that they are of: custom ones with their CEL rules, and those of Kubernetes itself."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.k8s.crd import Definitions
from tests.k8s.manifests import ABSENT, OVERLAYS, ROOT, Manifest, find, plant, read

FOLDER = Path(os.environ.get("PSI_CRD_DIR", ROOT / "../shared/schemas"))
KUBERNETES = ("1.33", "1.36")
"""The oldest and the newest that these manifests are for."""
BUILT_IN = {"v1", "apps/v1", "batch/v1", "policy/v1", "networking.k8s.io/v1"}
TRAIN = "RayJob/psi-train spec"
WORKERS = f"{TRAIN}.rayClusterSpec.workerGroupSpecs.0"
CUSTOM_MISTAKES: list[tuple[str, Any]] = [
    (f"{TRAIN}.activeDeadlineSecond", 1),
    (f"{TRAIN}.backoffLimit", "three"),
    (f"{TRAIN}.managedBy", "somebody"),
    (f"{WORKERS}.groupName", ABSENT),
    (f"{WORKERS}.template.spec.containers.0.volumeMount", []),
    (f"{WORKERS}.rayStartParams.num-cpus", 0),
    (f"{WORKERS}.template.spec.containers.0.resources.limits.memory", "24 GB"),
    (f"{TRAIN}.deletionStrategy", {"deletionRules": [{"policy": "DeleteCluster", "condition": {}}]}),
    ("PodMonitor/psi spec.selectors", {}),
    ("PrometheusRule/psi spec.groups.0.rules.0.expr", ABSENT),
    ("ClusterQueue/psi spec.resourceGroups.0.flavors.0.resources.0.nominalQuota", "many"),
]
BUILT_IN_MISTAKES: list[tuple[str, Any]] = [
    ("NetworkPolicy/psi-nodes spec.podSelectors", {}),
    ("Job/psi-models spec.template.spec.containers.0.image", 5),
    ("PodDisruptionBudget/psi-train spec.minAvailable", []),
    ("PersistentVolumeClaim/psi-scratch spec.accessMode", ["ReadWriteMany"]),
]


@pytest.fixture(scope="module")
def definitions() -> Definitions:
    if not FOLDER.is_dir():
        pytest.skip(f"PSI_CRD_DIR: {FOLDER} holds no definitions of custom resources")
    return Definitions(FOLDER)


def built_in_errors(manifest: Manifest, version: str) -> list[str]:
    import kubernetes_validate

    try:
        kubernetes_validate.validate(manifest, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{manifest['kind']} {manifest['metadata']['name']}: {error.message}"]
    return []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_custom_resources_are_valid(overlay: str, definitions: Definitions) -> None:
    manifests = [each for each in read(overlay) if each["apiVersion"] not in BUILT_IN]
    assert [each["kind"] for each in manifests if not definitions.knows(each)] == []
    assert [error for each in manifests for error in definitions.errors(each)] == []


@pytest.mark.parametrize(("where", "value"), CUSTOM_MISTAKES, ids=[where for where, _ in CUSTOM_MISTAKES])
def test_mistakes_in_custom_resources_are_found(where: str, value: Any, definitions: Definitions) -> None:
    manifests = read("gke-kueue")
    plant(manifests, where, value)
    assert definitions.errors(find(manifests, *where.split(" ")[0].split("/"))) != []


def test_a_version_that_is_not_served_is_found(definitions: Definitions) -> None:
    manifests = read("gke-kueue")
    plant(manifests, "RayJob/psi-train apiVersion", "ray.io/v2")
    assert definitions.errors(find(manifests, "RayJob", "psi-train")) != []


@pytest.mark.parametrize("version", KUBERNETES)
def test_built_in_kinds_are_valid(version: str) -> None:
    different = {
        json.dumps(each): each for overlay in OVERLAYS for each in read(overlay) if each["apiVersion"] in BUILT_IN
    }
    assert [error for each in different.values() for error in built_in_errors(each, version)] == []


@pytest.mark.parametrize(("where", "value"), BUILT_IN_MISTAKES, ids=[where for where, _ in BUILT_IN_MISTAKES])
def test_mistakes_in_built_in_kinds_are_found(where: str, value: Any) -> None:
    manifests = read("gke")
    plant(manifests, where, value)
    assert built_in_errors(find(manifests, *where.split(" ")[0].split("/")), KUBERNETES[-1]) != []
