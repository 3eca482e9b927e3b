"""What we ask of every overlay beyond what a cluster would take. One function a rule; each yields what is wrong."""

import importlib.metadata
import re
import shlex
from collections.abc import Callable, Iterator
from typing import Any

from cluster.recipe import ClusterConfig
from tests.k8s.image import ENVIRONMENT, locked
from tests.k8s.manifests import GPU, Manifest, Pod, amount, find, matches, of_kind, pods, ray_pods, recipe_of

Problems = Iterator[str]

RAY_AND_POD_SECONDS = 10.0
READ_FROM = ("PATH", "LD_LIBRARY_PATH", "CC")
"""Variables whose paths are only read."""
"""What must lie between two deadlines of which one waits for the other."""
PATHS = ("/tmp", "/dev/shm", "/scratch", "/home/psi")
_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|CREDENTIAL|(^|_)KEY($|_)", re.IGNORECASE)
_DISK = "ephemeral-storage"


def pods_are_restricted(manifests: list[Manifest]) -> Problems:
    """Pod Security Standard `restricted`, and a read-only root.

    A job with RDMA devices runs as root, without capabilities but IPC_LOCK where there is a device.
    """
    rooted = _jobs_with_rdma(manifests)
    for pod in pods(manifests):
        context = pod.spec.get("securityContext", {})
        if not context.get("fsGroup") or (
            pod.owner["metadata"]["name"] not in rooted
            and not (context.get("runAsNonRoot") and context.get("runAsUser"))
        ):
            yield f"{pod.name}: does not run as a user of its own"
        if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{pod.name}: has no seccomp profile"
        if any("hostPath" in volume for volume in pod.spec.get("volumes", [])) or pod.spec.get("hostNetwork"):
            yield f"{pod.name}: reaches into its node"
        for container in pod.containers:
            name, locks = f"{pod.name} {container['name']}", _has_rdma(container)
            yield from _restricted(name, container.get("securityContext", {}), locks=locks)
    for job in of_kind(manifests, "RayJob"):
        cluster = job["spec"]["rayClusterSpec"]
        if cluster.get("enableInTreeAutoscaling"):
            context = cluster["autoscalerOptions"].get("securityContext", {})
            yield from _restricted(f"{job['metadata']['name']} autoscaler", context)


def _restricted(name: str, context: Manifest, *, locks: bool = False) -> Problems:
    if context.get("allowPrivilegeEscalation") is not False or not context.get("readOnlyRootFilesystem"):
        yield f"{name}: may gain privileges or change its root"
    if context.get("capabilities") != {"drop": ["ALL"], **({"add": ["IPC_LOCK"]} if locks else {})}:
        yield f"{name}: has other capabilities than it needs"


def _has_rdma(container: Manifest) -> bool:
    return any(name.startswith("rdma/") for name in container.get("resources", {}).get("limits", {}))


def _jobs_with_rdma(manifests: list[Manifest]) -> set[str]:
    found = [pod for pod in pods(manifests) if any(_has_rdma(container) for container in pod.containers)]
    return {pod.owner["metadata"]["name"] for pod in found}


def namespace_enforces_it(manifests: list[Manifest]) -> Problems:
    standard = "privileged" if _jobs_with_rdma(manifests) else "restricted"
    for namespace in of_kind(manifests, "Namespace"):
        if namespace["metadata"]["labels"].get("pod-security.kubernetes.io/enforce") != standard:
            yield "the namespace does not enforce pod security"
    for manifest in manifests:
        everywhere = manifest["kind"] in ("Namespace", "ClusterQueue", "ResourceFlavor")
        if not everywhere and manifest["metadata"].get("namespace") != "psi":
            yield f"{manifest['kind']} {manifest['metadata']['name']}: is not in the namespace"


