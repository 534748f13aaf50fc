"""`VllmConfig`, and which one is in use."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import IntEnum
from typing import Any, TypeVar

from mainboard.plugins.vllm_names import envs
from mainboard.plugins.vllm_names.config.compilation import (
    CompilationConfig,
    CompilationMode,
    CUDAGraphMode,
)
from mainboard.plugins.vllm_names.config.features import (
    AttentionConfig,
    AuxOutputConfig,
    KernelConfig,
    LoggingConfig,
    LoRAConfig,
    MambaConfig,
    ObservabilityConfig,
    ProfilerConfig,
    SpeculativeConfig,
    StructuredOutputsConfig,
    WatchdogConfig,
)
from mainboard.plugins.vllm_names.config.memory import (
    CacheConfig,
    EncoderCacheManagerConfig,
    KVEventsConfig,
    KVTransferConfig,
    LoadConfig,
    OffloadConfig,
)
from mainboard.plugins.vllm_names.config.model import ModelConfig
from mainboard.plugins.vllm_names.config.work import (
    DeviceConfig,
    ParallelConfig,
    SchedulerConfig,
)
from mainboard.plugins.vllm_names.records import Config, configuration, field

__all__ = [
    "OptimizationLevel",
    "VllmConfig",
    "config",
    "get_current_vllm_config",
    "get_current_vllm_config_or_none",
    "get_layers_from_vllm_config",
    "replace",
    "set_current_vllm_config",
    "update_config",
]

T = TypeVar("T")

# The mode of captured graphs at each level; from the first level on, models are compiled.
_GRAPHS = (
    CUDAGraphMode.NONE,
    CUDAGraphMode.PIECEWISE,
    CUDAGraphMode.FULL_AND_PIECEWISE,
    CUDAGraphMode.FULL_AND_PIECEWISE,
)


class OptimizationLevel(IntEnum):
    """How much time to start is given for speed afterwards."""

    O0 = 0
    O1 = 1
    O2 = 2
    O3 = 3


@configuration
class VllmConfig(Config):
    """Everything that an engine is configured with; platforms check and change it.

    vLLM calls the platform's hooks while it builds one. Here whoever builds it does, with
    `current_platform.check_and_update_config(config)`.
    """

    model_config: ModelConfig | None = None
    cache_config: CacheConfig = field(default_factory=CacheConfig)
    parallel_config: ParallelConfig = field(default_factory=ParallelConfig)
    scheduler_config: SchedulerConfig = field(default_factory=SchedulerConfig.default_factory)
    device_config: DeviceConfig = field(default_factory=DeviceConfig)
    load_config: LoadConfig = field(default_factory=LoadConfig)
    offload_config: OffloadConfig = field(default_factory=OffloadConfig)
    attention_config: AttentionConfig = field(default_factory=AttentionConfig)
    aux_output_config: AuxOutputConfig = field(default_factory=AuxOutputConfig)
    engram_config: Any = None
    mamba_config: MambaConfig = field(default_factory=MambaConfig)
    kernel_config: KernelConfig = field(default_factory=KernelConfig)
    lora_config: LoRAConfig | None = None
    speculative_config: SpeculativeConfig | None = None
    watermark_config: Any = None
    diffusion_config: Any = None
    structured_outputs_config: StructuredOutputsConfig = field(
        default_factory=StructuredOutputsConfig
    )
    observability_config: ObservabilityConfig = field(default_factory=ObservabilityConfig)
    logging_config: LoggingConfig = field(default_factory=LoggingConfig)
    quant_config: Any = None
    compilation_config: CompilationConfig = field(default_factory=CompilationConfig)
    profiler_config: ProfilerConfig = field(default_factory=ProfilerConfig)
    kv_transfer_config: KVTransferConfig | None = None
    kv_events_config: KVEventsConfig | None = None
    ec_transfer_config: Any = None
    ec_manager_config: EncoderCacheManagerConfig = field(default_factory=EncoderCacheManagerConfig)
    reasoning_config: Any = None
    additional_config: dict[str, Any] = field(default_factory=dict)
    instance_id: str = ""
    optimization_level: OptimizationLevel = OptimizationLevel.O2
    performance_mode: str = "balanced"
    weight_transfer_config: Any = None
    watchdog_config: WatchdogConfig = field(default_factory=WatchdogConfig)
    shutdown_timeout: int = 0

    def __post_init__(self) -> None:
        level = OptimizationLevel(self.optimization_level)
        chosen = self.compilation_config
        if self.model_config is not None and self.model_config.enforce_eager:
            level = OptimizationLevel.O0
            chosen.mode, chosen.cudagraph_mode = None, None
        if chosen.mode is None:
            compiled = level is not OptimizationLevel.O0
            chosen.mode = CompilationMode.VLLM_COMPILE if compiled else CompilationMode.NONE
        if chosen.cudagraph_mode is None:
            chosen.cudagraph_mode = _GRAPHS[level]
        self._choose_graph_sizes()

    def _choose_graph_sizes(self) -> None:
        """The batches to capture: small ones one by one, then in steps of 8, then of 16."""
        chosen = self.compilation_config
        if chosen.cudagraph_mode is CUDAGraphMode.NONE:
            chosen.cudagraph_capture_sizes, chosen.max_cudagraph_capture_size = [], 0
            return
        if chosen.cudagraph_capture_sizes is None:
            largest = chosen.max_cudagraph_capture_size
            if largest is None:
                scheduler = self.scheduler_config
                largest = min(scheduler.max_num_seqs * 2, 512, scheduler.max_num_batched_tokens)
            sizes = [1, 2, 4, *range(8, 256, 8), *range(256, largest + 1, 16)]
            chosen.cudagraph_capture_sizes = [size for size in sizes if size <= largest]
        chosen.cudagraph_capture_sizes = sorted(set(chosen.cudagraph_capture_sizes))
        chosen.max_cudagraph_capture_size = max(chosen.cudagraph_capture_sizes, default=0)

    @property
    def num_speculative_tokens(self) -> int:
        """How many tokens are drafted at a time."""
        return (self.speculative_config and self.speculative_config.num_speculative_tokens) or 0

    @property
    def use_v2_model_runner(self) -> bool:
        """Whether `VLLM_USE_V2_MODEL_RUNNER` asks for vLLM's second model runner."""
        return bool(envs.VLLM_USE_V2_MODEL_RUNNER)

    @property
    def uniform_decode_query_len(self) -> int:
        """How many tokens of a sequence a step of decoding has."""
        return 1 + self.num_speculative_tokens

    def compute_hash(self, include_version: bool = True) -> str:
        """A text that differs between configurations that differ."""
        return super().compute_hash()


