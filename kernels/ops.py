"""The operators as people call them: defaults filled in, outputs allocated, refusals explained.

Under each is `torch.ops.mainboard.<name>`, which PyTorch dispatches by device and which engines may
call directly; it checks its arguments on every device.
"""

import math
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from mainboard.kernels import check, gpu_dispatch, library, schema, validate

__all__ = [
    "attention",
    "concat_and_cache_mla",
    "copy_blocks",
    "merge_attention_states",
    "mla_decode",
    "reshape_and_cache",
    "swap_blocks",
]

if library.load() is library.KernelLevel.TRITON:
    gpu_dispatch.register("CPU")
if torch.version.cuda or torch.version.hip:
    gpu_dispatch.register("CUDA")

_CHECK_VALUES = os.environ.get("MAINBOARD_CHECK", "0") not in ("", "0")
# On a GPU, kernels that were chosen before are called without PyTorch's dispatcher in between.
_ROUTES = gpu_dispatch.ROUTES
_attention = torch.ops.mainboard.attention.default
_reshape_and_cache = torch.ops.mainboard.reshape_and_cache.default
_merge_attention_states = torch.ops.mainboard.merge_attention_states.default
_copy_blocks = torch.ops.mainboard.copy_blocks.default
_swap_blocks = torch.ops.mainboard.swap_blocks.default
_mla_decode = torch.ops.mainboard.mla_decode.default
_concat_and_cache_mla = torch.ops.mainboard.concat_and_cache_mla.default
assert set(schema.SCHEMAS) == set(__all__), "an operator lacks its public call"


def _scale(value: float | Tensor | None, like: Tensor) -> Tensor | None:
    if value is None or isinstance(value, Tensor):
        return value
    return torch.full((1,), float(value), dtype=torch.float32, device=like.device)


