"""From a recipe's engine section to an engine. Imports an engine's module only when it is wanted."""

from generation.engines.base import Engine
from generation.engines.config import HttpEngine, ScriptedEngine, VllmEngine


def build_engine(config: VllmEngine | HttpEngine | ScriptedEngine) -> Engine:
    """An engine that is not started yet. Paths in `config` are absolute."""
    if isinstance(config, VllmEngine):
        from generation.engines.vllm import VllmModel

        return VllmModel(config)
    if isinstance(config, HttpEngine):
        from generation.engines.http import HttpModel

        return HttpModel(config)
    from generation.engines.scripted import ScriptedModel

    return ScriptedModel(config)
