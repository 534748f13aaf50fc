"""Configuration of what an engine can do besides: adapters, drafts, images, forms, measuring."""

from enum import Enum
from typing import Any

from mainboard.plugins.vllm_names import envs
from mainboard.plugins.vllm_names.records import Config, configuration, field

__all__ = [
    "AttentionConfig",
    "AuxOutputConfig",
    "IrOpPriorityConfig",
    "KernelConfig",
    "LoRAConfig",
    "LoggingConfig",
    "MambaBackendEnum",
    "MambaConfig",
    "MultiModalConfig",
    "ObservabilityConfig",
    "PoolerConfig",
    "ProfilerConfig",
    "SpeculativeConfig",
    "StructuredOutputsConfig",
    "WatchdogConfig",
]


class MambaBackendEnum(Enum):
    """Kernels of state-space layers."""

    TRITON = "triton"
    FLASHINFER = "flashinfer"


@configuration
class AttentionConfig(Config):
    """Which attention backend is used, and how."""

    backend: Any = None
    minimax_m3_msa_decode_backend: str = "triton"
    backend_per_kind: dict[str, Any] = field(default_factory=dict)
    flash_attn_version: int | None = None
    flash_attn_max_num_splits_for_cuda_graph: int = 32
    tokenspeed_mla_min_split_kv: int = 1
    tq_max_kv_splits_for_cuda_graph: int = 32
    use_trtllm_attention: bool | None = None
    disable_flashinfer_q_quantization: bool = False
    mla_prefill_backend: Any = None
    use_prefill_query_quantization: bool = False
    trtllm_ragged_backend: str = "trtllm-gen"
    indexer_kv_dtype: str = "auto"
    indexer_sparse_logits: bool = False
    indexer_tp_shard_min_rows: int = 65536
    minimax_m3_indexer_cp: bool = False
    hisparse_config: Any = None
    use_non_causal: bool = False
    sparse_mla_force_mqa: bool = False
    sparse_mla_prefill_workspace_factor: int | None = None
    flex_attn_block_m: int | None = None
    flex_attn_block_n: int | None = None
    flex_attn_q_block_size: int | None = None
    flex_attn_kv_block_size: int | None = None


@configuration
class IrOpPriorityConfig(Config):
    """In which order implementations of an operator are tried."""

    rms_norm: list[str] = field(default_factory=list)
    fused_add_rms_norm: list[str] = field(default_factory=list)
    gelu_and_mul_sparse: list[str] = field(default_factory=list)


@configuration
class KernelConfig(Config):
    """Which kernels are preferred."""

    ir_op_priority: IrOpPriorityConfig = field(default_factory=IrOpPriorityConfig)
    enable_flashinfer_autotune: bool | None = None
    enable_rocm_segmented_attn_autotune: bool = False
    enable_cutedsl_warmup: bool = True
    enable_jit_warmup: bool = True
    monokernel: bool = False
    moe_backend: str = "auto"
    sparse_indexer_topk_backend: str = "auto"
    linear_backend: str = "auto"
    linear_backend_per_quant: Any = None


@configuration
class MambaConfig(Config):
    """Which kernels state-space layers use."""

    backend: MambaBackendEnum = MambaBackendEnum.TRITON
    enable_stochastic_rounding: bool = False
    stochastic_rounding_philox_rounds: int = 0
    ssu_algorithm: Any = None


@configuration
class LoRAConfig(Config):
    """How many adapters there may be, and how large."""

    max_lora_rank: int = 16
    max_loras: int = 1
    fully_sharded_loras: bool = False
    max_cpu_loras: int | None = None
    lora_dtype: str = "auto"
    target_modules: list[str] | None = None
    default_mm_loras: dict[str, str] | None = None
    enable_tower_connector_lora: bool = False
    specialize_active_lora: bool = False
    enable_mixed_moe_lora_format: bool = False
    enable_moe_shared_loras: bool = False
    max_lora_cls_labels: int | None = None

    def __post_init__(self) -> None:
        if self.max_cpu_loras is None:
            self.max_cpu_loras = self.max_loras
        elif self.max_cpu_loras < self.max_loras:
            raise ValueError(
                f"max_cpu_loras is {self.max_cpu_loras}; it must not be below max_loras,"
                f" {self.max_loras}"
            )


@configuration
class SpeculativeConfig(Config):
    """How tokens are drafted before the model checks them."""

    enforce_eager: bool | None = None
    num_speculative_tokens: int | None = None
    model: str | None = None
    method: str | None = None
    draft_tensor_parallel_size: int | None = None
    tensor_parallel_size: int | None = None
    quantization: Any = None
    moe_backend: str | None = None
    attention_backend: Any = None
    kv_cache_dtype: str | None = None
    max_model_len: int | None = None
    revision: str | None = None
    code_revision: str | None = None
    index_share_for_mtp_iteration: bool | None = None
    disable_padded_drafter_batch: bool = False
    disable_eagle_block_drop: bool = False
    disable_lookahead_block_hashes: bool = False
    draft_lm_head_quantization: str | None = None
    use_local_argmax_reduction: bool = False
    use_heterogeneous_vocab: bool = False
    prompt_lookup_max: int | None = None
    prompt_lookup_min: int | None = None
    parallel_drafting: bool = False
    target_model_config: Any = None
    target_parallel_config: Any = None
    num_speculative_tokens_per_batch_size: Any = None
    draft_model_config: Any = None
    draft_parallel_config: Any = None
    suffix_decoding_max_tree_depth: int = 24
    suffix_decoding_max_cached_requests: int = 10_000
    suffix_decoding_max_spec_factor: float = 1.0
    suffix_decoding_min_token_prob: float = 0.1
    draft_load_config: Any = None
    rejection_sample_method: str = "standard"
    synthetic_acceptance_rates: list[float] | None = None
    synthetic_acceptance_length: float | None = None
    enable_adaptive_verification: bool = False
    draft_sample_method: str = "greedy"
    dspark_draft_topk: int | None = None
    xpress_topc: int | None = None
    fly_window_size: int | None = None
    fly_entropy_threshold: float = 0.3
    fly_entropy_top_k: int = 3

    def use_eagle(self) -> bool:
        """Whether drafts are made from the model's own states."""
        return self.method in ("eagle", "eagle3", "mtp", "dflash", "dspark")

    def uses_draft_model(self) -> bool:
        """Whether a smaller model makes drafts."""
        return self.method == "draft_model"


