"""Configuration of the compiler and of captured graphs."""

from collections import Counter
from enum import Enum, IntEnum, StrEnum
from typing import Any

from mainboard.plugins.vllm_names import envs
from mainboard.plugins.vllm_names.records import Config, configuration, field

__all__ = [
    "CUDAGraphMode",
    "CompilationConfig",
    "CompilationMode",
    "DynamicShapesConfig",
    "DynamicShapesType",
    "PassConfig",
]


class CompilationMode(IntEnum):
    """What is compiled: nothing, what `torch.compile` does, one trace, or an engine's own way."""

    NONE = 0
    STOCK_TORCH_COMPILE = 1
    DYNAMO_TRACE_ONCE = 2
    VLLM_COMPILE = 3


class CUDAGraphMode(Enum):
    """What is captured as a graph; a pair is one mode for decoding and one for mixed batches."""

    NONE = 0
    PIECEWISE = 1
    FULL = 2
    FULL_DECODE_ONLY = (FULL, NONE)
    FULL_AND_PIECEWISE = (FULL, PIECEWISE)

    def __str__(self) -> str:
        return self.name

    def __bool__(self) -> bool:
        return self is not CUDAGraphMode.NONE

    def _pair(self) -> tuple[int, int]:
        return self.value if isinstance(self.value, tuple) else (self.value, self.value)

    def decode_mode(self) -> "CUDAGraphMode":
        """The mode for batches that only decode."""
        return CUDAGraphMode(self._pair()[0])

    def mixed_mode(self) -> "CUDAGraphMode":
        """The mode for all other batches."""
        return CUDAGraphMode(self._pair()[1])

    def max_cudagraph_mode(self) -> "CUDAGraphMode":
        """The larger of the two."""
        return CUDAGraphMode(max(self._pair()))

    def has_mode(self, mode: "CUDAGraphMode") -> bool:
        """Whether either is this mode."""
        return mode.value in self._pair()

    def has_full_cudagraphs(self) -> bool:
        """Whether a whole model is captured."""
        return self.has_mode(CUDAGraphMode.FULL)

    def has_piecewise_cudagraphs(self) -> bool:
        """Whether parts of a model are captured."""
        return self.has_mode(CUDAGraphMode.PIECEWISE)

    def requires_piecewise_compilation(self) -> bool:
        """Whether the model must be compiled in parts."""
        return self.has_mode(CUDAGraphMode.PIECEWISE)

    def without_piecewise(self) -> "CUDAGraphMode":
        """The mode that is left where nothing can be captured in parts."""
        left = [0 if each == CUDAGraphMode.PIECEWISE.value else each for each in self._pair()]
        return CUDAGraphMode(left[0] if left[0] == left[1] else tuple(left))

    def separate_routine(self) -> bool:
        """Whether the two differ."""
        return isinstance(self.value, tuple)

    @classmethod
    def valid_runtime_modes(cls) -> frozenset["CUDAGraphMode"]:
        """The modes that one batch can have."""
        return frozenset({cls.NONE, cls.PIECEWISE, cls.FULL})

    def is_valid_runtime_mode(self) -> bool:
        """Whether one batch can have this mode."""
        return not self.separate_routine()


class DynamicShapesType(StrEnum):
    """How sizes that vary are treated."""

    BACKED = "backed"
    UNBACKED = "unbacked"
    BACKED_SIZE_OBLIVIOUS = "backed_size_oblivious"


def _save_format() -> str:
    return str(envs.VLLM_COMPILE_CACHE_SAVE_FORMAT)


@configuration
class PassConfig(Config):
    """Which rewritings of the compiled graph are made; None leaves it to the level."""

    fuse_norm_quant: bool | None = None
    fuse_act_quant: bool | None = None
    fuse_attn_quant: bool | None = None
    eliminate_noops: bool = True
    fuse_allreduce_rms: bool | None = None
    enable_qk_norm_rope_fusion: bool | None = None
    fuse_rope_kvcache_cat_mla: bool | None = None
    fuse_act_padding: bool | None = None
    fuse_mla_dual_rms_norm: bool | None = None
    fuse_rope_kvcache: bool | None = None
    fuse_qk_norm_rope_kvcache: bool | None = None
    rope_kvcache_fusion_max_token_num: int = 256
    fi_allreduce_fusion_max_size_mb: float | None = None


