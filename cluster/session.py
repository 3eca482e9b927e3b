"""The Ray cluster of a run: an existing one by address, or a local one that lives and dies with the driver."""

import logging
import os
import signal
from collections.abc import Generator
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

REAP = {"RAY_process_group_cleanup_enabled": "1"}
"""A killed replica takes its engine's own processes with it, which would hold the GPU otherwise."""


@contextmanager
def ray_session(config: ClusterConfig) -> Generator[None]:
    """Join the cluster at `config.address`, or start a local one; leave or stop it at the end.

    Raises:
        EngineError: The cluster cannot be reached.
    """
    import ray

    on_term = signal.getsignal(signal.SIGTERM)
    for name, value in (QUIET | REAP).items():
        os.environ.setdefault(name, value)
    try:
        ray.init(
            address=config.address or "local",
            num_cpus=None if config.address else config.local_cpus,
            include_dashboard=None if config.address else False,
            namespace="psi",
            logging_level=logging.ERROR,
            log_to_driver=False,
            runtime_env={"env_vars": QUIET},
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"at {config.address}" if config.address else "on this machine"
        raise EngineError(
            f"cluster.address: no Ray cluster {where}: {error}; check the address or leave it out"
        ) from error
    if callable(on_term):  # Ray has put in its place one that exits at once
        signal.signal(signal.SIGTERM, on_term)
    try:
        yield
    finally:
        ray.shutdown()
