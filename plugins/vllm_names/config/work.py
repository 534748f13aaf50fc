"""Configuration of work: how much at a time, on which devices, by whom."""

from typing import Any, ClassVar

from mainboard.plugins.vllm_names import current_platform
from mainboard.plugins.vllm_names.records import Config, InitVar, configuration, field

__all__ = [
    "DeviceConfig",
    "EPLBConfig",
    "FaultToleranceConfig",
    "ParallelConfig",
    "SchedulerConfig",
]


@configuration
class SchedulerConfig(Config):
    """How much work is taken on at a time, and in which order."""

    max_model_len: InitVar[int]
    is_encoder_decoder: InitVar[bool]
    runner_type: str = "generate"
    max_num_batched_tokens: int = 2048
    max_num_scheduled_tokens: int | None = None
    max_num_seqs: int = 128
    max_num_active_seqs: int | None = None
    long_prefill_token_threshold: int = 0
    long_prefill_token_threshold_adaptive: bool = False
    max_num_queued_reqs: int | None = None
    max_num_queued_tokens: int | None = None
    enable_chunked_prefill: bool = True
    is_multimodal_model: bool = False
    max_num_encoder_input_tokens: int = field(init=False)
    encoder_cache_size: int = field(init=False)
    policy: str = "fcfs"
    disable_chunked_mm_input: bool = False
    scheduler_cls: Any = None
    disable_hybrid_kv_cache_manager: bool | None = None
    scheduler_reserve_full_isl: bool = True
    watermark: float = 0.0
    prefill_schedule_interval: int = 1
    async_scheduling: bool | None = None
    stream_interval: int = 1

    DEFAULT_MAX_NUM_BATCHED_TOKENS: ClassVar[int] = 2048
    DEFAULT_MAX_NUM_SEQS: ClassVar[int] = 128

    @staticmethod
    def default_factory(**named: Any) -> "SchedulerConfig":
        """A configuration for a model of which nothing is known."""
        return SchedulerConfig(**{"max_model_len": 8192, "is_encoder_decoder": False, **named})

    def __post_init__(self, max_model_len: int, is_encoder_decoder: bool) -> None:
        if is_encoder_decoder:
            # Its encoder sees a whole input at once.
            self.disable_chunked_mm_input = True
            self.enable_chunked_prefill = False
            self.long_prefill_token_threshold = 0
        self.max_num_encoder_input_tokens = self.max_num_batched_tokens
        self.encoder_cache_size = self.max_num_batched_tokens
        self.verify_max_model_len(max_model_len)

    def verify_max_model_len(self, max_model_len: int) -> "SchedulerConfig":
        """Refuse limits that a context of this length cannot be served with.

        Raises:
            ValueError: what is too small.
        """
        if self.max_num_batched_tokens < max_model_len and not self.enable_chunked_prefill:
            raise ValueError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}, and a whole context of"
                f" {max_model_len} must fit; raise it, lower max_model_len, or enable chunked prefill"
            )
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}; it must not be below"
                f" max_num_seqs, {self.max_num_seqs}"
            )
        return self


@configuration
class EPLBConfig(Config):
    """How experts are moved so that devices have equal work."""

    window_size: int = 1000
    step_interval: int = 3000
    num_redundant_experts: int = 0
    log_balancedness: bool = False
    log_balancedness_interval: int = 1
    use_async: bool = True
    policy: str = "default"
    communicator: str | None = None
    enable_migration_batching: bool = False


@configuration
class FaultToleranceConfig(Config):
    """How long an engine may take to recover."""

    engine_recovery_timeout_sec: int = 120


