"""The rendered manifests, and ways to look into them and to plant mistakes in them."""

import re
import tomllib
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
RENDERED = K8S / "rendered"
OVERLAYS = sorted(path.parent.name for path in (K8S / "overlays").glob("*/kustomization.yaml"))
GPU = "nvidia.com/gpu"
ABSENT = object()
"""As a planted value: the field is taken away."""
_FACTORS = {"": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12} | {
    f"{letter}i": 1024.0 ** (power + 1) for power, letter in enumerate("KMGT")
}

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Pod:
    """A pod template.

    Attributes:
        name: For messages: `psi-train workers`.
        owner: The manifest that it is in.
        spec: The pod's.
        labels: Of the pod, with those that the operator adds.
        group: Its Ray group, or None.
    """

    name: str
    owner: Manifest
    spec: Manifest
    labels: dict[str, str]
    group: Manifest | None = None

    @property
    def containers(self) -> list[Manifest]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def is_head(self) -> bool:
        return self.labels.get("ray.io/node-type") == "head"

    @property
    def ray_container(self) -> Manifest:
        return self.spec["containers"][0]

    def volume_at(self, path: str) -> Manifest:
        """The volume that the Ray container sees at a path, or an empty one."""
        names = [mount["name"] for mount in self.ray_container.get("volumeMounts", []) if mount["mountPath"] == path]
        return next((volume for volume in self.spec.get("volumes", []) if volume["name"] in names), {})

    def claim_above(self, path: str) -> str | None:
        """The claim that the Ray container may write to at a path: that of the innermost volume there; None where it is no claim."""
        mounts = {each["mountPath"]: each for each in self.ray_container.get("volumeMounts", [])}
        above = [mount for mount in mounts if path == mount or path.startswith(f"{mount}/")]
        innermost = max(above, key=len, default="")
        if not innermost or mounts[innermost].get("readOnly"):
            return None
        return self.volume_at(innermost).get("persistentVolumeClaim", {}).get("claimName")


@cache
def _rendered(overlay: str) -> list[Manifest]:
    return list(yaml.load_all((RENDERED / f"{overlay}.yaml").read_text(), yaml.CSafeLoader))


def read(overlay: str) -> list[Manifest]:
    """The manifests of an overlay, to change as one likes."""
    return deepcopy(_rendered(overlay))


def of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def find(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    return next(manifest for manifest in of_kind(manifests, kind) if manifest["metadata"]["name"] == name)


def recipe_of(manifests: list[Manifest]) -> Manifest:
    """The recipe in the config map of an overlay, as plain values."""
    maps = [each for each in of_kind(manifests, "ConfigMap") if "recipe.toml" in each["data"]]
    return tomllib.loads(maps[0]["data"]["recipe.toml"])


def pods(manifests: list[Manifest]) -> Iterator[Pod]:
    """All pods that the manifests bring about."""
    for manifest in manifests:
        name = manifest["metadata"]["name"]
        if manifest["kind"] == "RayJob":
            yield from _ray_pods(manifest)
        elif manifest["kind"] == "Job":
            template = manifest["spec"]["template"]
            yield Pod(name, manifest, template["spec"], template["metadata"]["labels"])


def ray_pods(manifests: list[Manifest]) -> list[Pod]:
    return [pod for pod in pods(manifests) if pod.group is not None]


def _ray_pods(job: Manifest) -> Iterator[Pod]:
    cluster, name = job["spec"]["rayClusterSpec"], job["metadata"]["name"]
    groups = [("head", cluster["headGroupSpec"])] + [(each["groupName"], each) for each in cluster["workerGroupSpecs"]]
    for number, (group_name, group) in enumerate(groups):
        added = {
            "ray.io/is-ray-node": "yes",
            "ray.io/cluster": f"{name}-abcde",
            "ray.io/node-type": "worker" if number else "head",
            "ray.io/group": group_name if number else "headgroup",
            "app.kubernetes.io/name": "kuberay",
            "app.kubernetes.io/created-by": "kuberay-operator",
        }
        labels = added | group["template"].get("metadata", {}).get("labels", {}) | group.get("labels", {})
        yield Pod(f"{name} {group_name}", job, group["template"]["spec"], labels, group)


def amount(quantity: Any) -> float:
    """A Kubernetes quantity as a number: bytes, cores, pieces."""
    found = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(quantity))
    if found is None or found[2] not in _FACTORS:
        raise ValueError(f"{quantity}: is no quantity")
    return float(found[1]) * _FACTORS[found[2]]


def matches(selector: Manifest, labels: dict[str, str]) -> bool:
    """Whether a label selector selects a pod."""
    for rule in selector.get("matchExpressions", []):
        value, operator = labels.get(rule["key"]), rule["operator"]
        if operator not in ("In", "NotIn", "Exists", "DoesNotExist"):
            raise ValueError(f"{operator}: is no operator of a selector")
        holds = value in rule["values"] if "values" in rule else value is not None
        if holds != (operator in ("In", "Exists")):
            return False
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def plant(manifests: list[Manifest], where: str, value: Any) -> None:
    """Set, or take away, a field: `RayJob/psi-train spec.rayClusterSpec.workerGroupSpecs.0.replicas`.

    Keys with dots are written with colons: `nvidia:com/gpu`. A `+` at the end appends; a function as value changes what is there. Names may
    lack the hash at their end.
    """
    target, path = where.split(" ")
    kind, name = target.split("/")
    place: Any = next(each for each in of_kind(manifests, kind) if each["metadata"]["name"].startswith(name))
    *keys, last = [int(key) if key.isdigit() else key.replace(":", ".") for key in path.split(".")]
    for key in keys:
        place = place[key]
    if last == "+":
        place.append(value)
    elif value is ABSENT:
        del place[last]
    else:
        place[last] = value(place[last]) if callable(value) else value
