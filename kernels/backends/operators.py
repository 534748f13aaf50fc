"""A backend on Mainboard's operators: what remains to say is the device and the cache's layout."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from mainboard.errors import UnsupportedConfigurationError
from mainboard.kernels.backends.interface import (
    AttentionBackend,
    AttentionImpl,
    AttentionLayer,
    AttentionMetadata,
    AttentionMetadataBuilder,
    AttentionType,
    CommonAttentionMetadata,
    MultipleOf,
)
from mainboard.kernels.support import Request, choose
from mainboard.kernels.validate import PAGE_MULTIPLE, QUERY_DTYPES

if TYPE_CHECKING:
    from mainboard.platforms.values import DeviceCapability

__all__ = [
    "CACHE_DTYPES",
    "OperatorAttentionBackend",
    "OperatorAttentionImpl",
    "OperatorMetadata",
    "OperatorMetadataBuilder",
    "as_stored",
    "cache_dtype",
    "refuse_quantized_output",
]

CACHE_DTYPES: dict[str, torch.dtype | None] = {
    "auto": None,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "fp8": torch.float8_e4m3fn,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
"""What a cache's dtype is called; None is the queries' own."""


def cache_dtype(name: str | torch.dtype | None) -> torch.dtype | None:
    """The dtype that a name of `CACHE_DTYPES` means; a dtype is what it is.

    `fp8` leaves the kind to the platform: some of AMD's devices have instructions for another one.

    Raises:
        UnsupportedConfigurationError: the operators know no cache of that name.
    """
    if name is None or isinstance(name, torch.dtype):
        return name
    if name not in CACHE_DTYPES:
        known = ", ".join(CACHE_DTYPES)
        raise UnsupportedConfigurationError(f"a {name!r} cache is not served; expected {known}")
    if name == "fp8":
        from mainboard.platforms import current_platform

        kind: torch.dtype = current_platform.fp8_dtype()
        return kind
    return CACHE_DTYPES[name]


def as_stored(kv_cache: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A cache of its own type: engines allocate 8-bit floats as bytes."""
    return kv_cache.view(dtype) if dtype and kv_cache.dtype is torch.uint8 else kv_cache


def refuse_quantized_output(scale: Tensor | None, block_scale: Tensor | None) -> None:
    """Refuse what no operator writes.

    Raises:
        UnsupportedConfigurationError: one of the scales is given.
    """
    if scale is not None or block_scale is not None:
        raise UnsupportedConfigurationError(
            "a quantized output was asked for; the operators write the queries' dtype"
        )


@dataclass
class OperatorMetadata(AttentionMetadata):
    """One batch, as the arguments of `mainboard.kernels.attention` and `reshape_and_cache`."""

    tokens: int
    cu_seqlens_q: Tensor
    seqused_k: Tensor
    block_table: Tensor
    slot_mapping: Tensor
    max_seqlen_q: int
    max_seqlen_k: int
    causal: bool | Tensor


class OperatorMetadataBuilder(AttentionMetadataBuilder[OperatorMetadata]):
    """Takes from the description of a batch what the operators need; nothing is computed."""

    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: CommonAttentionMetadata,
        fast_build: bool = False,
    ) -> OperatorMetadata:
        """The batch as the operators' arguments; a common prefix is not treated apart."""
        batch = common_attn_metadata
        return OperatorMetadata(
            tokens=batch.num_actual_tokens,
            cu_seqlens_q=batch.query_start_loc,
            seqused_k=batch.seq_lens,
            block_table=batch.block_table_tensor,
            slot_mapping=batch.slot_mapping,
            max_seqlen_q=batch.max_query_len,
            max_seqlen_k=batch.max_seq_len,
            causal=batch.causal,
        )


