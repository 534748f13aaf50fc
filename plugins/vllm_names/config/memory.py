"""Configuration of memory: the cache, weights, and what leaves the device."""

from typing import Any, ClassVar

from mainboard.plugins.vllm_names import current_platform
from mainboard.plugins.vllm_names.records import Config, configuration, field
from mainboard.plugins.vllm_names.utils import random_uuid

__all__ = [
    "BlockSize",
    "CacheConfig",
    "EncoderCacheManagerConfig",
    "KVEventsConfig",
    "KVTransferConfig",
    "LoadConfig",
    "OffloadConfig",
    "PrefetchOffloadConfig",
    "UVAOffloadConfig",
]

BlockSize = int


def _device_type() -> str:
    return str(current_platform().device_type)


@configuration
class CacheConfig(Config):
    """How the cache of keys and values is laid out, and how much memory it gets."""

    block_size: int | None = None
    user_specified_block_size: bool = field(default=False, init=False)
    kv_cache_layout: str | None = field(default=None, init=False)
    prefix_match_unit: int | None = None
    gpu_memory_utilization: float = 0.92
    cache_dtype: str = "auto"
    is_attention_free: bool = False
    num_gpu_blocks_override: int | None = None
    sliding_window: int | None = None
    enable_prefix_caching: bool = True
    prefix_caching_hash_algo: str = "sha256"
    prefix_cache_retention_interval: int | None = 0
    kv_cache_dtype_skip_layers: list[str] = field(default_factory=list)
    mamba_page_size_padded: int | None = None
    skip_page_size_padded: int | None = None
    mamba_block_size: int | None = None
    mamba_cache_dtype: str = "auto"
    mamba_ssm_cache_dtype: str = "auto"
    mamba_cache_mode: str = "none"
    enable_mamba_shared_prefix_checkpoint: bool = False
    replayssm_buffer_len: int = 16
    use_replayssm: bool = False
    use_kda_recoverssm: bool = field(default=False, init=False)
    num_gpu_blocks: int | None = field(default=None, init=False)
    num_cpu_blocks: int | None = field(default=None, init=False)
    simple_cpu_offload_num_blocks: int | None = field(default=None, init=False)
    effective_attention_block_size: int | None = field(default=None, init=False)
    kv_cache_size_tokens: int | None = field(default=None, init=False)
    kv_cache_max_concurrency: float | None = field(default=None, init=False)
    hash_block_size: int | None = field(default=None, init=False)
    cache_hit_alignment_tokens: int | None = field(default=None, init=False)
    kv_sharing_fast_prefill: bool = False
    swa_bounded_replay: bool = True
    kv_cache_memory_bytes: int | None = None
    kv_offloading_size: float | None = None
    kv_offloading_backend: str = "native"
    _block_size_resolved: bool = field(default=False, init=False)

    DEFAULT_BLOCK_SIZE: ClassVar[int] = 16

    def __post_init__(self) -> None:
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(
                f"gpu_memory_utilization is {self.gpu_memory_utilization}; it must be above 0 and at"
                " most 1"
            )
        self.user_specified_block_size = self.block_size is not None
        if self.block_size is None:
            self.block_size = self.DEFAULT_BLOCK_SIZE
        self._block_size_resolved = True

    @property
    def device_memory_utilization(self) -> float:
        """The part of device memory to use; `gpu_memory_utilization` by a name for all devices."""
        return self.gpu_memory_utilization

    @device_memory_utilization.setter
    def device_memory_utilization(self, value: float) -> None:
        self.gpu_memory_utilization = value

    def metrics_info(self) -> dict[str, str]:
        """Every field as text."""
        return {name: str(value) for name, value in vars(self).items()}


@configuration
class LoadConfig(Config):
    """From where and how weights are loaded."""

    load_format: str = "auto"
    download_dir: str | None = None
    safetensors_load_strategy: str | None = None
    safetensors_prefetch_num_threads: int = 8
    safetensors_prefetch_block_size: int = 16 * 2**20
    model_loader_extra_config: dict[str, Any] = field(default_factory=dict)
    device: str | None = None
    ignore_patterns: list[str] = field(default_factory=lambda: ["original/**/*"])
    use_tqdm_on_load: bool = True
    pt_load_map_location: str = "cpu"


@configuration
class UVAOffloadConfig(Config):
    """Weights that stay in host memory and are read from there."""

    cpu_offload_gb: float = 0
    cpu_offload_params: set[str] = field(default_factory=set)


@configuration
class PrefetchOffloadConfig(Config):
    """Weights that stay in host memory and are fetched before they are needed."""

    offload_group_size: int = 0
    offload_num_in_group: int = 1
    offload_prefetch_step: int = 1
    offload_params: set[str] = field(default_factory=set)


@configuration
class OffloadConfig(Config):
    """Which weights leave device memory, and how."""

    offload_backend: str = "auto"
    uva: UVAOffloadConfig = field(default_factory=UVAOffloadConfig)
    prefetch: PrefetchOffloadConfig = field(default_factory=PrefetchOffloadConfig)


@configuration
class KVTransferConfig(Config):
    """The connector that carries the cache between engines."""

    kv_connector: str | None = None
    engine_id: str | None = None
    kv_buffer_device: str = field(default_factory=_device_type)
    kv_role: str | None = None
    kv_port: int = 14579
    kv_connector_extra_config: dict[str, Any] = field(default_factory=dict)
    kv_connector_module_path: str | None = None
    enable_permute_local_kv: bool = False
    kv_load_failure_policy: str = "fail"

    def __post_init__(self) -> None:
        if self.engine_id is None:
            self.engine_id = random_uuid()
        if self.kv_connector is not None and self.kv_role is None:
            raise ValueError(
                f"kv_connector is {self.kv_connector!r} without a kv_role; give kv_producer,"
                " kv_consumer or kv_both"
            )

    @property
    def is_kv_transfer_instance(self) -> bool:
        """Whether this engine gives or takes caches."""
        return self.kv_connector is not None and self.kv_role is not None

    @property
    def is_kv_producer(self) -> bool:
        """Whether this engine gives caches."""
        return self.kv_connector is not None and self.kv_role in ("kv_producer", "kv_both")

    @property
    def is_kv_consumer(self) -> bool:
        """Whether this engine takes caches."""
        return self.kv_connector is not None and self.kv_role in ("kv_consumer", "kv_both")

    def get_from_extra_config(self, key: str, default: Any) -> Any:
        """A setting of the connector's own."""
        return self.kv_connector_extra_config.get(key, default)


@configuration
class KVEventsConfig(Config):
    """Who is told what happens to the cache."""

    enable_kv_cache_events: bool = False
    publisher: str | None = None
    endpoint: str = "tcp://*:5557"
    replay_endpoint: str | None = None
    buffer_steps: int = 10_000
    hwm: int = 100_000
    max_queue_size: int = 100_000
    topic: str = ""

    def __post_init__(self) -> None:
        if self.publisher is None:
            self.publisher = "zmq" if self.enable_kv_cache_events else "null"


@configuration
class EncoderCacheManagerConfig(Config):
    """A manager of encoders" outputs of one"s own."""

    encoder_cache_manager_cls: str | None = None
    manager_config: dict[str, Any] = field(default_factory=dict)