@configuration
class ParallelConfig(Config):
    """How work is divided between devices, and who runs it."""

    pipeline_parallel_size: int = 1
    tensor_parallel_size: int = 1
    prefill_context_parallel_size: int = 1
    data_parallel_size: int = 1
    data_parallel_size_local: int = 1
    data_parallel_rank: int = 0
    data_parallel_rank_local: int | None = None
    data_parallel_master_ip: str = "127.0.0.1"
    data_parallel_rpc_port: int = 29550
    dp_sync_interval: int = 16
    data_parallel_master_port: int = 29500
    data_parallel_backend: str = "mp"
    data_parallel_external_lb: bool = False
    data_parallel_hybrid_lb: bool = False
    is_moe_model: bool | None = None
    enable_hc_sp: bool = False
    enable_expert_parallel: bool = False
    enable_batch_sharded_sampling: bool | None = None
    enable_ep_weight_filter: bool = False
    enable_eplb: bool = False
    eplb_config: EPLBConfig = field(default_factory=EPLBConfig)
    expert_placement_strategy: str = "linear"
    all2all_backend: str = "allgather_reducescatter"
    max_parallel_loading_workers: int | None = None
    disable_custom_all_reduce: bool = False
    enable_shm_tensor_arena: bool = False
    enable_elastic_ep: bool = False
    elastic_ep_max_dp_size: int | None = None
    enable_dbo: bool = False
    ubatch_size: int = 0
    dbo_decode_token_threshold: int = 32
    dbo_prefill_token_threshold: int = 512
    disable_nccl_for_dp_synchronization: bool | None = None
    ray_workers_use_nsight: bool = False
    ray_runtime_env: Any = None
    placement_group: Any = None
    distributed_executor_backend: Any = None
    worker_cls: str = "auto"
    worker_extension_cls: str = ""
    master_addr: str = "127.0.0.1"
    master_port: int = 29501
    node_rank: int = 0
    nnodes: int = 1
    numa_bind: bool = False
    numa_bind_nodes: list[int] | None = None
    numa_bind_cpus: list[str] | None = None
    assigned_physical_gpu_ids: list[int] | None = None
    distributed_timeout_seconds: int | None = None
    cpu_distributed_timeout_seconds: int | None = None
    world_size: int = field(init=False)
    rank: int = 0
    _data_parallel_master_port_list: list[int] = field(default_factory=list)
    _coord_store_port: int = 0
    decode_context_parallel_size: int = 1
    dcp_kv_cache_interleave_size: int = 1
    dcp_comm_backend: str | None = None
    dcp_q_replicate: bool | None = None
    cp_kv_cache_interleave_size: int = 1
    _allow_auto_resolve_cp_interleave_size: bool = True
    data_parallel_index: int = field(init=False)
    _api_process_count: int = 1
    _api_process_rank: int = 0
    enable_fault_tolerance: bool = False
    fault_tolerance_config: FaultToleranceConfig = field(default_factory=FaultToleranceConfig)

    def __post_init__(self) -> None:
        self.world_size = (
            self.pipeline_parallel_size
            * self.tensor_parallel_size
            * self.prefill_context_parallel_size
        )
        self.data_parallel_index = self.data_parallel_rank
        if self.elastic_ep_max_dp_size is None:
            self.elastic_ep_max_dp_size = self.data_parallel_size
        if self.distributed_executor_backend is None:
            alone = self.world_size_across_dp == 1
            self.distributed_executor_backend = "uni" if alone else self.data_parallel_backend

    @property
    def world_size_across_dp(self) -> int:
        """How many devices work, all replicas of the model together."""
        return self.world_size * self.data_parallel_size

    @property
    def use_ray(self) -> bool:
        """Whether Ray runs the workers."""
        return bool(self.distributed_executor_backend == "ray")

    @property
    def use_ubatching(self) -> bool:
        """Whether a batch is split so that its parts overlap."""
        return self.enable_dbo or self.ubatch_size > 1

    @property
    def local_world_size(self) -> int:
        """How many devices of this model are on one node."""
        return self.world_size // self.nnodes


@configuration
class DeviceConfig(Config):
    """The device that tensors are on; `auto` is the platform"s."""

    device: Any = "auto"
    device_type: str = field(init=False)

    def __post_init__(self) -> None:
        import torch

        platform = current_platform()
        if self.device == "auto":
            self.device_type = platform.device_type
            if not self.device_type:
                raise RuntimeError(
                    "device 'auto' was asked for, but no platform was chosen here; name a device, or"
                    " run `mainboard doctor`"
                )
        else:
            self.device_type = getattr(self.device, "type", None) or str(self.device).split(":")[0]
        on_host = platform.uses_host_device_handling() and self.device_type == platform.device_type
        self.device = None if on_host else torch.device(self.device_type)