def resources_are_bounded(manifests: list[Manifest]) -> Problems:
    for pod in pods(manifests):
        for container in pod.containers:
            limits, requests = (container.get("resources", {}).get(key, {}) for key in ("limits", "requests"))
            if not {"cpu", "memory"} <= limits.keys() or limits != requests:
                yield f"{pod.name} {container['name']}: limits and requests of cpu and memory must be set, and equal"
            if limits.get(GPU) != requests.get(GPU):
                yield f"{pod.name} {container['name']}: GPUs requested and allowed differ"


def local_disk_is_bounded(manifests: list[Manifest]) -> Problems:
    for pod in pods(manifests):
        folders = [volume["emptyDir"] for volume in pod.spec.get("volumes", []) if "emptyDir" in volume]
        if any("sizeLimit" not in folder for folder in folders):
            yield f"{pod.name}: an emptyDir has no sizeLimit"
            continue
        sizes = sum(amount(folder["sizeLimit"]) for folder in folders if folder.get("medium") != "Memory")
        allowed = pod.ray_container["resources"]["limits"].get(_DISK, "0")
        if sizes > amount(allowed):
            yield f"{pod.name}: its folders may hold more than its limit of {_DISK}"


def shared_memory_fits(manifests: list[Manifest]) -> Problems:
    """Object store < /dev/shm <= half of the memory, which /dev/shm counts against."""
    for pod in ray_pods(manifests):
        assert pod.group is not None
        folder = pod.volume_at("/dev/shm").get("emptyDir", {})
        shared = amount(folder.get("sizeLimit", "0")) if folder.get("medium") == "Memory" else 0.0
        store = amount(pod.group["rayStartParams"].get("object-store-memory", "0"))
        if not 0 < store < shared:
            yield f"{pod.name}: the object store of {store:g} bytes does not fit into /dev/shm of {shared:g}"
        if shared > amount(pod.ray_container["resources"]["limits"]["memory"]) / 2:
            yield f"{pod.name}: /dev/shm may fill more than half of the memory"


def what_is_written_to_can_be_written(manifests: list[Manifest]) -> Problems:
    """The root is read-only: Ray's folders, spilling, and the folders that the image's environment names must lie on volumes."""
    named = {name: value for name, value in ENVIRONMENT.items() if value.startswith("/") and name not in READ_FROM}
    needed = {*PATHS, *named.values()}
    for pod in ray_pods(manifests):
        assert pod.group is not None
        mounts = [each["mountPath"] for each in pod.ray_container["volumeMounts"] if not each.get("readOnly")]
        spill = pod.group["rayStartParams"].get("object-spilling-directory", "")
        for path in sorted({*needed, spill}):
            if not any(path == mount or path.startswith(f"{mount}/") for mount in mounts):
                yield f"{pod.name}: {path or 'the folder for spilling'} lies on no volume that can be written"


def versions_of_ray_are_one(manifests: list[Manifest]) -> Problems:
    installed = importlib.metadata.version("ray")
    versions = {job["spec"]["rayClusterSpec"].get("rayVersion") for job in of_kind(manifests, "RayJob")}
    versions |= {locked(variant)["ray"] for variant in ("gpu", "cpu")}
    if versions != {installed}:
        yield f"rayVersion and the image's locks name Ray {versions}, and {installed} is installed"


def images_are_one(manifests: list[Manifest]) -> Problems:
    images = {container["image"] for pod in pods(manifests) for container in pod.containers}
    if len(images) != 1 or not re.fullmatch(r"[^:@]+:\d+\.\d+\.\d+-(cpu|gpu)", next(iter(images))):
        yield f"the images {sorted(images)} are not one with a version and a variant"
    variant = next(iter(images)).rpartition("-")[2]
    wants = any(GPU in pod.ray_container["resources"]["limits"] for pod in ray_pods(manifests))
    if wants != (variant == "gpu"):
        yield f"the image is made for {variant}, and the pods are not"