class OperatorAttentionImpl(AttentionImpl[OperatorMetadata]):
    """One layer on the operators, for any backend whose `split_kv_cache` gives their layout."""

    backend: ClassVar[type[AttentionBackend] | None] = None
    """Whose layout the cache has; a backend's own subclass names it."""

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
        if attn_type != AttentionType.DECODER:
            raise UnsupportedConfigurationError(
                f"{attn_type!r} attention was asked for; a backend on the operators serves a "
                "decoder's, and mainboard.kernels.attention serves the others without a cache"
            )
        self.num_heads = num_heads
        self.head_size = head_size
        self.scale = scale
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.alibi_slopes = None if alibi_slopes is None else torch.tensor(alibi_slopes)
        # A window counts the query's own position, the operators' does not.
        self.window = (-1, -1) if sliding_window is None else (sliding_window - 1, 0)
        self.kv_cache_dtype = cache_dtype(kv_cache_dtype)
        self.softcap = logits_soft_cap or 0.0
        self.shares_cache = kv_sharing_target_layer_name is not None
        self.sinks = None if sinks is None else sinks.float()

    def forward(
        self,
        layer: AttentionLayer,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: OperatorMetadata,
        output: Tensor | None = None,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """Write the new keys and values into the cache, and attend to all of them.

        Raises:
            UnsupportedConfigurationError: a quantized output is asked for.
        """
        refuse_quantized_output(output_scale, output_block_scale)
        from mainboard.kernels import attention, reshape_and_cache

        self._move_to(query.device)
        tokens = attn_metadata.tokens
        q = query.view(-1, self.num_heads, self.head_size)
        output = torch.empty_like(query) if output is None else output
        keys, values = self._caches(kv_cache)
        # Only a cache of 8-bit floats has scales.
        k_scale, v_scale = self._scales(layer) if keys.dtype.itemsize == 1 else (None, None)
        if not self.shares_cache:
            shape = (-1, self.num_kv_heads, self.head_size)
            slots = attn_metadata.slot_mapping[:tokens]
            reshape_and_cache(
                key.view(shape), value.view(shape), keys, values, slots,
                k_scale=k_scale, v_scale=v_scale,
            )  # fmt: skip
        attention(
            q[:tokens],
            keys,
            values,
            cu_seqlens_q=attn_metadata.cu_seqlens_q,
            seqused_k=attn_metadata.seqused_k,
            block_table=attn_metadata.block_table,
            max_seqlen_q=attn_metadata.max_seqlen_q,
            max_seqlen_k=attn_metadata.max_seqlen_k,
            softmax_scale=self.scale,
            causal=attn_metadata.causal,
            window=self.window,
            softcap=self.softcap,
            alibi_slopes=self.alibi_slopes,
            sinks=self.sinks,
            k_scale=k_scale,
            v_scale=v_scale,
            out=output.view(-1, self.num_heads, self.head_size)[:tokens],
        )
        return output

    def _caches(self, kv_cache: Tensor) -> tuple[Tensor, Tensor]:
        stored = as_stored(kv_cache, self.kv_cache_dtype)
        return (self.backend or AttentionBackend).split_kv_cache(stored)

    @staticmethod
    def _scales(layer: AttentionLayer) -> tuple[Tensor | None, Tensor | None]:
        scales = (getattr(layer, "_k_scale", None), getattr(layer, "_v_scale", None))
        k_scale, v_scale = (s if s is None else s.reshape(-1) for s in scales)
        return k_scale, v_scale

    def _move_to(self, device: torch.device) -> None:
        """Bring what every call needs to the device once: the first call tells which it is."""
        if self.alibi_slopes is not None and self.alibi_slopes.device != device:
            self.alibi_slopes = self.alibi_slopes.to(device)
        if self.sinks is not None and self.sinks.device != device:
            self.sinks = self.sinks.to(device)


@functools.cache
def _impl_for(backend: type[AttentionBackend]) -> type[OperatorAttentionImpl]:
    return type(f"{backend.__name__}Impl", (OperatorAttentionImpl,), {"backend": backend})


class OperatorAttentionBackend(AttentionBackend):
    """A backend that asks the operators' own predicate what they serve on its device."""

    supported_dtypes: ClassVar[list[torch.dtype]] = list(QUERY_DTYPES)
    supported_kv_cache_dtypes: ClassVar[list[str]] = list(CACHE_DTYPES)

    device_type: ClassVar[str] = ""
    """The type of the devices that it serves; empty is any."""

    @staticmethod
    def get_supported_kernel_block_sizes() -> list[int | MultipleOf]:
        """Every multiple of 16."""
        return [MultipleOf(PAGE_MULTIPLE)]

    @classmethod
    def get_impl_cls(cls) -> type[AttentionImpl[Any]]:
        """The operators, with this backend's layout."""
        return _impl_for(cls)

    @classmethod
    def supports_sink(cls) -> bool:
        """Yes: every implementation of the operator has sinks."""
        return True

    @classmethod
    def supports_non_causal(cls) -> bool:
        """Yes: the operator takes it as an argument."""
        return True

    @classmethod
    def supports_per_head_quant_scales(cls) -> bool:
        """Yes: a scale may have one value for each key head."""
        return True

    @classmethod
    def supports_kv_cache_dtype(cls, kv_cache_dtype: str | torch.dtype | None) -> bool:
        """Whether the operators know the name; whether it suits the queries they say themselves."""
        return not isinstance(kv_cache_dtype, str) or kv_cache_dtype in CACHE_DTYPES

    @classmethod
    def supports_block_size(cls, block_size: int | None) -> bool:
        """Left to the operators' predicate, which gives the reason."""
        return True

    @classmethod
    def supports_dtype(cls, dtype: torch.dtype) -> bool:
        """Left to the operators' predicate, which gives the reason."""
        return True

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
        """Why the operators cannot serve a configuration; an empty list when they can."""
        reasons = super().validate_configuration(
            head_size, dtype, kv_cache_dtype, block_size, use_mla, has_sink, use_sparse,
            use_mm_prefix, use_per_head_quant_scales, device_capability, attn_type, use_non_causal,
        )  # fmt: skip
        if not cls.supports_kv_cache_dtype(kv_cache_dtype) or reasons:
            return reasons
        try:
            choose(cls._request(head_size, dtype, kv_cache_dtype, block_size, has_sink))
        except UnsupportedConfigurationError as error:
            return list(error.reasons)
        return []

    @classmethod
    def _request(
        cls,
        head_size: int,
        dtype: torch.dtype,
        kv_cache_dtype: str | torch.dtype | None,
        block_size: int | None,
        has_sink: bool,
    ) -> Request:
        """A configuration as what the operator would be asked to do."""
        return Request(
            device=cls.device_type or "cpu",
            dtype=dtype,
            cache_dtype=cache_dtype(kv_cache_dtype),
            head_dim=head_size,
            page_size=block_size,
            features=frozenset({"sinks"} if has_sink else ()),
        )