@configuration
class DynamicShapesConfig(Config):
    """What the compiler may assume of sizes that vary."""

    type: DynamicShapesType = DynamicShapesType.BACKED
    evaluate_guards: bool = False
    assume_32_bit_indexing: bool = False


@configuration
class CompilationConfig(Config):
    """What is compiled, what is captured as a graph, and for which sizes."""

    mode: CompilationMode | None = None
    debug_dump_path: Any = None
    cache_dir: str = ""
    compile_cache_save_format: str = field(default_factory=_save_format)
    backend: str = ""
    custom_ops: list[str] = field(default_factory=list)
    ir_enable_torch_wrap: bool | None = None
    splitting_ops: list[str] | None = None
    compile_mm_encoder: bool = False
    cudagraph_mm_encoder: bool = False
    encoder_cudagraph_token_budgets: list[int] = field(default_factory=list)
    encoder_cudagraph_max_vision_items_per_batch: int = 0
    encoder_cudagraph_max_frames_per_batch: int | None = None
    cudagraph_decoder_replay: bool = True
    decoder_replay_cudagraph_capture_sizes: list[int] = field(default_factory=list)
    decoder_replay_trim_threshold: int = 768
    compile_sizes: Any = None
    compile_ranges_endpoints: list[int] | None = None
    inductor_compile_config: dict[str, Any] = field(default_factory=dict)
    inductor_passes: dict[str, str] = field(default_factory=dict)
    cudagraph_mode: CUDAGraphMode | None = None
    cudagraph_num_of_warmups: int = 0
    cudagraph_capture_sizes: list[int] | None = None
    cudagraph_copy_inputs: bool = False
    cudagraph_specialize_lora: bool = True
    use_inductor_graph_partition: bool | None = None
    pass_config: PassConfig = field(default_factory=PassConfig)
    max_cudagraph_capture_size: int | None = None
    dynamic_shapes_config: DynamicShapesConfig = field(default_factory=DynamicShapesConfig)
    local_cache_dir: str | None = field(default=None, init=False)
    fast_moe_cold_start: bool | None = None
    enabled_custom_ops: Counter[str] = field(default_factory=Counter, init=False)
    disabled_custom_ops: Counter[str] = field(default_factory=Counter, init=False)
    traced_files: set[str] = field(default_factory=set, init=False)
    compilation_time: float = field(default=0.0, init=False)
    encoder_compilation_time: float = field(default=0.0, init=False)
    static_forward_context: dict[str, Any] = field(default_factory=dict, init=False)
    static_all_moe_layers: list[str] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        if isinstance(self.mode, str):
            self.mode = CompilationMode[self.mode.upper()]
        elif self.mode is not None:
            self.mode = CompilationMode(self.mode)
        if isinstance(self.cudagraph_mode, str):
            self.cudagraph_mode = CUDAGraphMode[self.cudagraph_mode.upper()]
        if isinstance(self.pass_config, dict):
            self.pass_config = PassConfig(**self.pass_config)
        contradictory = {"+" + name[1:] for name in self.custom_ops if name[0] == "-"}
        if contradictory & set(self.custom_ops) or {"all", "none"} <= set(self.custom_ops):
            raise ValueError(f"custom_ops is {self.custom_ops}: something is both on and off")

    def is_custom_op_enabled(self, op: str) -> bool:
        """Whether `custom_ops` turns an operator on, by its own name or by `all`."""
        if "all" in self.custom_ops:
            return f"-{op}" not in self.custom_ops
        return f"+{op}" in self.custom_ops

    def splitting_ops_contain_attention(self) -> bool:
        """Whether the graph is split where attention is."""
        return any("attention" in name for name in self.splitting_ops or ())