def work_is_capped(manifests: list[Manifest]) -> Problems:
    for job in of_kind(manifests, "RayJob"):
        name, spec = job["metadata"]["name"], job["spec"]
        for field in ("activeDeadlineSeconds", "preRunningDeadlineSeconds", "ttlSecondsAfterFinished", "backoffLimit"):
            if field not in spec:
                yield f"{name}: has no {field}"
        if not spec.get("shutdownAfterJobFinishes"):
            yield f"{name}: leaves its cluster behind"
        for group in spec["rayClusterSpec"]["workerGroupSpecs"]:
            if group.get("maxReplicas", 2**31 - 1) > 1000:
                yield f"{name} {group['groupName']}: has no maxReplicas that caps its cost"


def generation_is_elastic_and_training_a_gang(manifests: list[Manifest]) -> Problems:
    for job in of_kind(manifests, "RayJob"):
        cluster, name = job["spec"]["rayClusterSpec"], job["metadata"]["name"]
        elastic = cluster.get("enableInTreeAutoscaling", False)
        if elastic != (name == "psi-generate"):
            yield f"{name}: generation scales, and training does not"
        for group in cluster["workerGroupSpecs"]:
            least, most = group["minReplicas"], group["maxReplicas"]
            if (elastic and least) or (not elastic and not least == group["replicas"] == most):
                yield f"{name} {group['groupName']}: {least} to {most} replicas"
    if any(pod.is_head and pod.group["rayStartParams"].get("num-cpus") != "0" for pod in ray_pods(manifests)):
        yield "a head offers CPUs, so that work may land on it"


def jobs_are_submitted_by_the_operator(manifests: list[Manifest]) -> Problems:
    """With other modes a broken log stream ends a healthy job, and a shell reads the entrypoint."""
    for job in of_kind(manifests, "RayJob"):
        if job["spec"].get("submissionMode") != "HTTPMode":
            yield f"{job['metadata']['name']}: submissionMode is not HTTPMode"
        if job["spec"]["rayClusterSpec"].get("authOptions", {}).get("mode") != "token":
            yield f"{job['metadata']['name']}: takes jobs without a token"


def entrypoints_are_simple(manifests: list[Manifest]) -> Problems:
    for job in of_kind(manifests, "RayJob"):
        if not is_simple_command(job["spec"]["entrypoint"]):
            yield f"{job['metadata']['name']}: {job['spec']['entrypoint']!r} is not one simple command"


def is_simple_command(text: str) -> bool:
    """Whether every shell, whatever its mode of quoting, reads nothing but words."""
    return bool(re.fullmatch(r"[A-Za-z0-9_./=-]+( [A-Za-z0-9_./=-]+)*", text)) and "=" not in shlex.split(text)[0]


def no_secret_is_written_down(manifests: list[Manifest]) -> Problems:
    if of_kind(manifests, "Secret"):
        yield "a Secret stands among the manifests"
    for pod in pods(manifests):
        for container in pod.containers:
            for each in container.get("env", []):
                if "value" in each and _SECRET.search(each["name"]):
                    yield f"{pod.name} {container['name']}: {each['name']} has a plain value"
            named = [each["valueFrom"]["secretKeyRef"] for each in container.get("env", []) if "valueFrom" in each]
            named += [each["secretRef"] for each in container.get("envFrom", [])]
            for secret in named:
                if not secret.get("optional"):
                    yield f"{pod.name} {container['name']}: does not start without the secret {secret['name']}"


def tokens_of_the_cluster_are_for_the_autoscaler(manifests: list[Manifest]) -> Problems:
    for pod in pods(manifests):
        if pod.spec.get("automountServiceAccountToken") is not _scales(pod):
            yield f"{pod.name}: automountServiceAccountToken must be {_scales(pod)}"


def _scales(pod: Pod) -> bool:
    """Whether the autoscaler runs beside it."""
    return pod.is_head and pod.owner["spec"]["rayClusterSpec"].get("enableInTreeAutoscaling", False)


