"""What an attention backend is, in the shape that vLLM v1's backends have.

An operator takes a cache of any strides; a backend decides which, says what it can serve and why
not, and brings the classes that run one layer. Names, arguments and defaults are those of vLLM
0.33 wherever packages override them, so a class body written for that base works on this one.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from mainboard.platforms.values import DeviceCapability

__all__ = [
    "AttentionBackend",
    "AttentionCGSupport",
    "AttentionImpl",
    "AttentionLayer",
    "AttentionMetadata",
    "AttentionMetadataBuilder",
    "AttentionType",
    "CommonAttentionMetadata",
    "MultipleOf",
]


class AttentionType(enum.StrEnum):
    """Whose keys a query sees."""

    DECODER = "decoder"
    ENCODER = "encoder"
    ENCODER_ONLY = "encoder_only"
    ENCODER_DECODER = "encoder_decoder"


class MultipleOf:
    """Every page size that is a multiple of `base`."""

    def __init__(self, base: int) -> None:
        self.base = base

    def __repr__(self) -> str:
        return f"MultipleOf({self.base})"


class AttentionMetadata:
    """What a backend's implementation needs to know of one batch."""


Metadata = TypeVar("Metadata", bound=AttentionMetadata)


@dataclass
class CommonAttentionMetadata:
    """One batch as an engine describes it to every backend."""

    query_start_loc: Tensor
    query_start_loc_cpu: Tensor
    seq_lens: Tensor
    num_reqs: int
    num_actual_tokens: int
    max_query_len: int
    max_seq_len: int
    block_table_tensor: Tensor
    slot_mapping: Tensor
    causal: bool | Tensor = True

    def batch_size(self) -> int:
        """How many sequences the batch has."""
        return self.seq_lens.shape[0]

    def replace(self, **changes: Any) -> CommonAttentionMetadata:
        """The same batch with some fields changed."""
        return replace(self, **changes)


class AttentionCGSupport(enum.Enum):
    """For which batches a backend's metadata may be captured in a graph."""

    ALWAYS = 3
    UNIFORM_BATCH = 2
    UNIFORM_SINGLE_TOKEN_DECODE = 1
    NEVER = 0


class AttentionMetadataBuilder(ABC, Generic[Metadata]):
    """Turns the description of a batch into what a backend's implementation takes."""

    _cudagraph_support: ClassVar[AttentionCGSupport] = AttentionCGSupport.NEVER
    reorder_batch_threshold: int | None = None

    def __init__(
        self,
        kv_cache_spec: Any,
        layer_names: list[str],
        vllm_config: Any,
        device: torch.device,
    ) -> None:
        self.kv_cache_spec = kv_cache_spec
        self.layer_names = layer_names
        self.vllm_config = vllm_config
        self.device = device

    @classmethod
    def get_cudagraph_support(cls, vllm_config: Any, kv_cache_spec: Any) -> AttentionCGSupport:
        """For which batches this backend's metadata may be captured in a graph."""
        return cls._cudagraph_support

    @abstractmethod
    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: CommonAttentionMetadata,
        fast_build: bool = False,
    ) -> Metadata:
        """The metadata of one batch, which every layer of the group shares."""

    def build_for_cudagraph_capture(
        self, common_attn_metadata: CommonAttentionMetadata
    ) -> Metadata:
        """The metadata of a batch that is captured; the default builds it as any other."""
        return self.build(0, common_attn_metadata)


class AttentionLayer(Protocol):
    """What an implementation reads from the layer that calls it."""

    _k_scale: Tensor
    _v_scale: Tensor


