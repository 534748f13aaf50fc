"""The backend for latent attention (MLA): every head reads the same cached rows.

It serves the absorbed form, whatever the number of new tokens: queries come already multiplied into
the latent space, and results leave in it, so the projections stay the model's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mainboard.errors import UnsupportedConfigurationError
from mainboard.kernels.backends.interface import AttentionImpl, AttentionLayer, AttentionType
from mainboard.kernels.backends.operators import (
    OperatorAttentionBackend,
    OperatorMetadata,
    as_stored,
    cache_dtype,
    refuse_quantized_output,
)
from mainboard.kernels.support import Request

__all__ = ["LatentAttentionBackend", "LatentAttentionImpl"]

ROTARY = 64
"""The part of a row that is a key only, in every published model of this kind."""


class LatentAttentionImpl(AttentionImpl[OperatorMetadata]):
    """One layer on `mla_decode` and `concat_and_cache_mla`."""

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
        *,
        kv_lora_rank: int | None = None,
        **of_the_model: Any,
    ) -> None:
        """Keep what does not change from batch to batch.

        Args:
            num_heads: of the queries.
            head_size: of a cached row, latent and rotary part.
            scale: that of the heads before absorption.
            num_kv_heads: 1, as every head reads the same rows.
            alibi_slopes: not served.
            sliding_window: not served.
            kv_cache_dtype: a name of `CACHE_DTYPES`.
            logits_soft_cap: not served.
            attn_type: a decoder's.
            kv_sharing_target_layer_name: the layer whose cache is read, which writes to it.
            sinks: not served.
            kv_lora_rank: the latent's width; by default what the rotary part of 64 leaves.
            of_the_model: ranks and projections, which engines pass and which stay the model's.

        Raises:
            UnsupportedConfigurationError: an option is asked for that latent attention has not.
        """
        has = {
            "ALiBi": alibi_slopes is not None,
            "a window": sliding_window is not None,
            "a softcap": bool(logits_soft_cap),
            "sinks": sinks is not None,
            f"{num_kv_heads} key heads": num_kv_heads not in (None, 1),
            f"{attn_type!r} attention": attn_type != AttentionType.DECODER,
        }
        asked = [name for name, is_asked in has.items() if is_asked]
        if asked:
            raise UnsupportedConfigurationError(
                f"latent attention with {' and '.join(asked)} was asked for; mla_decode is a "
                "decoder's, with one row for all heads and no options on its scores"
            )
        self.num_heads = num_heads
        self.head_size = head_size
        self.scale = scale
        self.latent = head_size - ROTARY if kv_lora_rank is None else kv_lora_rank
        self.kv_cache_dtype = cache_dtype(kv_cache_dtype)
        self.shares_cache = kv_sharing_target_layer_name is not None

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
        """Write the new rows into the cache, and attend to all of them.

        Args:
            layer: has the scale of a cache of 8-bit floats.
            query: `[tokens, heads * (latent + rotary)]`, absorbed.
            key: the new rows' latent parts, `[tokens, latent]`.
            value: their rotary parts, `[tokens, rotary]`, with or without a head between.
            kv_cache: of the shape that the backend says.
            attn_metadata: the batch.
            output: `[tokens, heads * latent]` to write into.
            output_scale: not served.
            output_block_scale: not served.

        Raises:
            UnsupportedConfigurationError: a quantized output is asked for.
        """
        refuse_quantized_output(output_scale, output_block_scale)
        from mainboard.kernels import mla_decode

        if not self.shares_cache:
            self.do_kv_cache_update(layer, key, value, kv_cache, attn_metadata)
        if output is None:
            output = query.new_empty(query.shape[0], self.num_heads * self.latent)
        rows = output.view(-1, self.num_heads, self.latent)[: attn_metadata.tokens]
        mla_decode(**self._call(query, kv_cache, attn_metadata, layer), out=rows)
        return output

    def do_kv_cache_update(
        self,
        layer: AttentionLayer,
        kv_c: Tensor,
        k_pe: Tensor,
        kv_cache: Tensor,
        attn_metadata: OperatorMetadata,
    ) -> None:
        """Write new rows, given as latent and rotary parts, into the cache."""
        from mainboard.kernels import concat_and_cache_mla

        tokens, cache = attn_metadata.tokens, as_stored(kv_cache, self.kv_cache_dtype)
        concat_and_cache_mla(
            kv_c.view(-1, self.latent)[:tokens],
            k_pe.view(-1, self.head_size - self.latent)[:tokens],
            cache,
            attn_metadata.slot_mapping[:tokens],
            kv_scale=self._scale(layer, cache),
        )

    def forward_mqa(
        self,
        q: Tensor | tuple[Tensor, Tensor],
        kv_c_and_k_pe_cache: Tensor,
        attn_metadata: OperatorMetadata,
        layer: AttentionLayer,
    ) -> tuple[Tensor, Tensor]:
        """Attend only, as engines do that write the cache themselves.

        Args:
            q: absorbed queries, whole or as their latent and rotary parts.
            kv_c_and_k_pe_cache: of the shape that the backend says.
            attn_metadata: the batch.
            layer: has the scale of a cache of 8-bit floats.

        Returns:
            `[tokens, heads, latent]`, and `[tokens, heads]` of log-sum-exps.
        """
        from mainboard.kernels import mla_decode

        whole = torch.cat(q, -1) if isinstance(q, tuple) else q
        call = self._call(whole, kv_c_and_k_pe_cache, attn_metadata, layer)
        out, lse = mla_decode(**call, return_lse=True)
        return out, lse.t()

    def _call(
        self, query: Tensor, kv_cache: Tensor, batch: OperatorMetadata, layer: AttentionLayer
    ) -> dict[str, Any]:
        """The operator's arguments for one batch.

        Raises:
            UnsupportedConfigurationError: the batch has a causal flag for each sequence.
        """
        if not isinstance(batch.causal, bool):
            raise UnsupportedConfigurationError(
                "latent attention that is causal for some sequences only was asked for; "
                "mla_decode takes one answer for the whole batch, so split it in two"
            )
        cache = as_stored(kv_cache, self.kv_cache_dtype)
        return {
            "q": query.view(-1, self.num_heads, self.head_size)[: batch.tokens],
            "kv_cache": cache,
            "cu_seqlens_q": batch.cu_seqlens_q,
            "seqused_k": batch.seqused_k,
            "block_table": batch.block_table,
            "max_seqlen_q": batch.max_seqlen_q,
            "max_seqlen_k": batch.max_seqlen_k,
            "softmax_scale": self.scale,
            "value_dim": self.latent,
            "causal": batch.causal,
            "kv_scale": self._scale(layer, cache),
        }

    @staticmethod
    def _scale(layer: AttentionLayer, cache: Tensor) -> Tensor | None:
        scale = getattr(layer, "_k_scale", None) if cache.dtype.itemsize == 1 else None
        return None if scale is None else scale.reshape(-1)


class LatentAttentionBackend(OperatorAttentionBackend):
    """Latent attention on whatever implementation of `mla_decode` the device has."""

    @staticmethod
    def get_name() -> str:
        """`MAINBOARD_MLA`."""
        return "MAINBOARD_MLA"

    @staticmethod
    def get_kv_cache_shape(
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_size: int,
        cache_dtype_str: str = "auto",
    ) -> tuple[int, ...]:
        """`(pages, page_size, head_size)`: one row for all heads."""
        return (num_blocks, block_size, head_size)

    @staticmethod
    def split_kv_cache(kv_cache: Tensor) -> tuple[Tensor, Tensor]:
        """Rows as keys, and their latent part as values, both of one head."""
        rows = kv_cache.unsqueeze(2)
        return rows, rows[..., :-ROTARY]

    @classmethod
    def get_impl_cls(cls) -> type[AttentionImpl[Any]]:
        """A layer in the absorbed form."""
        return LatentAttentionImpl

    @classmethod
    def is_mla(cls) -> bool:
        """Yes."""
        return True

    @classmethod
    def supports_sink(cls) -> bool:
        """No."""
        return False

    @classmethod
    def supports_per_head_quant_scales(cls) -> bool:
        """No: a row belongs to every head."""
        return False

    @classmethod
    def supports_head_size(cls, head_size: int) -> bool:
        """Whether a row has a latent part beside its rotary one."""
        return head_size > ROTARY

    @classmethod
    def _request(
        cls,
        head_size: int,
        dtype: torch.dtype,
        kv_cache_dtype: str | torch.dtype | None,
        block_size: int | None,
        has_sink: bool,
    ) -> Request:
        return Request(
            operator="mla_decode",
            device=cls.device_type or "cpu",
            dtype=dtype,
            cache_dtype=cache_dtype(kv_cache_dtype),
            head_dim=head_size,
            value_dim=head_size - ROTARY,
            page_size=block_size,
        )