def _no_backward() -> RuntimeError:
    return RuntimeError(
        "attention has no backward, and an input requires gradients; "
        "call it under torch.no_grad() or torch.inference_mode()"
    )


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor | None = None,
    seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
    max_seqlen_q: int,
    max_seqlen_k: int,
    softmax_scale: float | None = None,
    causal: bool | Tensor = True,
    window: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    k_scale: float | Tensor | None = None,
    v_scale: float | Tensor | None = None,
    out: Tensor | None = None,
    return_lse: bool = False,
    deterministic: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention over a batch of sequences of any lengths: prefill, decode or both in one call.

    Scores are `softmax_scale * q . k`, then `softcap * tanh(s / softcap)`, then ALiBi's
    `-slope * |i + Lk - Lq - j|`, then the mask. Queries stand at the end of their keys.

    Args:
        q: `[tokens, heads, head_dim]`, float32, float16 or bfloat16.
        k: `[tokens, kv_heads, head_dim]`; with `block_table` a cache
            `[pages, page_size, kv_heads, head_dim]`, page_size a multiple of 16, of any strides
            but a contiguous last dimension. q's dtype, or float8_e4m3fn, float8_e5m2 or int8.
        v: as `k`; its last dimension may differ.
        cu_seqlens_q: `[sequences + 1]` int32, where each sequence begins in `q`.
        cu_seqlens_k: the same for dense `k` and `v`.
        seqused_k: `[sequences]` int32, keys in use; required with a cache unless `cu_seqlens_k`
            gives the lengths.
        block_table: `[sequences, pages]` int32; entries past the last used page are not read.
        max_seqlen_q: an upper bound on the queries of one sequence.
        max_seqlen_k: an upper bound on its keys.
        softmax_scale: 1 / sqrt(head_dim) by default.
        causal: a query sees keys up to its own position; a bool, or `[sequences]` bool on q's
            device, one for each sequence.
        window: keys seen to the left and right of a query's position, inclusive; -1 is unbounded.
        softcap: 0 is off.
        alibi_slopes: `[heads]` float32.
        sinks: `[heads]` float32, one more score per head that brings no value.
        k_scale: what a cached key is multiplied by; a number, or float32 `[1]` or `[kv_heads]`.
        v_scale: the same for values.
        out: `[tokens, heads, value_dim]` of q's dtype to write into.
        return_lse: also return the natural log of the softmax denominator, sinks included.
        deterministic: bits depend on a sequence alone, not on the rest of the batch.

    Returns:
        `out`, or `(out, lse)` with `lse` `[heads, tokens]` float32. A query that sees nothing
        gives zeros, and -inf unless it has a sink.

    Raises:
        TypeError: a dtype that is not served.
        ValueError: shapes, strides or devices that do not fit, or (on the CPU, and elsewhere with
            `MAINBOARD_CHECK=1`) lengths and pages out of range.
        RuntimeError: gradients are required.
    """
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        raise _no_backward()
    if k_scale is not None:
        k_scale = _scale(k_scale, q)
    if v_scale is not None:
        v_scale = _scale(v_scale, q)
    if _CHECK_VALUES:
        check.lengths(q, k, cu_seqlens_q, cu_seqlens_k, seqused_k, block_table)
    if out is None:
        # Sizes one by one: torch takes twice as long over a tuple of them.
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
    lse = q.new_empty(*q.shape[1::-1], dtype=torch.float32) if return_lse else None
    if softmax_scale is None:
        softmax_scale = 1.0 / math.sqrt(q.shape[-1])
    left, right = window
    flags = None
    if isinstance(causal, Tensor):
        flags, causal = causal, False
    arguments = (
        q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, seqused_k, block_table, max_seqlen_q,
        max_seqlen_k, softmax_scale, causal, left, right, softcap, alibi_slopes, sinks, k_scale,
        v_scale, deterministic, flags,
    )  # fmt: skip
    try:
        (_ROUTES["attention"].direct(arguments) or _attention)(*arguments)
    except (RuntimeError, ValueError):
        validate.attention(*arguments)
        raise
    return out if lse is None else (out, lse)


def reshape_and_cache(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    *,
    k_scale: float | Tensor | None = None,
    v_scale: float | Tensor | None = None,
) -> None:
    """Write new keys and values into the pages of a cache.

    Args:
        key: `[tokens, kv_heads, head_dim]`.
        value: `[tokens, kv_heads, value_dim]`.
        key_cache: `[pages, page_size, kv_heads, head_dim]` of key's dtype, or fp8 or int8.
        value_cache: the same for values.
        slot_mapping: `[tokens]` int64, `page * page_size + slot`; -1 skips the token.
        k_scale: what a key of one byte will be multiplied by when read; a number, `[1]` or
            `[kv_heads]`.
        v_scale: the same for values.

    Raises:
        TypeError: a dtype that is not served.
        ValueError: shapes, strides or devices that do not fit.
    """
    if _CHECK_VALUES:
        check.slots(key_cache, slot_mapping)
    arguments = (
        key, value, key_cache, value_cache, slot_mapping,
        _scale(k_scale, key), _scale(v_scale, key),
    )  # fmt: skip
    try:
        (_ROUTES["reshape_and_cache"].direct(arguments) or _reshape_and_cache)(*arguments)
    except (RuntimeError, ValueError):
        validate.reshape_and_cache(*arguments)
        raise


def merge_attention_states(
    a: Tensor,
    a_lse: Tensor,
    b: Tensor,
    b_lse: Tensor,
    *,
    out: Tensor | None = None,
    out_lse: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Join attention over two disjoint sets of keys into attention over both.

    Args:
        a: `[tokens, heads, dim]`; where `a_lse` is -inf it is not read.
        a_lse: `[heads, tokens]` float32, natural log.
        b: as `a`.
        b_lse: as `a_lse`.
        out: where to write the result.
        out_lse: where to write its log-sum-exp.

    Returns:
        The joined result and its log-sum-exp.

    Raises:
        TypeError: a dtype that is not served.
        ValueError: shapes, strides or devices that do not fit.
    """
    out = torch.empty_like(a) if out is None else out
    out_lse = a_lse.new_empty(a_lse.shape) if out_lse is None else out_lse
    try:
        _merge_attention_states(out, out_lse, a, a_lse, b, b_lse)
    except (RuntimeError, ValueError):
        validate.merge_attention_states(out, out_lse, a, a_lse, b, b_lse)
        raise
    return out, out_lse


def copy_blocks(caches: Sequence[Tensor], block_mapping: Tensor) -> None:
    """Copy pages to other pages of the same cache, for every cache in one call.

    No page may be both a source and a destination.

    Args:
        caches: `[pages, ...]` each, such as the key and value caches of all layers; any dtypes, each
            page dense in memory.
        block_mapping: `[pairs, 2]` int64 beside the caches, source page and destination page; a pair
            with -1 is skipped.

    Raises:
        TypeError: a dtype that is not served.
        ValueError: shapes, strides or devices that do not fit, or (on the CPU, and elsewhere with
            `MAINBOARD_CHECK=1`) pages out of range.
    """
    if _CHECK_VALUES:
        check.blocks(caches, block_mapping)
    try:
        _copy_blocks(caches, block_mapping)
    except (RuntimeError, ValueError):
        validate.copy_blocks(caches, block_mapping)
        raise