class AttentionImpl(ABC, Generic[Metadata]):
    """Attention of one layer."""

    @abstractmethod
    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        alibi_slopes: list[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = "auto",
        logits_soft_cap: float | None = None,
        attn_type: str = AttentionType.DECODER,
        kv_sharing_target_layer_name: str | None = None,
        sinks: Tensor | None = None,
    ) -> None:
        """Keep what does not change from batch to batch."""

    @abstractmethod
    def forward(
        self,
        layer: AttentionLayer,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: Metadata,
        output: Tensor | None = None,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """Write the new keys and values into the cache, and attend to all of them."""

    def process_weights_after_loading(self, act_dtype: torch.dtype) -> None:
        """Called once when the weights are there; the default does nothing."""


class AttentionBackend(ABC):
    """One way to run attention, with the cache layout that makes it fast.

    A backend must say its name and the shape of its cache. What it supports is said by the
    `supports_*` methods, from which `validate_configuration` collects the reasons.
    """

    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.float16, torch.bfloat16]
    supported_kv_cache_dtypes: ClassVar[list[str]] = ["auto", "float16", "bfloat16"]
    accept_output_buffer: bool = True
    forward_includes_kv_cache_update: bool = True

    @staticmethod
    @abstractmethod
    def get_name() -> str:
        """The name by which users choose this backend."""

    @staticmethod
    @abstractmethod
    def get_kv_cache_shape(
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_size: int,
        cache_dtype_str: str = "auto",
    ) -> tuple[int, ...]:
        """The shape to allocate for one layer's keys and values."""

    @staticmethod
    def split_kv_cache(kv_cache: Tensor) -> tuple[Tensor, Tensor]:
        """Key and value cache as the operators take them: `[pages, page_size, kv_heads, dim]`.

        The default is for the shape `(2, pages, page_size, kv_heads, dim)`.
        """
        keys, values = kv_cache.unbind(0)
        return keys, values

    @classmethod
    def get_impl_cls(cls) -> type[AttentionImpl[Any]]:
        """The class that runs a layer; the default calls Mainboard's operators."""
        from mainboard.kernels.backends.operators import OperatorAttentionImpl

        return cast("type[AttentionImpl[Any]]", OperatorAttentionImpl)

    @staticmethod
    def get_builder_cls() -> type[AttentionMetadataBuilder[Any]]:
        """The class that describes a batch to it; the default suits the default implementation."""
        from mainboard.kernels.backends.operators import OperatorMetadataBuilder

        return cast("type[AttentionMetadataBuilder[Any]]", OperatorMetadataBuilder)

    @staticmethod
    def get_kv_cache_stride_order(include_num_layers_dimension: bool = False) -> tuple[int, ...]:
        """In which order the cache's dimensions lie in memory, when not in the order of its shape.

        Raises:
            NotImplementedError: in the order of the shape, as the default says.
        """
        raise NotImplementedError("the cache lies in memory as its shape says")

    @staticmethod
    def get_supported_kernel_block_sizes() -> list[int | MultipleOf]:
        """The page sizes that are served; empty says all."""
        return [MultipleOf(1)]

    @classmethod
    def full_cls_name(cls) -> tuple[str, str]:
        """The module and the name of this class."""
        return cls.__module__, cls.__qualname__

    @classmethod
    def get_supported_head_sizes(cls) -> list[int]:
        """The head sizes that are served; empty, the default, says all."""
        return []

    @classmethod
    def supports_head_size(cls, head_size: int) -> bool:
        """Whether a head size is served."""
        sizes = cls.get_supported_head_sizes()
        return not sizes or head_size in sizes

    @classmethod
    def supports_dtype(cls, dtype: torch.dtype) -> bool:
        """Whether queries of a dtype are served."""
        return dtype in cls.supported_dtypes

    @classmethod
    def supports_kv_cache_dtype(cls, kv_cache_dtype: str | torch.dtype | None) -> bool:
        """Whether a cache of a dtype is served; None is the queries' own."""
        known = cls.supported_kv_cache_dtypes
        return kv_cache_dtype is None or not known or kv_cache_dtype in known

    @classmethod
    def supports_block_size(cls, block_size: int | None) -> bool:
        """Whether pages of a size are served; None leaves the size to the backend."""
        sizes = cls.get_supported_kernel_block_sizes()
        if block_size is None or not sizes:
            return True
        bases = (size.base if isinstance(size, MultipleOf) else size for size in sizes)
        return any(block_size % base == 0 for base in bases)

    @classmethod
    def get_preferred_block_size(cls, default_block_size: int) -> int:
        """`default_block_size` if it is served, or else the smallest page that is."""
        if cls.supports_block_size(default_block_size):
            return default_block_size
        sizes = cls.get_supported_kernel_block_sizes()
        return min(size.base if isinstance(size, MultipleOf) else size for size in sizes)

    @classmethod
    def is_mla(cls) -> bool:
        """Whether this backend is for latent attention, and for nothing else."""
        return False

    @classmethod
    def is_sparse(cls) -> bool:
        """Whether this backend is for sparse attention, and for nothing else."""
        return False

    @classmethod
    def is_ssm(cls) -> bool:
        """Whether this backend is for state-space models."""
        return False

    @classmethod
    def supports_sink(cls) -> bool:
        """Whether a head may have a sink."""
        return False

    @classmethod
    def supports_mm_prefix(cls) -> bool:
        """Whether a prefix of a sequence may be seen in both directions."""
        return False

    @classmethod
    def supports_per_head_quant_scales(cls) -> bool:
        """Whether every head may have a scale of its own."""
        return False

    @classmethod
    def supports_non_causal(cls) -> bool:
        """Whether a query of a decoder may see keys after its own position."""
        return False

    @classmethod
    def supports_attn_type(cls, attn_type: str) -> bool:
        """Whether a kind of attention is served; the default is a decoder's only."""
        return attn_type == AttentionType.DECODER

    @classmethod
    def supports_compute_capability(cls, capability: DeviceCapability) -> bool:
        """Whether a device generation is served."""
        return True

    @classmethod
    def supports_combination(
        cls,
        head_size: int,
        dtype: torch.dtype,
        kv_cache_dtype: str | torch.dtype | None,
        block_size: int | None,
        use_mla: bool,
        has_sink: bool,
        use_sparse: bool,
        use_mm_prefix: bool,
        device_capability: DeviceCapability | None,
    ) -> str | None:
        """Why values that are served one by one are not served together, or None."""
        return None

    @classmethod
    def validate_configuration(
        cls,
        head_size: int,
        dtype: torch.dtype,
        kv_cache_dtype: str | torch.dtype | None,
        block_size: int | None,
        use_mla: bool = False,
        has_sink: bool = False,
        use_sparse: bool = False,
        use_mm_prefix: bool = False,
        use_per_head_quant_scales: bool = False,
        device_capability: DeviceCapability | None = None,
        attn_type: str = AttentionType.DECODER,
        use_non_causal: bool = False,
    ) -> list[str]:
        """Why this backend cannot serve a configuration; an empty list when it can."""
        served = {
            "latent attention": not use_mla or cls.is_mla(),
            "attention that is not latent": use_mla or not cls.is_mla(),
            "sparse attention": not use_sparse or cls.is_sparse(),
            "attention that is not sparse": use_sparse or not cls.is_sparse(),
            f"head size {head_size}": cls.supports_head_size(head_size),
            f"dtype {str(dtype).removeprefix('torch.')}": cls.supports_dtype(dtype),
            f"cache dtype {kv_cache_dtype}": cls.supports_kv_cache_dtype(kv_cache_dtype),
            f"page size {block_size}": cls.supports_block_size(block_size),
            f"{attn_type} attention": cls.supports_attn_type(attn_type),
            "a sink": not has_sink or cls.supports_sink(),
            "a prefix seen in both directions": not use_mm_prefix or cls.supports_mm_prefix(),
            "a scale for each head": not use_per_head_quant_scales
            or cls.supports_per_head_quant_scales(),
            "attention that is not causal": not use_non_causal or cls.supports_non_causal(),
            f"a device of capability {device_capability}": device_capability is None
            or cls.supports_compute_capability(device_capability),
        }
        reasons = [f"{what} is not served" for what, is_served in served.items() if not is_served]
        together = cls.supports_combination(
            head_size, dtype, kv_cache_dtype, block_size, use_mla, has_sink, use_sparse,
            use_mm_prefix, device_capability,
        )  # fmt: skip
        return [*reasons, together] if together else reasons