_current: ContextVar[VllmConfig | None] = ContextVar("vllm_config", default=None)


@contextmanager
def set_current_vllm_config(
    vllm_config: VllmConfig, check_compile: bool = False, prefix: str | None = None
) -> Iterator[None]:
    """A scope in which `get_current_vllm_config` returns this one."""
    token = _current.set(vllm_config)
    try:
        yield
    finally:
        _current.reset(token)


def get_current_vllm_config_or_none() -> VllmConfig | None:
    """The configuration in use, if one is."""
    return _current.get()


def get_current_vllm_config() -> VllmConfig:
    """The configuration in use.

    Raises:
        AssertionError: none is, as in vLLM.
    """
    chosen = _current.get()
    if chosen is None:
        raise AssertionError(
            "the current vLLM configuration was asked for outside of set_current_vllm_config()"
        )
    return chosen


def get_layers_from_vllm_config(
    vllm_config: VllmConfig, layer_type: type[T], layer_names: list[str] | None = None
) -> dict[str, T]:
    """The layers of one kind that have registered themselves, by name."""
    layers = vllm_config.compilation_config.static_forward_context
    wanted = layers if layer_names is None else layer_names
    return {name: layers[name] for name in wanted if isinstance(layers[name], layer_type)}


def config(cls: type[T] | None = None, **options: Any) -> Any:
    """Decorate a class to be a configuration."""
    from dataclasses import dataclass

    return dataclass(cls) if cls is not None else dataclass


def replace(dataclass_instance: T, /, **changes: Any) -> T:
    """A copy of a configuration with some fields changed."""
    import dataclasses

    instance: Any = dataclass_instance
    copied: T = dataclasses.replace(instance, **changes)
    return copied


def update_config(config: T, overrides: dict[str, Any]) -> T:
    """A copy with the fields of a nested dictionary.

    Raises:
        AttributeError: it has no such field.
    """
    from dataclasses import is_dataclass

    changes = {}
    for name, value in overrides.items():
        if not hasattr(config, name):
            raise AttributeError(f"{type(config).__name__} has no field {name!r}")
        inner = getattr(config, name)
        nested = is_dataclass(inner) and isinstance(value, dict)
        changes[name] = update_config(inner, value) if nested else value
    return replace(config, **changes)
