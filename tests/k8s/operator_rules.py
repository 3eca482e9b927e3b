"""What KubeRay's operator (v1.7) and Kueue's webhook (v0.19) refuse, and no schema says. One function a rule; each yields what is wrong."""

import importlib.util
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.k8s.manifests import Manifest, amount, find, of_kind, ray_pods

Problems = Iterator[str]

MAX_JOB_NAME, MAX_GROUPS = 47, 17
MODES = {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"}
GATED = {"networkPolicy", "tlsOptions", "historyServerOptions"}
SIZED_BY_POD = {"num-cpus", "num-gpus", "memory", "resources"}
QUEUE, ELASTIC = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/elastic-job"
_DNS = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")


def name_is_short(job: Manifest) -> Problems:
    name = job["metadata"]["name"]
    if len(name) > MAX_JOB_NAME or not _DNS.fullmatch(name):
        yield f"{name}: is not a DNS label of at most {MAX_JOB_NAME} characters"


def brings_one_cluster(job: Manifest) -> Problems:
    if ("rayClusterSpec" in job["spec"]) == bool(job["spec"].get("clusterSelector")):
        yield "exactly one of rayClusterSpec and clusterSelector must be set"


def submission_mode_is_known(job: Manifest) -> Problems:
    if job["spec"].get("submissionMode", "K8sJobMode") not in MODES:
        yield f"submissionMode {job['spec']['submissionMode']} is none of {sorted(MODES)}"


def suspending_deletes_the_cluster(job: Manifest) -> Problems:
    if job["spec"].get("suspend") and not job["spec"].get("shutdownAfterJobFinishes"):
        yield "suspend needs shutdownAfterJobFinishes"


def only_a_deleted_cluster_has_a_time_to_live(job: Manifest) -> Problems:
    ttl = job["spec"].get("ttlSecondsAfterFinished", 0)
    if ttl < 0 or (ttl and not job["spec"].get("shutdownAfterJobFinishes")):
        yield "ttlSecondsAfterFinished must not be negative, and needs shutdownAfterJobFinishes"


def deletion_is_said_once(job: Manifest) -> Problems:
    rules = job["spec"].get("deletionStrategy", {}).get("deletionRules", [])
    if rules and job["spec"].get("shutdownAfterJobFinishes"):
        yield "deletionStrategy and shutdownAfterJobFinishes exclude each other"
    if any(rule["policy"] == "DeleteWorkers" for rule in rules) and _autoscales(job):
        yield "DeleteWorkers is refused with autoscaling"


def limits_are_positive(job: Manifest) -> Problems:
    for field in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if job["spec"].get(field, 1) <= 0:
            yield f"{field} must be positive"
    if job["spec"].get("backoffLimit", 0) < 0:
        yield "backoffLimit must not be negative"


def interactive_jobs_are_not_retried(job: Manifest) -> Problems:
    if job["spec"].get("submissionMode") == "InteractiveMode" and job["spec"].get("backoffLimit", 0):
        yield "InteractiveMode excludes backoffLimit"


def a_sidecar_submits_alone(job: Manifest) -> Problems:
    if job["spec"].get("submissionMode") == "SidecarMode":
        for field in ("submitterPodTemplate", "submitterConfig"):
            if field in job["spec"]:
                yield f"SidecarMode excludes {field}"
        if _head(job)["template"]["spec"].get("restartPolicy", "Never") != "Never":
            yield "SidecarMode needs restartPolicy Never on the head"


def runtime_environment_is_yaml(job: Manifest) -> Problems:
    try:
        yaml.safe_load(job["spec"].get("runtimeEnvYAML", ""))
    except yaml.YAMLError as error:
        yield f"runtimeEnvYAML: {error}"


def groups_have_containers(job: Manifest) -> Problems:
    for name, group in _groups(job):
        if not group["template"]["spec"].get("containers"):
            yield f"{name}: has no container"


def replicas_are_in_order(job: Manifest) -> Problems:
    for name, group in _groups(job)[1:]:
        if not _autoscales(job) and not {"minReplicas", "maxReplicas"} <= group.keys():
            yield f"{name}: without autoscaling minReplicas and maxReplicas must be set"
        if not 0 <= group.get("minReplicas", 0) <= group.get("maxReplicas", 2**31 - 1):
            yield f"{name}: minReplicas must be between 0 and maxReplicas"


def resources_are_said_once(job: Manifest) -> Problems:
    for name, group in _groups(job):
        if group.get("resources") and SIZED_BY_POD & group.get("rayStartParams", {}).keys():
            yield f"{name}: resources stand both in rayStartParams and in the group"


def labels_belong_to_the_group(job: Manifest) -> Problems:
    for name, group in _groups(job):
        if "labels" in group.get("rayStartParams", {}):
            yield f"{name}: labels stand in rayStartParams; use the group's"
        for key, value in group.get("labels", {}).items():
            if not _LABEL_VALUE.fullmatch(value):
                yield f"{name}: {key} has the value {value}, which is none"


def start_parameters_are_text(job: Manifest) -> Problems:
    for name, group in _groups(job):
        for key, value in group.get("rayStartParams", {}).items():
            if not isinstance(value, str):
                yield f"{name}: rayStartParams.{key} is {value!r}, not text"


def start_parameters_are_options(job: Manifest) -> Problems:
    """Those of `ray start`, as installed here."""
    for name, group in _groups(job):
        for key in group.get("rayStartParams", {}):
            if f'"--{key}"' not in _ray_start():
                yield f"{name}: `ray start` has no --{key}"


@cache
def _ray_start() -> str:
    package = importlib.util.find_spec("ray")
    assert package is not None
    assert package.origin is not None
    return (Path(package.origin).parent / "scripts/scripts.py").read_text()


def group_settings_of_the_second_autoscaler(job: Manifest) -> Problems:
    for name, group in _groups(job)[1:]:
        for field, since in (("priority", (2, 56)), ("idleTimeoutSeconds", (2, 10))):
            if group.get(field) and (not _autoscales(job, "v2") or _ray(job) < since):
                yield f"{name}: {field} needs autoscaler v2 and Ray {since}"


def pods_of_the_second_autoscaler_are_not_restarted(job: Manifest) -> Problems:
    for name, group in _groups(job) if _autoscales(job, "v2") else ():
        if group["template"]["spec"].get("restartPolicy", "Never") != "Never":
            yield f"{name}: autoscaler v2 needs restartPolicy Never, or none"


def the_autoscaler_is_chosen_by_its_option(job: Manifest) -> Problems:
    if "RAY_enable_autoscaler_v2" in _head_environment(job):
        yield "RAY_enable_autoscaler_v2 is set in the head's environment; use autoscalerOptions.version"


def autoscaled_groups_are_not_suspended(job: Manifest) -> Problems:
    for name, group in _groups(job)[1:] if _autoscales(job) else ():
        if group.get("suspend"):
            yield f"{name}: suspend is refused with autoscaling"


def token_needs_a_version(job: Manifest) -> Problems:
    options = job["spec"]["rayClusterSpec"].get("authOptions", {})
    if options.get("mode") == "token" and _ray(job) < (2, 52):
        yield "authOptions.mode token needs rayVersion 2.52 or later"
    if options.get("enableK8sTokenAuth"):
        yield "enableK8sTokenAuth is refused for a RayJob"


def no_field_of_an_alpha_gate(job: Manifest) -> Problems:
    cluster = job["spec"]["rayClusterSpec"]
    for field in sorted(GATED & cluster.keys()):
        yield f"{field}: a stock operator refuses it"
    if cluster.get("gcsFaultToleranceOptions", {}).get("backend") == "rocksdb":
        yield "gcsFaultToleranceOptions.backend rocksdb: a stock operator refuses it"


def redis_comes_by_its_option(job: Manifest) -> Problems:
    if {"RAY_REDIS_ADDRESS", "REDIS_USERNAME"} & _head_environment(job).keys():
        yield "Redis is named in the head's environment; use gcsFaultToleranceOptions"


def queued_jobs_delete_their_cluster(job: Manifest) -> Problems:
    if _is_queued(job) and not job["spec"].get("shutdownAfterJobFinishes"):
        yield "Kueue needs shutdownAfterJobFinishes"


def queued_jobs_bring_their_cluster(job: Manifest) -> Problems:
    if _is_queued(job) and job["spec"].get("clusterSelector"):
        yield "Kueue refuses a cluster that exists already"


def queued_jobs_scale_as_elastic_ones(job: Manifest) -> Problems:
    elastic = job["metadata"].get("annotations", {}).get(ELASTIC) == "true"
    if _is_queued(job) and _autoscales(job) and not elastic:
        yield f"Kueue takes autoscaling only with the annotation {ELASTIC}"


def queued_groups_are_few_and_not_called_head(job: Manifest) -> Problems:
    names = [name for name, _ in _groups(job)[1:]]
    if _is_queued(job) and (len(names) > MAX_GROUPS or "head" in names):
        yield f"Kueue takes at most {MAX_GROUPS} worker groups, none of them called head"


RULES: tuple[Callable[[Manifest], Problems], ...] = (
    name_is_short,
    brings_one_cluster,
    submission_mode_is_known,
    suspending_deletes_the_cluster,
    only_a_deleted_cluster_has_a_time_to_live,
    deletion_is_said_once,
    limits_are_positive,
    interactive_jobs_are_not_retried,
    a_sidecar_submits_alone,
    runtime_environment_is_yaml,
    groups_have_containers,
    replicas_are_in_order,
    resources_are_said_once,
    labels_belong_to_the_group,
    start_parameters_are_text,
    start_parameters_are_options,
    group_settings_of_the_second_autoscaler,
    pods_of_the_second_autoscaler_are_not_restarted,
    the_autoscaler_is_chosen_by_its_option,
    autoscaled_groups_are_not_suspended,
    token_needs_a_version,
    no_field_of_an_alpha_gate,
    redis_comes_by_its_option,
    queued_jobs_delete_their_cluster,
    queued_jobs_bring_their_cluster,
    queued_jobs_scale_as_elastic_ones,
    queued_groups_are_few_and_not_called_head,
)


def queue_is_there_and_large_enough(manifests: list[Manifest]) -> Problems:
    """The queue of each queued job exists, covers every resource that its pods ask for, and has room for a gang at its full size."""
    for job in of_kind(manifests, "RayJob"):
        local = job["metadata"]["labels"].get(QUEUE)
        if local is None:
            continue
        if not any(each["metadata"]["name"] == local for each in of_kind(manifests, "LocalQueue")):
            yield f"{job['metadata']['name']}: there is no queue {local}"
            continue
        queue = find(manifests, "ClusterQueue", find(manifests, "LocalQueue", local)["spec"]["clusterQueue"])
        quota = {
            each["name"]: amount(each["nominalQuota"])
            for group in queue["spec"]["resourceGroups"]
            for flavor in group["flavors"]
            for each in flavor["resources"]
        }
        for name, wanted in _requested(job).items():
            if name not in quota:
                yield f"{job['metadata']['name']}: the queue does not cover {name}"
            elif wanted > quota[name]:
                yield f"{job['metadata']['name']}: wants {wanted:g} {name} at most, and the queue has {quota[name]:g}"


def _requested(job: Manifest) -> dict[str, float]:
    """All that a job may ask for at once."""
    total: dict[str, float] = {}
    for pod in ray_pods([job]):
        assert pod.group is not None
        for container in pod.spec["containers"]:
            for name, value in container["resources"]["requests"].items():
                total[name] = total.get(name, 0.0) + amount(value) * (1 if pod.is_head else pod.group["maxReplicas"])
    autoscaler = job["spec"]["rayClusterSpec"].get("autoscalerOptions", {}).get("resources", {}).get("requests", {})
    for name, value in autoscaler.items():
        total[name] += amount(value)
    return total


def _head(job: Manifest) -> Manifest:
    return job["spec"]["rayClusterSpec"]["headGroupSpec"]


def _groups(job: Manifest) -> list[tuple[str, Manifest]]:
    workers = job["spec"]["rayClusterSpec"].get("workerGroupSpecs", [])
    return [("head", _head(job)), *((group["groupName"], group) for group in workers)]


def _head_environment(job: Manifest) -> dict[str, Any]:
    return {each["name"]: each for each in _head(job)["template"]["spec"]["containers"][0].get("env", [])}


def _autoscales(job: Manifest, version: str | None = None) -> bool:
    cluster = job["spec"]["rayClusterSpec"]
    chosen = cluster.get("autoscalerOptions", {}).get("version", "v2")
    return bool(cluster.get("enableInTreeAutoscaling")) and version in (None, chosen)


def _ray(job: Manifest) -> tuple[int, ...]:
    version = job["spec"]["rayClusterSpec"].get("rayVersion", "")
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _is_queued(job: Manifest) -> bool:
    return QUEUE in job["metadata"].get("labels", {})