def swap_blocks(src: Tensor, dst: Tensor, block_mapping: Tensor) -> None:
    """Copy pages of one cache to another, which may be on another device: to the host and back.

    With pinned host memory the copies are queued on the current stream; wait for it before the host
    reads or changes them.

    Args:
        src: `[pages, ...]`, each page dense in memory.
        dst: the same dtype and pages, in another place.
        block_mapping: `[pairs, 2]` int64 on the CPU, page of `src` and page of `dst`. Neighbouring
            pairs of neighbouring pages are moved in one piece.

    Raises:
        TypeError: a dtype that is not served.
        ValueError: shapes, strides or devices that do not fit, or pages out of range.
    """
    try:
        _swap_blocks(src, dst, block_mapping)
    except (RuntimeError, ValueError):
        validate.swap_blocks(src, dst, block_mapping)
        raise


def mla_decode(
    q: Tensor,
    kv_cache: Tensor,
    *,
    cu_seqlens_q: Tensor,
    seqused_k: Tensor,
    block_table: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    softmax_scale: float,
    value_dim: int = 512,
    causal: bool = True,
    kv_scale: float | Tensor | None = None,
    out: Tensor | None = None,
    return_lse: bool = False,
    deterministic: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Latent attention in its absorbed form: every head reads the same cached rows.

    A row is a key, and its first `value_dim` entries are the value.

    Args:
        q: `[tokens, heads, latent + rotary]`, float32, float16 or bfloat16.
        kv_cache: `[pages, page_size, latent + rotary]`, page_size a multiple of 16; q's dtype, or
            float8_e4m3fn, float8_e5m2 or int8.
        cu_seqlens_q: `[sequences + 1]` int32, where each sequence begins in `q`.
        seqused_k: `[sequences]` int32, rows in use.
        block_table: `[sequences, pages]` int32; entries past the last used page are not read.
        max_seqlen_q: an upper bound on the queries of one sequence.
        max_seqlen_k: an upper bound on its rows.
        softmax_scale: that of the heads before absorption, such as 1 / sqrt(192).
        value_dim: the latent's width.
        causal: a query sees rows up to its own position.
        kv_scale: what a cached row is multiplied by; a number, or float32 `[1]`.
        out: `[tokens, heads, value_dim]` of q's dtype to write into.
        return_lse: also return the natural log of the softmax denominator.
        deterministic: bits depend on a sequence alone, not on the rest of the batch.

    Returns:
        `out`, or `(out, lse)` with `lse` `[heads, tokens]` float32.

    Raises:
        TypeError: a dtype that is not served.
        ValueError: shapes, strides or devices that do not fit.
        RuntimeError: gradients are required.
    """
    if torch.is_grad_enabled() and (q.requires_grad or kv_cache.requires_grad):
        raise _no_backward()
    if _CHECK_VALUES:
        check.lengths(q, kv_cache, cu_seqlens_q, None, seqused_k, block_table)
    if out is None:
        out = q.new_empty(*q.shape[:-1], value_dim)
    lse = q.new_empty(*q.shape[1::-1], dtype=torch.float32) if return_lse else None
    arguments = (
        q, kv_cache, out, lse, cu_seqlens_q, seqused_k, block_table, max_seqlen_q, max_seqlen_k,
        softmax_scale, causal, _scale(kv_scale, q), deterministic,
    )  # fmt: skip
    try:
        (_ROUTES["mla_decode"].direct(arguments) or _mla_decode)(*arguments)
    except (RuntimeError, ValueError):
        validate.mla_decode(*arguments)
        raise
    return out if lse is None else (out, lse)


def concat_and_cache_mla(
    kv_c: Tensor,
    k_pe: Tensor,
    kv_cache: Tensor,
    slot_mapping: Tensor,
    *,
    kv_scale: float | Tensor | None = None,
) -> None:
    """Write new latent rows into the pages of a cache: latent and rotary part, side by side.

    Args:
        kv_c: `[tokens, latent]`.
        k_pe: `[tokens, rotary]`.
        kv_cache: `[pages, page_size, latent + rotary]` of kv_c's dtype, or fp8 or int8.
        slot_mapping: `[tokens]` int64, `page * page_size + slot`; -1 skips the token.
        kv_scale: what a row of bytes will be multiplied by when read; a number, or float32 `[1]`.

    Raises:
        TypeError: a dtype that is not served.
        ValueError: shapes, strides or devices that do not fit.
    """
    if _CHECK_VALUES:
        check.slots(kv_cache, slot_mapping)
    arguments = kv_c, k_pe, kv_cache, slot_mapping, _scale(kv_scale, kv_c)
    try:
        _concat_and_cache_mla(*arguments)
    except (RuntimeError, ValueError):
        validate.concat_and_cache_mla(*arguments)
        raise
