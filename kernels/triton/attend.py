"""`attention` and `mla_decode` on the Triton kernels.

The first call of a configuration is checked and planned; later ones, whose tensors differ by
address only, launch what was prepared.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from mainboard.kernels import validate
from mainboard.kernels.library import interpreted
from mainboard.kernels.triton.device.attention import attention_kernel
from mainboard.kernels.triton.device.joining import combine_kernel
from mainboard.kernels.triton.device.latent import latent_kernel
from mainboard.kernels.triton.device.numeric import Stored
from mainboard.kernels.triton.launch import Launch, Prepared, Wrap, address, as_is, meta
from mainboard.kernels.triton.plan import KEYS_ROUNDED, Plan, plan
from mainboard.kernels.triton.stored import readable, step
from mainboard.kernels.triton.tiles import padded

__all__ = ["PREPARED", "attention", "mla_decode"]

_FARTHEST = 2**30  # beyond any position, and a position more still fits into 32 bits


@dataclass(frozen=True)
class Work:
    """What one configuration launches."""

    main: Launch
    combine: Launch | None
    parts: tuple[int, ...] = ()  # [splits, tokens, heads, dim] of partial results
    as_bytes: bool = False  # a cache that the device cannot read as what it is
    described: tuple[Any, ...] = ()  # shape, strides and block of the descriptors of k and v


PREPARED: Prepared[Work] = Prepared()
"""By everything that a call's checks and launches depend on."""