@configuration
class MultiModalConfig(Config):
    """What a model that takes images, audio or video is given, and how."""

    language_model_only: bool = False
    limit_per_prompt: dict[str, Any] = field(default_factory=dict)
    enable_mm_embeds: bool = False
    media_io_kwargs: dict[str, Any] = field(default_factory=dict)
    mm_processor_kwargs: Any = None
    mm_device_do_normalize: bool = True
    mm_processor_cache_gb: float = 4
    mm_processor_cache_type: str = "lru"
    mm_hasher_algorithm: str = "blake3"
    mm_shm_cache_max_object_size_mb: int = 128
    mm_encoder_only: bool = False
    mm_encoder_tp_mode: str = "weights"
    mm_encoder_attn_backend: Any = None
    mm_encoder_attn_dtype: str | None = None
    mm_encoder_fp8_scale_path: str | None = None
    mm_encoder_fp8_scale_save_path: str | None = None
    mm_encoder_fp8_scale_save_margin: float = 1.5
    interleave_mm_strings: bool = False
    skip_mm_profiling: bool = False
    video_pruning_rate: float | None = None
    video_pruning_method: str = "evs"
    mm_tensor_ipc: str = "direct_rpc"
    allow_missing_mm_embeddings: bool = False
    mm_ipc_gpu_memory_gb: float = 0

    def get_limit_per_prompt(self, modality: str) -> int:
        """How many items of one kind a prompt may have."""
        if self.language_model_only:
            return 0
        limit = self.limit_per_prompt.get(modality, 999)
        return int(limit.get("count", 999) if isinstance(limit, dict) else limit)


@configuration
class PoolerConfig(Config):
    """How a model"s outputs become one embedding, score or class."""

    task: Any = None
    pooling_type: str | None = None
    seq_pooling_type: str | None = None
    tok_pooling_type: str | None = None
    use_activation: bool | None = None
    enable_flash_late_interaction: bool = True
    dimensions: int | None = None
    enable_chunked_processing: bool = False
    max_embed_len: int | None = None
    logit_mean: float | None = None
    logit_sigma: float | None = None
    step_tag_id: int | None = None
    returned_token_ids: list[int] | None = None


@configuration
class StructuredOutputsConfig(Config):
    """How outputs of a given form are made."""

    backend: str = "auto"
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    reasoning_parser: str = ""
    reasoning_parser_plugin: str = ""
    enable_in_reasoning: bool = False


@configuration
class ObservabilityConfig(Config):
    """What is measured and traced."""

    show_hidden_metrics_for_version: str | None = None
    otlp_traces_endpoint: str | None = None
    collect_detailed_traces: Any = None
    per_request_spec_decode_metrics: str = "none"
    kv_cache_metrics: bool = False
    kv_cache_metrics_sample: float = 0.01
    custom_histogram_buckets: Any = None
    cudagraph_metrics: bool = False
    enable_layerwise_nvtx_tracing: bool = False
    enable_mfu_metrics: bool = False
    enable_mm_processor_stats: bool = False
    enable_logging_iteration_details: bool = False
    jit_monitor_mode: str = "warn"
    jit_monitor_verbose: bool = False


@configuration
class ProfilerConfig(Config):
    """What is profiled, and where the profile goes."""

    profiler: Any = None
    torch_profiler_dir: str = ""
    torch_profiler_activities: Any = None
    proton_profiler_dir: str = ""
    proton_context: str = "shadow"
    proton_data: str = "tree"
    proton_backend: str | None = None
    proton_mode: str | None = None
    proton_hook: Any = None
    proton_output_format: Any = None
    proton_graph_attribution: bool = False
    torch_profiler_with_stack: bool = True
    torch_profiler_with_flops: bool = False
    torch_profiler_use_gzip: bool = True
    torch_profiler_dump_cuda_time_total: bool = True
    torch_profiler_record_shapes: bool = False
    torch_profiler_with_memory: bool = False
    capture_torch_profiler: bool = False
    detailed_trace_annotation: bool = False
    ignore_frontend: bool = False
    delay_iterations: int = 0
    max_iterations: int = 0
    warmup_iterations: int = 0
    active_iterations: int = 5
    wait_iterations: int = 0


@configuration
class LoggingConfig(Config):
    """How the engine logs."""

    log_level: str = field(default_factory=lambda: envs.VLLM_LOGGING_LEVEL)
    formatter: str = "text"
    configure_logging: bool = field(default_factory=lambda: envs.VLLM_CONFIGURE_LOGGING)
    pylogging_config_file: str | None = field(default_factory=lambda: envs.VLLM_LOGGING_CONFIG_PATH)


@configuration
class WatchdogConfig(Config):
    """When a step that hangs is reported."""

    timeout: int = 300
    check_interval: int = 10
    dump_dir: str = ""


@configuration
class AuxOutputConfig(Config):
    """What is returned besides the tokens."""

    enable_return_routed_experts: bool = False
    max_bytes: int | None = None
