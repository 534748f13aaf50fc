"""Which `vllm.*` names Mainboard answers for when vLLM is not installed, and why each.

Packages written for vLLM's plugin protocol import these names. To add one, add an entry here; a
name that has no home in Mainboard gets one in `mainboard.plugins.vllm_names`. Counts are of 37
packages that declare a platform; `benchmarks/alias_names.py` prints every name and what all cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from mainboard.light_typing import NamedTuple

__all__ = ["ABSENT", "ALIASES", "Alias"]

_NOTHING: Mapping[str, str] = MappingProxyType({})


class Alias(NamedTuple):
    """Where one `vllm` module's names come from.

    Args:
        reason: who needs it.
        target: the module that reads and writes go to.
        names: single names that come from elsewhere, as `module:attribute`.
        writes: names whose assignment is a call of `module:function`.
        retired: names that vLLM 0.33 no longer has, each with what to use instead.
        moved: for a module that vLLM 0.33 no longer has, where its names are now.
        torch: names that import torch when they are read; `*` is all of them.
    """

    reason: str
    target: str | None = None
    names: Mapping[str, str] = _NOTHING
    writes: Mapping[str, str] = _NOTHING
    retired: Mapping[str, str] = _NOTHING
    moved: str | None = None
    torch: tuple[str, ...] = ()


_NAMES = "mainboard.plugins.vllm_names"
_UTILS = f"{_NAMES}.utils"
_CONFIG = f"{_NAMES}.config"
_RETIRED = f"{_NAMES}.retired"
_REGISTRY = {"ModelRegistry": "mainboard.models:ModelRegistry"}
_BACKENDS = "mainboard.kernels.backends"

# Which module has each configuration; vLLM has one module for each group.
_CONFIGURATIONS = {
    "engine": (
        "OptimizationLevel",
        "VllmConfig",
        "config",
        "get_current_vllm_config",
        "get_current_vllm_config_or_none",
        "get_layers_from_vllm_config",
        "replace",
        "set_current_vllm_config",
        "update_config",
    ),
    "model": ("ModelConfig",),
    "memory": (
        "CacheConfig",
        "EncoderCacheManagerConfig",
        "KVEventsConfig",
        "KVTransferConfig",
        "LoadConfig",
        "OffloadConfig",
        "PrefetchOffloadConfig",
        "UVAOffloadConfig",
    ),
    "work": (
        "DeviceConfig",
        "EPLBConfig",
        "FaultToleranceConfig",
        "ParallelConfig",
        "SchedulerConfig",
    ),
    "compilation": ("CUDAGraphMode", "CompilationConfig", "CompilationMode", "PassConfig"),
    "features": (
        "AttentionConfig",
        "AuxOutputConfig",
        "KernelConfig",
        "LoRAConfig",
        "LoggingConfig",
        "MambaConfig",
        "MultiModalConfig",
        "ObservabilityConfig",
        "PoolerConfig",
        "ProfilerConfig",
        "SpeculativeConfig",
        "StructuredOutputsConfig",
        "WatchdogConfig",
    ),
}
_CONFIG_MODULES = {
    "attention": "features",
    "cache": "memory",
    "compilation": "compilation",
    "device": "work",
    "kernel": "features",
    "kv_events": "memory",
    "kv_transfer": "memory",
    "load": "memory",
    "lora": "features",
    "mamba": "features",
    "model": "model",
    "multimodal": "features",
    "observability": "features",
    "offload": "memory",
    "parallel": "work",
    "pooler": "features",
    "profiler": "features",
    "scheduler": "work",
    "speculative": "features",
    "structured_outputs": "features",
    "utils": "engine",
    "vllm": "engine",
}

ABSENT: Mapping[str, str] = MappingProxyType(
    {
        "vllm._C": "vLLM's compiled kernels; packages catch the ImportError and go on without",
        "vllm._C_stable_libtorch": "vLLM's compiled kernels, of one binary for several torches",
        "vllm._custom_ops": "vLLM's Python calls of its compiled kernels",
        "vllm._moe_C": "vLLM's compiled kernels for experts",
        "vllm._rocm_C": "vLLM's compiled kernels for AMD devices",
        "vllm.cumem_allocator": "vLLM's compiled allocator",
        "vllm.distributed.parallel_state": "vLLM's running engine; a worker needs vLLM itself",
        "vllm.v1.worker": "vLLM's running engine; a worker needs vLLM itself",
        "vllm.vllm_flash_attn": "vLLM's compiled attention; see mainboard.kernels.flash_attn",
    }
)

ALIASES: Mapping[str, Alias] = MappingProxyType(
    {
        "vllm": Alias(
            "general plugins say `from vllm import ModelRegistry`; some compare `__version__`",
            names={
                **_REGISTRY,
                "__version__": f"{_NAMES}:VERSION",
                "PoolingParams": f"{_NAMES}.sampling_params:PoolingParams",
                "SamplingParams": f"{_NAMES}.sampling_params:SamplingParams",
                "TextPrompt": f"{_NAMES}.inputs:TextPrompt",
                "TokensPrompt": f"{_NAMES}.inputs:TokensPrompt",
            },
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
            names={"_Backend": f"{_RETIRED}:_Backend"},
            retired={"_Backend": "vllm.v1.attention.backends.registry.AttentionBackendEnum"},
        ),
        "vllm.platforms.cpu": Alias(
            "four vendor packages derive from CpuPlatform", "mainboard.platforms.cpu"
        ),
        "vllm.platforms.cuda": Alias(
            "two vendor packages derive from its classes", "mainboard.platforms.cuda"
        ),
        "vllm.platforms.rocm": Alias(
            "one vendor package derives from RocmPlatform, on machines without its hardware too",
            "mainboard.platforms.rocm",
        ),
        "vllm.plugins": Alias(
            "hosts and workers call load_general_plugins from it", "mainboard.plugins"
        ),
        "vllm.logger": Alias(
            "20 of 37 vendor packages call init_logger at import; 8 edit its logging configuration",
            f"{_NAMES}.logger",
            names={
                name: f"{_NAMES}.envs:{name}"
                for name in (
                    "VLLM_CONFIGURE_LOGGING",
                    "VLLM_LOGGING_CONFIG_PATH",
                    "VLLM_LOGGING_LEVEL",
                    "VLLM_LOGGING_PREFIX",
                )
            },
            retired={
                name: f"vllm.envs.{name}"
                for name in (
                    "VLLM_CONFIGURE_LOGGING",
                    "VLLM_LOGGING_CONFIG_PATH",
                    "VLLM_LOGGING_LEVEL",
                    "VLLM_LOGGING_PREFIX",
                )
            },
        ),
        "vllm.logging_utils": Alias(
            "logging configurations name its formatters as strings", f"{_NAMES}.logging_utils"
        ),
        "vllm.logging_utils.formatter": Alias(
            "the module of the formatters in vLLM 0.33", f"{_NAMES}.logging_utils"
        ),
        "vllm.envs": Alias(
            "19 of 37 vendor packages read it; four add variables of their own",
            f"{_NAMES}.envs",
            retired={
                "VLLM_ATTENTION_BACKEND": "attention_config.backend of the configuration",
                "VLLM_USE_V1": "nothing: it is always true",
            },
        ),
        "vllm.version": Alias("the version alone", names={"__version__": f"{_NAMES}:VERSION"}),
        "vllm.model_executor": Alias("the parent of those below"),
        "vllm.model_executor.models": Alias(
            "the second import path of ModelRegistry", names=_REGISTRY
        ),
        "vllm.model_executor.models.registry": Alias(
            "the third import path of ModelRegistry", "mainboard.models"
        ),
        "vllm.model_executor.layers": Alias("the parent of the next"),
        "vllm.model_executor.layers.quantization": Alias(
            "one platform and four general plugins register a method of quantization",
            f"{_NAMES}.quantization",
        ),
        "vllm.model_executor.layers.quantization.base_config": Alias(
            "classes of methods of quantization derive from it", f"{_NAMES}.quantization"
        ),
        "vllm.reasoning": Alias("four general plugins register parsers", f"{_NAMES}.parsers"),
        "vllm.reasoning.abs_reasoning_parsers": Alias(
            "the module of ReasoningParserManager", f"{_NAMES}.parsers"
        ),
        "vllm.tool_parsers": Alias("four general plugins register parsers", f"{_NAMES}.parsers"),
        "vllm.tool_parsers.abstract_tool_parser": Alias(
            "the module of ToolParserManager", f"{_NAMES}.parsers"
        ),
        "vllm.entrypoints": Alias("the parent of the next"),
        "vllm.entrypoints.openai": Alias("the parent of the next"),
        "vllm.entrypoints.openai.tool_parsers": Alias(
            "where ToolParserManager was", f"{_NAMES}.parsers", moved="vllm.tool_parsers"
        ),
        "vllm.entrypoints.openai.tool_parsers.abstract_tool_parser": Alias(
            "where ToolParserManager was", f"{_NAMES}.parsers", moved="vllm.tool_parsers"
        ),
        "vllm.distributed": Alias("the parent of the next; one vendor package imports it"),
        "vllm.distributed.kv_transfer": Alias("the parent of the next"),
        "vllm.distributed.kv_transfer.kv_connector": Alias("the parent of the next"),
        "vllm.distributed.kv_transfer.kv_connector.factory": Alias(
            "four general plugins register a connector", f"{_NAMES}.connectors"
        ),
        "vllm.v1": Alias("the parent of those below"),
        "vllm.v1.attention": Alias("the parent of those below"),
        "vllm.v1.attention.backend": Alias(
            "attention backends derive from its classes", f"{_BACKENDS}.interface", torch=("*",)
        ),
        "vllm.v1.attention.backends": Alias("the parent of the next"),
        "vllm.v1.attention.backends.registry": Alias(
            "10 of 37 vendor packages name AttentionBackendEnum at import; 5 register a backend",
            f"{_BACKENDS}.registry",
        ),
        "vllm.v1.attention.backends.mla": Alias("the parent of the next"),
        "vllm.v1.attention.backends.mla.prefill": Alias("the parent of the next"),
        "vllm.v1.attention.backends.mla.prefill.registry": Alias(
            "one vendor package names MLAPrefillBackendEnum", f"{_NAMES}.mla_prefill"
        ),
        "vllm.v1.attention.selector": Alias(
            "what get_attn_backend_cls is asked with", f"{_BACKENDS}.selection", torch=("*",)
        ),
        "vllm.attention": Alias("the parent of those below"),
        "vllm.attention.backends": Alias("the parent of the next"),
        "vllm.attention.backends.registry": Alias(
            "where AttentionBackendEnum was",
            f"{_BACKENDS}.registry",
            moved="vllm.v1.attention.backends.registry",
        ),
        "vllm.attention.selector": Alias(
            "where AttentionSelectorConfig was",
            f"{_BACKENDS}.selection",
            moved="vllm.v1.attention.selector",
            torch=("*",),
        ),
        "vllm.utils": Alias(
            "older packages take everything from it",
            _UTILS,
            names={
                "FlexibleArgumentParser": f"{_UTILS}.argparse_utils:FlexibleArgumentParser",
                "GiB_bytes": f"{_UTILS}.mem_constants:GiB_bytes",
                "cdiv": f"{_UTILS}.math_utils:cdiv",
                "cuda_device_count_stateless": f"{_RETIRED}:cuda_device_count_stateless",
                "direct_register_custom_op": f"{_UTILS}.torch_utils:direct_register_custom_op",
                "is_pin_memory_available": f"{_UTILS}.torch_utils:is_pin_memory_available",
                "resolve_obj_by_qualname": f"{_UTILS}.import_utils:resolve_obj_by_qualname",
                "supports_dynamo": f"{_UTILS}.torch_utils:supports_dynamo",
                "vllm_lib": f"{_UTILS}.torch_utils:vllm_lib",
            },
            retired={
                "FlexibleArgumentParser": "vllm.utils.argparse_utils.FlexibleArgumentParser",
                "GiB_bytes": "vllm.utils.mem_constants.GiB_bytes",
                "cdiv": "vllm.utils.math_utils.cdiv",
                "cuda_device_count_stateless": "current_platform.device_count()",
                "direct_register_custom_op": "vllm.utils.torch_utils.direct_register_custom_op",
                "is_pin_memory_available": "current_platform.is_pin_memory_available()",
                "resolve_obj_by_qualname": "vllm.utils.import_utils.resolve_obj_by_qualname",
                "supports_dynamo": "nothing: it is always true",
                "vllm_lib": "vllm.utils.torch_utils.vllm_lib",
            },
            torch=("vllm_lib",),
        ),
        "vllm.utils.argparse_utils": Alias(
            "five vendor packages take FlexibleArgumentParser", f"{_UTILS}.argparse_utils"
        ),
        "vllm.utils.func_utils": Alias("run_once and supports_kw", f"{_UTILS}.system_utils"),
        "vllm.utils.import_utils": Alias(
            "PlaceholderModule; one vendor package replaces has_triton_kernels in it",
            f"{_UTILS}.import_utils",
        ),
        "vllm.utils.math_utils": Alias("one vendor package takes cdiv", f"{_UTILS}.math_utils"),
        "vllm.utils.mem_constants": Alias("where GiB_bytes is now", f"{_UTILS}.mem_constants"),
        "vllm.utils.network_utils": Alias("get_ip and get_open_port", f"{_UTILS}.system_utils"),
        "vllm.utils.platform_utils": Alias("is_pin_memory_available", f"{_UTILS}.torch_utils"),
        "vllm.utils.system_utils": Alias("update_environment_variables", f"{_UTILS}.system_utils"),
        "vllm.utils.torch_utils": Alias(
            "_StreamPlaceholder, operators, PIN_MEMORY; importing it must not ask for a platform",
            f"{_UTILS}.torch_utils",
            torch=("STR_DTYPE_TO_TORCH_DTYPE", "vllm_lib"),
        ),
        "vllm.ray": Alias("the parent of the next"),
        "vllm.ray.lazy_utils": Alias(
            "one vendor package asks whether it is in an actor", f"{_UTILS}.ray_utils"
        ),
        "vllm.sequence": Alias(
            "IntermediateTensors, at import of one vendor package", f"{_NAMES}.sequence"
        ),
        "vllm.inputs": Alias(
            "PromptType, in signatures of validate_request",
            f"{_NAMES}.inputs",
            names={
                "ProcessorInputs": f"{_RETIRED}:ProcessorInputs",
                "TokenInputs": f"{_NAMES}.inputs:TokensInput",
            },
            retired={
                "ProcessorInputs": "vllm.inputs.EngineInput",
                "TokenInputs": "vllm.inputs.TokensInput",
            },
        ),
        "vllm.sampling_params": Alias(
            "SamplingParams, in signatures of validate_request",
            f"{_NAMES}.sampling_params",
            names={"GuidedDecodingParams": f"{_NAMES}.sampling_params:StructuredOutputsParams"},
            retired={"GuidedDecodingParams": "vllm.sampling_params.StructuredOutputsParams"},
        ),
        "vllm.pooling_params": Alias(
            "PoolingParams, in signatures of validate_request", f"{_NAMES}.sampling_params"
        ),
        "vllm.config": Alias(
            "what check_and_update_config is given; two vendor packages name it at import",
            names={
                **{
                    name: f"{_CONFIG}.{module}:{name}"
                    for module, names in _CONFIGURATIONS.items()
                    for name in names
                },
                "CompilationLevel": f"{_RETIRED}:CompilationLevel",
            },
            retired={"CompilationLevel": "vllm.config.CompilationMode"},
        ),
        **{
            f"vllm.config.{name}": Alias("vLLM's module of one group", f"{_CONFIG}.{module}")
            for name, module in _CONFIG_MODULES.items()
        },
    }
)
