"""Which `vllm.*` names Mainboard answers for when vLLM is not installed, and why each.

Packages written for vLLM's plugin protocol import these names. To add one, add an entry here; a
name that has no home in Mainboard gets one in `mainboard.plugins.vllm_names`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from mainboard.light_typing import NamedTuple

__all__ = ["ALIASES", "Alias"]


class Alias(NamedTuple):
    """Where one `vllm` module's names come from.

    Args:
        reason: who needs it.
        target: the module that reads and writes go to.
        names: single names that come from elsewhere, as `module:attribute`.
        writes: names whose assignment is a call of `module:function`.
    """

    reason: str
    target: str | None = None
    names: Mapping[str, str] = MappingProxyType({})
    writes: Mapping[str, str] = MappingProxyType({})


_REGISTRY = {"ModelRegistry": "mainboard.models:ModelRegistry"}

ALIASES: Mapping[str, Alias] = MappingProxyType(
    {
        "vllm": Alias(
            "general plugins say `from vllm import ModelRegistry`; some compare `__version__`",
            names={**_REGISTRY, "__version__": "mainboard.plugins.vllm_names:VERSION"},
        ),
        "vllm.platforms": Alias(
            "30 of 37 vendor packages take Platform and PlatformEnum from it; hosts and tests"
            " replace `_current_platform` and `load_plugins_by_group` in it",
            "mainboard.platforms",
            writes={"_current_platform": "mainboard.platforms.resolve:adopt"},
        ),
        "vllm.platforms.interface": Alias(
            "the base class of a platform as vLLM's documents import it",
            "mainboard.platforms.interface",
        ),
        "vllm.platforms.cpu": Alias(
            "four vendor packages derive from CpuPlatform", "mainboard.platforms.cpu"
        ),
        "vllm.platforms.cuda": Alias(
            "two vendor packages derive from its classes", "mainboard.platforms.cuda"
        ),
        "vllm.platforms.rocm": Alias(
            "one vendor package derives from RocmPlatform", "mainboard.platforms.rocm"
        ),
        "vllm.logger": Alias(
            "20 of 37 vendor packages call init_logger at import; 8 edit its logging configuration",
            "mainboard.plugins.vllm_names.logger",
        ),
        "vllm.logging_utils": Alias(
            "logging configurations name its formatters as strings",
            "mainboard.plugins.vllm_names.logging_utils",
        ),
        "vllm.envs": Alias(
            "19 of 37 vendor packages read it; four add variables of their own",
            "mainboard.plugins.vllm_names.envs",
        ),
        "vllm.plugins": Alias(
            "hosts and workers call load_general_plugins from it", "mainboard.plugins"
        ),
        "vllm.model_executor": Alias("the parent of the next two"),
        "vllm.model_executor.models": Alias(
            "the second import path of ModelRegistry", names=_REGISTRY
        ),
        "vllm.model_executor.models.registry": Alias(
            "the third import path of ModelRegistry", "mainboard.models"
        ),
    }
)