def _combine(
    made: Plan, out: Tensor, lse: Tensor | None, batch: int, parts: tuple[int, ...]
) -> Launch | None:
    if made.splits == 1:
        return None
    splits, tokens, heads, dim = parts
    block = min(padded(dim), 128)
    steps = out.stride(0), out.stride(1), 0 if lse is None else lse.stride(0)
    numbers = (batch, tokens, heads, *steps, splits, padded(splits), dim, block)
    options = {"num_warps": 4 if splits > 8 else 1}
    return Launch(combine_kernel, (tokens * heads, -(-dim // block)), numbers, options)


def _described(x: Tensor, rows: int) -> tuple[Any, ...] | None:
    """Dense keys for the copy engine, all heads of a token side by side; None where they are not."""
    tokens, heads, dim = x.shape
    unit = 16 // x.element_size()
    apart = x.stride(0) >= heads * x.stride(1) >= heads * dim
    if not apart or x.stride(0) % unit or x.stride(1) % unit or x.data_ptr() % 16 or not tokens:
        return None
    return [tokens, (heads - 1) * x.stride(1) + dim], [x.stride(0), 1], [rows, dim]


def _run(work: Work, inputs: tuple[Tensor, ...], rest: tuple[Any, ...], begins: Tensor,
         out: Tensor, lse: Tensor | None, wrap: Wrap, first: bool) -> None:  # fmt: skip
    """Launch the kernel on `(*inputs, out, lse, parts, part_lse, *rest)`, and join its parts."""
    parts = part_lse = None
    if work.combine is not None:
        parts = out.new_empty(work.parts, dtype=torch.float32)
        part_lse = out.new_empty(work.parts[:-1], dtype=torch.float32)
    if first:
        work.main.first(*inputs, out, lse, parts, part_lse, *rest, wrap=wrap)
        if work.combine is not None:
            work.combine.first(out, lse, parts, part_lse, begins, wrap=wrap)
        return
    to, to_lse, at, at_lse = map(address, (out, lse, parts, part_lse))
    given = [address(x) if x is None or isinstance(x, Tensor) else x for x in rest]
    work.main.again(*map(address, inputs), to, to_lse, at, at_lse, *given)
    if work.combine is not None:
        work.combine.again(to, to_lse, at, at_lse, begins.data_ptr())


def _aligned(*tensors: Tensor | None) -> Any:
    """The lowest bits of the addresses, on which Triton's loads depend; 0 when none is set."""
    low = 0
    for x in tensors:
        if x is not None:
            low |= x.data_ptr()
    return low & 15 and tuple(0 if x is None else x.data_ptr() & 15 for x in tensors)


def _attention_work(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor | None, batch: int,
    block_table: Tensor | None, max_seqlen_q: int, keys: int, scale: float, left: int, right: int,
    softcap: float, k_scale: Tensor | None, v_scale: Tensor | None, deterministic: bool,
    wrap: Wrap,
) -> Work | None:  # fmt: skip
    """Plan a call; None when there is nothing to do."""
    tokens, heads, dim = map(int, q.shape)
    if tokens == 0 or batch == 0 or max_seqlen_q <= 0:
        return None
    kv_heads, value_dim = k.shape[-2], v.shape[-1]
    index, group = q.device.index or 0, heads // kv_heads
    pad, value_pad = padded(dim), padded(value_dim)
    made = plan(
        "attention", index, max(pad, value_pad), q.element_size(), group, kv_heads, batch, tokens,
        max_seqlen_q, keys, value_dim, deterministic,
    )  # fmt: skip
    how, page = readable(k.dtype, index), 0 if block_table is None else k.shape[1]
    described: tuple[Any, ...] = ()
    whole = not page and how is Stored.SAME and (pad, value_pad) == (dim, value_dim)
    if made.tile.described and whole and wrap is as_is:
        pair = _described(k, made.tile.block_n), _described(v, made.tile.block_n)
        described = pair if None not in pair else ()
    numbers = (
        batch, made.blocks, tokens, heads, kv_heads, scale, softcap, left, right,
        q.stride(0), q.stride(1), k.stride(0) if page else 0, k.stride(-3), k.stride(-2),
        v.stride(0) if page else 0, v.stride(-3), v.stride(-2), out.stride(0), out.stride(1),
        0 if lse is None else lse.stride(0), 0 if block_table is None else block_table.stride(0),
        step(k_scale), step(v_scale),
        dim, pad, value_dim, value_pad, group, made.pack, page, int(how), left >= 0, right >= 0,
        softcap > 0.0, scale > 0.0, (k.shape, k.stride()) == (v.shape, v.stride()), made.even, made.splits, bool(described), made.block_m, made.tile.block_n,
        made.shortest,
    )  # fmt: skip
    programs = made.blocks * kv_heads * -(-group // made.pack)
    parts = made.splits, tokens, heads, value_dim
    return Work(
        Launch(attention_kernel, (programs, made.splits), numbers, made.tile.launch),
        _combine(made, out, lse, batch, parts),
        parts,
        how not in (Stored.SAME, Stored.CAST),
        described,
    )


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor | None,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor | None,
    seqused_k: Tensor | None,
    block_table: Tensor | None,
    max_seqlen_q: int,
    max_seqlen_k: int,
    softmax_scale: float,
    causal: bool,
    window_left: int,
    window_right: int,
    softcap: float,
    alibi_slopes: Tensor | None,
    sinks: Tensor | None,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    deterministic: bool,
    *,
    wrap: Wrap = as_is,
) -> None:
    """Run `mainboard::attention`.

    Raises:
        TypeError: a dtype that is not served.
        ValueError: shapes, strides or devices that do not fit together.
    """
    keys = -(-max_seqlen_k // KEYS_ROUNDED) * KEYS_ROUNDED
    others = (
        cu_seqlens_q, cu_seqlens_k, seqused_k, block_table, alibi_slopes, sinks, k_scale, v_scale,
    )  # fmt: skip
    key, work, first = None, None, True
    if wrap is as_is:
        key = (
            meta(q), meta(k), meta(v), meta(out), meta(lse), *map(meta, others), max_seqlen_q,
            keys, softmax_scale, causal, window_left, window_right, softcap, deterministic,
            _aligned(q, k, v, out, lse, *others),
        )  # fmt: skip
        work = PREPARED.get(key)
    if work is not None:
        first = False
    else:
        validate.attention(
            q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, seqused_k, block_table, max_seqlen_q,
            max_seqlen_k, softmax_scale, causal, window_left, window_right, softcap, alibi_slopes,
            sinks, k_scale, v_scale, deterministic,
        )  # fmt: skip
        right = 0 if causal else min(window_right, _FARTHEST)
        work = _attention_work(
            q, k, v, out, lse, cu_seqlens_q.shape[0] - 1, block_table, max_seqlen_q, keys,
            softmax_scale, min(window_left, _FARTHEST), right, softcap, k_scale, v_scale,
            deterministic, wrap,
        )  # fmt: skip
        if work is None:
            return
        if wrap is as_is and not interpreted():
            PREPARED.keep(key, work)
    k_desc = v_desc = None
    if work.described:
        k_desc, v_desc = (
            TensorDescriptor(x, *how) for x, how in zip((k, v), work.described, strict=True)
        )
    if work.as_bytes:
        k, v = k.view(torch.uint8), v.view(torch.uint8)
    _run(work, (q, k, v), (k_desc, v_desc, *others), cu_seqlens_q, out, lse, wrap, first)


def _latent_work(
    q: Tensor, cache: Tensor, out: Tensor, lse: Tensor | None, batch: int, block_table: Tensor,
    max_seqlen_q: int, keys: int, scale: float, causal: bool, deterministic: bool,
) -> Work | None:  # fmt: skip
    """Plan a call; None when there is nothing to do."""
    tokens, heads, dim = map(int, q.shape)
    if tokens == 0 or batch == 0 or max_seqlen_q <= 0:
        return None
    index, latent = q.device.index or 0, out.shape[-1]
    made = plan(
        "latent", index, padded(latent), q.element_size(), heads, 1, batch, tokens, max_seqlen_q,
        keys, latent, deterministic,
    )  # fmt: skip
    how, rotary = readable(cache.dtype, index), dim - latent
    numbers = (
        batch, made.blocks, tokens, heads, scale, q.stride(0), q.stride(1), cache.stride(0),
        out.stride(0), out.stride(1), 0 if lse is None else lse.stride(0), block_table.stride(0),
        cache.stride(1), latent, padded(latent), rotary, padded(max(rotary, 1)), made.pack,
        cache.shape[1], int(how), causal, scale > 0.0, made.even, made.splits, made.block_m, made.tile.block_n,
        made.shortest,
    )  # fmt: skip
    parts = made.splits, tokens, heads, latent
    grid = made.blocks * -(-heads // made.pack), made.splits
    return Work(
        Launch(latent_kernel, grid, numbers, made.tile.launch),
        _combine(made, out, lse, batch, parts),
        parts,
        how not in (Stored.SAME, Stored.CAST),
    )


def mla_decode(
    q: Tensor,
    kv_cache: Tensor,
    out: Tensor,
    lse: Tensor | None,
    cu_seqlens_q: Tensor,
    seqused_k: Tensor,
    block_table: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    softmax_scale: float,
    causal: bool,
    kv_scale: Tensor | None,
    deterministic: bool,
    *,
    wrap: Wrap = as_is,
) -> None:
    """Run `mainboard::mla_decode`.

    Raises:
        TypeError: a dtype that is not served.
        ValueError: shapes, strides or devices that do not fit together.
    """
    keys = -(-max_seqlen_k // KEYS_ROUNDED) * KEYS_ROUNDED
    others = cu_seqlens_q, seqused_k, block_table, kv_scale
    key, work, first = None, None, True
    if wrap is as_is:
        key = (
            "latent", meta(q), meta(kv_cache), meta(out), meta(lse), *map(meta, others),
            max_seqlen_q, keys, softmax_scale, causal, deterministic,
            _aligned(q, kv_cache, out, lse, *others),
        )  # fmt: skip
        work = PREPARED.get(key)
    if work is not None:
        first = False
    else:
        validate.mla_decode(
            q, kv_cache, out, lse, cu_seqlens_q, seqused_k, block_table, max_seqlen_q,
            max_seqlen_k, softmax_scale, causal, kv_scale, deterministic,
        )  # fmt: skip
        work = _latent_work(
            q, kv_cache, out, lse, cu_seqlens_q.shape[0] - 1, block_table, max_seqlen_q, keys,
            softmax_scale, causal, deterministic,
        )  # fmt: skip
        if work is None:
            return
        if wrap is as_is and not interpreted():
            PREPARED.keep(key, work)
    cache = kv_cache.view(torch.uint8) if work.as_bytes else kv_cache
    _run(work, (q, cache), others, cu_seqlens_q, out, lse, wrap, first)
