"""Every rule of KubeRay and Kueue holds for what we ship, and catches the mistake that it is there for."""

from typing import Any

import pytest

from tests.k8s.manifests import ABSENT, OVERLAYS, find, of_kind, plant, read
from tests.k8s.operator_rules import RULES, queue_is_there_and_large_enough

GENERATE, TRAIN = "RayJob/psi-generate", "RayJob/psi-train"
CLUSTER = "spec.rayClusterSpec"
HEAD, WORKERS = f"{CLUSTER}.headGroupSpec", f"{CLUSTER}.workerGroupSpecs.0"
HEAD_POD, WORKER_POD = f"{HEAD}.template.spec", f"{WORKERS}.template.spec"
QUEUED = {f"{GENERATE} metadata.labels.kueue:x-k8s:io/queue-name": "psi"}
MISTAKES: list[tuple[str, dict[str, Any]]] = [
    ("name_is_short", {f"{TRAIN} metadata.name": "train-" + "x" * 42}),
    ("name_is_short", {f"{TRAIN} metadata.name": "Train"}),
    ("brings_one_cluster", {f"{TRAIN} {CLUSTER}": ABSENT}),
    ("brings_one_cluster", {f"{TRAIN} spec.clusterSelector": {"ray.io/cluster": "mine"}}),
    ("submission_mode_is_known", {f"{TRAIN} spec.submissionMode": "HttpMode"}),
    ("suspending_deletes_the_cluster", {f"{TRAIN} spec.shutdownAfterJobFinishes": ABSENT}),
    ("only_a_deleted_cluster_has_a_time_to_live", {f"{GENERATE} spec.shutdownAfterJobFinishes": False}),
    ("only_a_deleted_cluster_has_a_time_to_live", {f"{GENERATE} spec.ttlSecondsAfterFinished": -1}),
    ("deletion_is_said_once", {f"{GENERATE} spec.deletionStrategy": {"deletionRules": [{"policy": "DeleteCluster"}]}}),
    (
        "deletion_is_said_once",
        {
            f"{GENERATE} spec.shutdownAfterJobFinishes": False,
            f"{GENERATE} spec.deletionStrategy": {"deletionRules": [{"policy": "DeleteWorkers"}]},
        },
    ),
    ("limits_are_positive", {f"{GENERATE} spec.activeDeadlineSeconds": 0}),
    ("limits_are_positive", {f"{GENERATE} spec.preRunningDeadlineSeconds": 0}),
    ("limits_are_positive", {f"{GENERATE} spec.backoffLimit": -1}),
    ("interactive_jobs_are_not_retried", {f"{GENERATE} spec.submissionMode": "InteractiveMode"}),
    (
        "a_sidecar_submits_alone",
        {f"{GENERATE} spec.submissionMode": "SidecarMode", f"{GENERATE} spec.submitterConfig": {"backoffLimit": 1}},
    ),
    (
        "a_sidecar_submits_alone",
        {f"{TRAIN} spec.submissionMode": "SidecarMode", f"{TRAIN} {HEAD_POD}.restartPolicy": "Always"},
    ),
    ("runtime_environment_is_yaml", {f"{GENERATE} spec.runtimeEnvYAML": "env_vars: {A: 1"}),
    ("groups_have_containers", {f"{GENERATE} {WORKER_POD}.containers": []}),
    ("replicas_are_in_order", {f"{TRAIN} {WORKERS}.maxReplicas": ABSENT}),
    ("replicas_are_in_order", {f"{GENERATE} {WORKERS}.minReplicas": 99}),
    ("resources_are_said_once", {f"{GENERATE} {HEAD}.resources": {"CPU": "1"}}),
    ("labels_belong_to_the_group", {f"{GENERATE} {WORKERS}.rayStartParams.labels": "a=b"}),
    ("labels_belong_to_the_group", {f"{GENERATE} {WORKERS}.labels.ray:io/market-type": "on demand"}),
    ("start_parameters_are_text", {f"{GENERATE} {HEAD}.rayStartParams.num-cpus": 0}),
    ("start_parameters_are_options", {f"{GENERATE} {HEAD}.rayStartParams.num-cpu": "0"}),
    ("group_settings_of_the_second_autoscaler", {f"{TRAIN} {WORKERS}.priority": 1}),
    (
        "group_settings_of_the_second_autoscaler",
        {f"{GENERATE} {WORKERS}.priority": 1, f"{GENERATE} {CLUSTER}.rayVersion": "2.55.0"},
    ),
    ("pods_of_the_second_autoscaler_are_not_restarted", {f"{GENERATE} {WORKER_POD}.restartPolicy": "OnFailure"}),
    (
        "the_autoscaler_is_chosen_by_its_option",
        {f"{GENERATE} {HEAD_POD}.containers.0.env": [{"name": "RAY_enable_autoscaler_v2", "value": "1"}]},
    ),
    ("autoscaled_groups_are_not_suspended", {f"{GENERATE} {WORKERS}.suspend": True}),
    ("token_needs_a_version", {f"{GENERATE} {CLUSTER}.rayVersion": ABSENT}),
    ("token_needs_a_version", {f"{GENERATE} {CLUSTER}.authOptions.enableK8sTokenAuth": True}),
    ("no_field_of_an_alpha_gate", {f"{GENERATE} {CLUSTER}.networkPolicy": {"mode": "DenyAll"}}),
    ("no_field_of_an_alpha_gate", {f"{GENERATE} {CLUSTER}.gcsFaultToleranceOptions": {"backend": "rocksdb"}}),
    (
        "redis_comes_by_its_option",
        {f"{GENERATE} {HEAD_POD}.containers.0.env": [{"name": "RAY_REDIS_ADDRESS", "value": "redis:6379"}]},
    ),
    ("queued_jobs_delete_their_cluster", QUEUED | {f"{GENERATE} spec.shutdownAfterJobFinishes": False}),
    ("queued_jobs_bring_their_cluster", QUEUED | {f"{GENERATE} spec.clusterSelector": {"ray.io/cluster": "mine"}}),
    ("queued_jobs_scale_as_elastic_ones", QUEUED),
    ("queued_groups_are_few_and_not_called_head", QUEUED | {f"{GENERATE} {WORKERS}.groupName": "head"}),
]
QUEUE_MISTAKES: list[dict[str, Any]] = [
    {"LocalQueue/psi metadata.name": "other"},
    {"ClusterQueue/psi spec.resourceGroups.0.flavors.0.resources.2.name": "pods"},
    {"ClusterQueue/psi spec.resourceGroups.0.flavors.0.resources.3.nominalQuota": 3},
]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_operator_and_the_queue_take_every_job(overlay: str) -> None:
    manifests = read(overlay)
    assert [problem for job in of_kind(manifests, "RayJob") for rule in RULES for problem in rule(job)] == []
    assert list(queue_is_there_and_large_enough(manifests)) == []


@pytest.mark.parametrize(("rule", "mistake"), MISTAKES, ids=[rule for rule, _ in MISTAKES])
def test_each_rule_catches_its_mistake(rule: str, mistake: dict[str, Any]) -> None:
    manifests = read("single-node-gpu")
    jobs = [find(manifests, "RayJob", where.split(" ")[0].split("/")[1]) for where in mistake]
    for where, value in mistake.items():
        plant(manifests, where, value)
    assert list(next(each for each in RULES if each.__name__ == rule)(jobs[0])) != []


@pytest.mark.parametrize("mistake", QUEUE_MISTAKES, ids=["no queue", "uncovered", "too small"])
def test_a_queue_that_would_never_start_a_job_is_found(mistake: dict[str, Any]) -> None:
    manifests = read("gke-kueue")
    for where, value in mistake.items():
        plant(manifests, where, value)
    assert list(queue_is_there_and_large_enough(manifests)) != []


def test_every_rule_has_a_mistake_that_it_catches() -> None:
    assert {rule.__name__ for rule in RULES} == {rule for rule, _ in MISTAKES}
