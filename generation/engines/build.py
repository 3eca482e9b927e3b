"""From a recipe's engine section to an engine. Imports an engine's module only when it is wanted."""

from generation.engines.base import Engine
from generation.engines.config import HttpEngine, ScriptedEngine, VllmEngine


def build_engine(
    config: VllmEngine | HttpEngine | ScriptedEngine, replicas_per_gpu: int = 1, rung: int = 0, *, canary: bool = False
) -> Engine:
    """An engine that is not started yet.

    Args:
        config: With absolute paths.
        replicas_per_gpu: Engines that share its GPU.
        rung: How often an engine like it ran out of memory; it is started with so much less.
        canary: Whether a vLLM engine keeps vLLM's own statistics too.
    """
    if isinstance(config, VllmEngine):
        from generation.engines.vllm import VllmModel

        return VllmModel(config, replicas_per_gpu, rung, canary)
    if isinstance(config, HttpEngine):
        from generation.engines.http import HttpModel

        return HttpModel(config)
    from generation.engines.scripted import ScriptedModel

    return ScriptedModel(config, rung)