def references_resolve(manifests: list[Manifest]) -> Problems:
    there = {(each["kind"], each["metadata"]["name"]) for each in manifests}
    for pod in pods(manifests):
        wanted = {("ServiceAccount", pod.spec.get("serviceAccountName", "default"))}
        volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", [])}
        wanted |= {("ConfigMap", each["configMap"]["name"]) for each in volumes.values() if "configMap" in each}
        claims = [each["persistentVolumeClaim"] for each in volumes.values() if "persistentVolumeClaim" in each]
        wanted |= {("PersistentVolumeClaim", claim["claimName"]) for claim in claims}
        for kind, name in sorted(wanted - there):
            yield f"{pod.name}: there is no {kind} {name}"
        for container in pod.containers:
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in volumes:
                    yield f"{pod.name} {container['name']}: there is no volume {mount['name']}"


def selectors_select(manifests: list[Manifest]) -> Problems:
    """Every selector of ours selects a pod, by labels that it or the operator sets."""
    labels = [pod.labels for pod in pods(manifests)]
    selectors = {
        "NetworkPolicy": "podSelector",
        "PodDisruptionBudget": "selector",
        "PodMonitor": "selector",
    }
    for kind, field in selectors.items():
        for manifest in of_kind(manifests, kind):
            if not any(matches(manifest["spec"][field], each) for each in labels):
                yield f"{kind} {manifest['metadata']['name']}: selects no pod"


def every_pod_is_behind_a_policy(manifests: list[Manifest]) -> Problems:
    policies = [policy["spec"] for policy in of_kind(manifests, "NetworkPolicy")]
    for pod in pods(manifests):
        types = {kind for spec in policies if matches(spec["podSelector"], pod.labels) for kind in spec["policyTypes"]}
        if types != {"Ingress", "Egress"}:
            yield f"{pod.name}: no NetworkPolicy bounds what it sends or hears"


def nobody_else_leaves_the_run(manifests: list[Manifest]) -> Problems:
    """Ports without a named receiver are for names (53), the API server, the models' hub, and the bucket (443) where there is one."""
    bucket = {443} if "://" in recipe_of(manifests)["run"]["output"] else set[int]()
    for policy in of_kind(manifests, "NetworkPolicy"):
        rules = [rule for rule in policy["spec"].get("egress", []) if "to" not in rule]
        ports = {port.get("port") for rule in rules for port in rule.get("ports", [{}])}
        for pod in ray_pods(manifests) if ports - {53} - bucket else ():
            if matches(policy["spec"]["podSelector"], pod.labels) and not _scales(pod):
                yield f"{policy['metadata']['name']}: lets {pod.name} send anywhere"


def every_node_reaches_the_run_folder(manifests: list[Manifest]) -> Problems:
    """A local one lies on a claim. For one in a bucket port 443 is open, and training's scratch, which its nodes share, lies on a claim."""
    run = recipe_of(manifests)["run"]
    for pod in ray_pods(manifests):
        if "://" not in run["output"]:
            needed = run["output"]
        elif pod.owner["metadata"]["name"] == "psi-train":
            needed = run["scratch"]
        else:
            needed = ""
        if needed and pod.claim_above(needed) is None:
            yield f"{pod.name}: {needed} lies on no claim that it may write to"
        if not needed and pod.claim_above(run["scratch"]) is not None:
            yield f"{pod.name}: waits for a claim that it has no use for"
        if "://" in run["output"] and not _may_send(manifests, pod, 443):
            yield f"{pod.name}: may not reach {run['output']}"


def _may_send(manifests: list[Manifest], pod: Pod, port: int) -> bool:
    """Whether a policy lets a pod reach any address on a port."""
    selecting = [each["spec"] for each in of_kind(manifests, "NetworkPolicy")]
    rules = [rule for spec in selecting if matches(spec["podSelector"], pod.labels) for rule in spec.get("egress", [])]
    return any(port == each.get("port") for rule in rules if "to" not in rule for each in rule.get("ports", []))


