"""Every rule of ours holds for every overlay, and catches the mistake that it is there for."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.k8s.manifests import ABSENT, OVERLAYS, plant, read
from tests.k8s.policy import RULES, is_simple_command

GENERATE, TRAIN, DOWNLOAD = "RayJob/psi-generate", "RayJob/psi-train", "Job/psi-models spec.template.spec"
CLUSTER = "spec.rayClusterSpec"
HEAD, WORKERS = f"{CLUSTER}.headGroupSpec", f"{CLUSTER}.workerGroupSpecs.0"
HEAD_POD, WORKER_POD = f"{HEAD}.template.spec", f"{WORKERS}.template.spec"
RAY = f"{WORKER_POD}.containers.0"
RECIPE = "ConfigMap/psi-recipe data.recipe:toml"
RUNS, SHM, TMP = 1, 2, 3  # places in the volumes of a pod


def said(old: str, new: str) -> Callable[[str], str]:
    return lambda text: text.replace(old, new)


def claims_for_scratch(volumes: list[Any]) -> list[Any]:
    """The same volumes, but the one at /scratch is a claim."""
    claim = {"name": "scratch", "persistentVolumeClaim": {"claimName": "psi-scratch"}}
    return [claim if volume["name"] == "scratch" else volume for volume in volumes]


MISTAKES: list[tuple[str, str, Any]] = [
    ("pods_are_restricted", f"{TRAIN} {WORKER_POD}.securityContext.runAsNonRoot", False),
    ("pods_are_restricted", f"{TRAIN} {WORKER_POD}.securityContext.runAsUser", 0),
    ("pods_are_restricted", f"{TRAIN} {WORKER_POD}.securityContext.seccompProfile", ABSENT),
    ("pods_are_restricted", f"{TRAIN} {WORKER_POD}.volumes.+", {"name": "dev", "hostPath": {"path": "/dev"}}),
    ("pods_are_restricted", f"{GENERATE} {RAY}.securityContext.capabilities", {"drop": ["ALL"], "add": ["IPC_LOCK"]}),
    ("pods_are_restricted", f"{GENERATE} {HEAD_POD}.initContainers.0.securityContext", ABSENT),
    ("pods_are_restricted", f"{GENERATE} {CLUSTER}.autoscalerOptions.securityContext", ABSENT),
    ("pods_are_restricted", f"{DOWNLOAD}.containers.0.securityContext.readOnlyRootFilesystem", False),
    ("namespace_enforces_it", "Namespace/psi metadata.labels", {}),
    ("namespace_enforces_it", f"{TRAIN} metadata.namespace", "default"),
    ("resources_are_bounded", f"{TRAIN} {RAY}.resources.limits.memory", ABSENT),
    ("resources_are_bounded", f"{TRAIN} {RAY}.resources.requests.memory", "1Gi"),
    ("resources_are_bounded", f"{TRAIN} {RAY}.resources.limits.nvidia:com/gpu", "2"),
    ("local_disk_is_bounded", f"{TRAIN} {WORKER_POD}.volumes.{TMP}.emptyDir", {}),
    ("local_disk_is_bounded", f"{TRAIN} {WORKER_POD}.volumes.{TMP}.emptyDir.sizeLimit", "100Gi"),
    ("shared_memory_fits", f"{TRAIN} {WORKERS}.rayStartParams.object-store-memory", "5000000000"),
    ("shared_memory_fits", f"{TRAIN} {WORKERS}.rayStartParams.object-store-memory", ABSENT),
    ("shared_memory_fits", f"{TRAIN} {WORKER_POD}.volumes.{SHM}.emptyDir.medium", ABSENT),
    ("shared_memory_fits", f"{TRAIN} {WORKER_POD}.volumes.{SHM}.emptyDir.sizeLimit", "20Gi"),
    ("what_is_written_to_can_be_written", f"{TRAIN} {RAY}.volumeMounts.{TMP}.readOnly", True),
    ("what_is_written_to_can_be_written", f"{TRAIN} {RAY}.volumeMounts.{TMP}", ABSENT),
    ("what_is_written_to_can_be_written", f"{TRAIN} {WORKERS}.rayStartParams.object-spilling-directory", "/spill"),
    ("versions_of_ray_are_one", f"{TRAIN} {CLUSTER}.rayVersion", "2.59.0"),
    ("images_are_one", f"{TRAIN} {RAY}.image", "psi:latest"),
    ("images_are_one", f"{TRAIN} {RAY}.image", "other:0.1.0-gpu"),
    ("work_is_capped", f"{TRAIN} spec.activeDeadlineSeconds", ABSENT),
    ("work_is_capped", f"{GENERATE} {WORKERS}.maxReplicas", ABSENT),
    ("work_is_capped", f"{GENERATE} spec.shutdownAfterJobFinishes", False),
    ("generation_is_elastic_and_training_a_gang", f"{GENERATE} {WORKERS}.minReplicas", 1),
    ("generation_is_elastic_and_training_a_gang", f"{TRAIN} {WORKERS}.minReplicas", 0),
    ("generation_is_elastic_and_training_a_gang", f"{TRAIN} {CLUSTER}.enableInTreeAutoscaling", True),
    ("generation_is_elastic_and_training_a_gang", f"{TRAIN} {HEAD}.rayStartParams", {}),
    ("jobs_are_submitted_by_the_operator", f"{TRAIN} spec.submissionMode", ABSENT),
    ("jobs_are_submitted_by_the_operator", f"{TRAIN} {CLUSTER}.authOptions.mode", "disabled"),
    ("entrypoints_are_simple", f"{TRAIN} spec.entrypoint", "psi train $RECIPE"),
    ("no_secret_is_written_down", f"{TRAIN} {RAY}.env.+", {"name": "HF_TOKEN", "value": "hf_abc"}),
    ("no_secret_is_written_down", f"{TRAIN} kind", "Secret"),
    ("tokens_of_the_cluster_are_for_the_autoscaler", f"{TRAIN} {WORKER_POD}.automountServiceAccountToken", ABSENT),
    ("tokens_of_the_cluster_are_for_the_autoscaler", f"{GENERATE} {HEAD_POD}.automountServiceAccountToken", False),
    ("references_resolve", "PersistentVolumeClaim/psi-runs metadata.name", "runs"),
    ("references_resolve", "ConfigMap/psi-recipe metadata.name", "recipe"),
    ("references_resolve", "ServiceAccount/psi-head metadata.name", "head"),
    ("references_resolve", f"{TRAIN} {WORKER_POD}.volumes.{TMP}.name", "temporary"),
    ("selectors_select", "NetworkPolicy/psi-heads spec.podSelector.matchLabels", {"ray.io/node-type": "master"}),
    ("selectors_select", "PodDisruptionBudget/psi-train spec.selector.matchLabels", {"ray.io/cluster": "psi-train"}),
    ("every_pod_is_behind_a_policy", "NetworkPolicy/psi-nodes spec.policyTypes", ["Ingress"]),
    ("every_pod_is_behind_a_policy", "NetworkPolicy/psi-models spec.podSelector.matchLabels", {"a": "b"}),
    ("nobody_else_leaves_the_run", "NetworkPolicy/psi-nodes spec.egress.+", {"ports": [{"port": 443}]}),
    ("nobody_else_leaves_the_run", "NetworkPolicy/psi-nodes spec.egress.+", {}),
    (
        "nobody_else_leaves_the_run",
        "NetworkPolicy/psi-autoscaler spec.podSelector.matchLabels.app:kubernetes:io/component",
        "train",
    ),
    ("every_node_reaches_the_run_folder", f"{TRAIN} {RAY}.volumeMounts.{RUNS}", ABSENT),
    ("every_node_reaches_the_run_folder", f"{GENERATE} {RAY}.volumeMounts.{RUNS}.readOnly", True),
    ("every_node_reaches_the_run_folder", RECIPE, said('"/runs/', '"/scratch/')),
    ("drains_end_in_time", f"{GENERATE} {WORKER_POD}.terminationGracePeriodSeconds", ABSENT),
    ("drains_end_in_time", f"{GENERATE} {RAY}.env.0.value", "25"),
    ("drains_end_in_time", f"{TRAIN} {HEAD_POD}.containers.0.env.0.value", "140"),
    ("drains_end_in_time", RECIPE, said("drain_seconds = 20", "drain_seconds = 40")),
    ("budgets_count", "PodDisruptionBudget/psi-train spec", {"maxUnavailable": 0, "selector": {}}),
    ("budgets_count", "PodDisruptionBudget/psi-train spec.minAvailable", 1),
    ("budgets_count", "PodDisruptionBudget/psi-generate-head spec.selector.matchLabels.ray:io/node-type", ABSENT),
    ("the_recipe_fits_the_cluster", RECIPE, said("replicas = 1", "replicas = 2")),
    ("the_recipe_fits_the_cluster", RECIPE, said("ranks = 1", "ranks = 2")),
    ("the_recipe_fits_the_cluster", RECIPE, said("cpus_per_rank = 4.0", "cpus_per_rank = 8.0")),
    ("the_recipe_fits_the_cluster", f"{GENERATE} {WORKERS}.maxReplicas", 3),
]

IN_COMPONENTS: list[tuple[str, str, str, Any]] = [
    ("gke", "nobody_else_leaves_the_run", "NetworkPolicy/psi-bucket spec.egress.0.ports.0.port", 80),
    ("gke", "nobody_else_leaves_the_run", RECIPE, said('"gs://BUCKET/', '"/runs/')),
    ("gke", "every_node_reaches_the_run_folder", "NetworkPolicy/psi-bucket spec.egress.0", {"ports": [{"port": 80}]}),
    ("gke", "every_node_reaches_the_run_folder", f"{TRAIN} {RAY}.volumeMounts.{RUNS}", ABSENT),
    ("gke", "every_node_reaches_the_run_folder", RECIPE, said('"/scratch/run"', '"/scratch"')),
    ("gke", "every_node_reaches_the_run_folder", f"{GENERATE} {WORKER_POD}.volumes", claims_for_scratch),
    ("gke", "no_secret_is_written_down", f"{GENERATE} {RAY}.envFrom.0.secretRef.optional", False),
    ("gke", "no_secret_is_written_down", f"{DOWNLOAD}.initContainers.0.env.1.valueFrom.secretKeyRef.optional", ABSENT),
    ("infiniband", "pods_are_restricted", f"{TRAIN} {RAY}.securityContext.capabilities", {"drop": ["ALL"]}),
    ("infiniband", "pods_are_restricted", f"{TRAIN} {RAY}.securityContext.capabilities.add.+", "SYS_ADMIN"),
    ("infiniband", "pods_are_restricted", f"{TRAIN} {HEAD_POD}.containers.0.securityContext.capabilities.add", ["IPC_LOCK"]),
    ("infiniband", "pods_are_restricted", f"{GENERATE} {WORKER_POD}.securityContext.runAsUser", 0),
    ("infiniband", "namespace_enforces_it", "Namespace/psi metadata.labels.pod-security:kubernetes:io/enforce", "restricted"),
]  # fmt: skip


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_overlay_keeps_to_the_policy(overlay: str) -> None:
    manifests = read(overlay)
    assert [problem for rule in RULES for problem in rule(manifests)] == []


@pytest.mark.parametrize(("rule", "where", "value"), MISTAKES, ids=[rule for rule, _, _ in MISTAKES])
def test_each_rule_catches_its_mistake(rule: str, where: str, value: Any) -> None:
    manifests = read("single-node-gpu")
    plant(manifests, where, value)
    assert list(next(each for each in RULES if each.__name__ == rule)(manifests)) != []


@pytest.mark.parametrize(
    ("overlay", "rule", "where", "value"), IN_COMPONENTS, ids=[f"{x[0]}-{x[1]}" for x in IN_COMPONENTS]
)
def test_each_rule_catches_the_mistake_of_a_component(overlay: str, rule: str, where: str, value: Any) -> None:
    manifests = read(overlay)
    plant(manifests, where, value)
    assert list(next(each for each in RULES if each.__name__ == rule)(manifests)) != []


def test_every_rule_has_a_mistake_that_it_catches() -> None:
    assert {rule.__name__ for rule in RULES} == {rule for rule, _, _ in MISTAKES}


@given(st.text(max_size=5), st.sampled_from("$&|;<>()`\"'\\*?[]#~!{}\n\t"), st.text(max_size=5))
def test_no_entrypoint_holds_anything_that_a_shell_reads(before: str, special: str, after: str) -> None:
    assert not is_simple_command(f"psi {before}{special}{after}")


def test_an_assignment_is_no_command() -> None:
    assert not is_simple_command("A=1 psi train recipe.toml")
    assert is_simple_command("psi train /etc/psi/recipe.toml training.ranks=2")
