"""The Ray cluster of a run: an existing one by address, or a local one that lives and dies with the driver."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from cluster.recipe import ClusterConfig
from generation.errors import EngineError

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
"""Telemetry off: private data is a promise."""


@contextmanager
def ray_session(config: ClusterConfig) -> Iterator[None]:
    """Join the cluster at `config.address`, or start a local one; leave or stop it at the end.

    Raises:
        EngineError: The cluster cannot be reached.
    """
    import ray

    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    local = {} if config.address else {"num_cpus": config.local_cpus, "include_dashboard": False}
    try:
        ray.init(
            address=config.address or "local",
            namespace="psi",
            logging_level=logging.ERROR,
            log_to_driver=False,
            runtime_env={"env_vars": QUIET},
            **local,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"at {config.address}" if config.address else "on this machine"
        raise EngineError(
            f"cluster.address: no Ray cluster {where}: {error}; check the address or leave it out"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()