def drains_end_in_time(manifests: list[Manifest]) -> Problems:
    """Replicas, or on a head the driver, leave, then Ray's node, then the pod."""
    default = ClusterConfig().drain_seconds
    drain = recipe_of(manifests).get("cluster", {}).get("drain_seconds", default)
    for pod in ray_pods(manifests):
        environment = {each["name"]: each.get("value") for each in pod.ray_container.get("env", [])}
        leave = float(environment.get("RAY_JOB_STOP_WAIT_TIME_S", 3)) if pod.is_head else drain
        node = float(environment.get("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", 30))
        grace = pod.spec.get("terminationGracePeriodSeconds", 30)
        if node < leave + RAY_AND_POD_SECONDS or grace < node + RAY_AND_POD_SECONDS:
            yield f"{pod.name}: what runs there may leave for {leave} s, Ray drains for {node} s, and the pod is killed after {grace} s"


def budgets_count(manifests: list[Manifest]) -> Problems:
    """Pods of an owner that cannot be scaled are counted by a whole minAvailable alone; a gang must be kept whole."""
    gangs = [pod for pod in ray_pods(manifests) if pod.owner["metadata"]["name"] == "psi-train"]
    for budget in of_kind(manifests, "PodDisruptionBudget"):
        spec = budget["spec"]
        if not isinstance(spec.get("minAvailable"), int):
            yield f"{budget['metadata']['name']}: has no whole minAvailable"
            continue
        kept = [pod for pod in gangs if matches(spec["selector"], pod.labels)]
        size = sum(1 if pod.is_head else pod.group["replicas"] for pod in kept)
        if size != spec["minAvailable"] and kept:
            yield f"{budget['metadata']['name']}: keeps {spec['minAvailable']} of a gang of {size}"
    for pod in ray_pods(manifests):
        budgets = of_kind(manifests, "PodDisruptionBudget")
        kept = any(matches(budget["spec"]["selector"], pod.labels) for budget in budgets)
        if kept != (pod.is_head or pod in gangs):
            yield f"{pod.name}: heads and gangs have a budget, and nobody else"


def the_recipe_fits_the_cluster(manifests: list[Manifest]) -> Problems:
    """All replicas of the recipe have a place at full size, and the gang has one for each rank."""
    recipe: dict[str, Any] = recipe_of(manifests)
    small = recipe["pools"]["small"]
    training = recipe["training"]
    wanted = {
        "psi-generate": (small.get("replicas", 1), small.get("cpus", 1.0), small.get("gpus", 0.0)),
        "psi-train": (training.get("ranks", 1), training.get("cpus_per_rank", 1.0), training.get("gpus_per_rank", 0)),
    }
    for name, (count, cpus, gpus) in wanted.items():
        places = 0
        for group in find(manifests, "RayJob", name)["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
            limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
            by_gpu = amount(limits.get(GPU, 0)) // gpus if gpus else float("inf")
            places += int(min(amount(limits["cpu"]) // cpus, by_gpu)) * group["maxReplicas"]
        if places < count:
            yield f"{name}: the recipe wants {count} processes, and the cluster has places for {places}"
        if gpus and places > count:
            yield f"{name}: the cluster may buy {places} places, and the recipe uses {count}"


RULES: tuple[Callable[[list[Manifest]], Problems], ...] = (
    pods_are_restricted,
    namespace_enforces_it,
    resources_are_bounded,
    local_disk_is_bounded,
    shared_memory_fits,
    what_is_written_to_can_be_written,
    versions_of_ray_are_one,
    images_are_one,
    work_is_capped,
    generation_is_elastic_and_training_a_gang,
    jobs_are_submitted_by_the_operator,
    entrypoints_are_simple,
    no_secret_is_written_down,
    tokens_of_the_cluster_are_for_the_autoscaler,
    references_resolve,
    selectors_select,
    every_pod_is_behind_a_policy,
    nobody_else_leaves_the_run,
    every_node_reaches_the_run_folder,
    drains_end_in_time,
    budgets_count,
    the_recipe_fits_the_cluster,
)
