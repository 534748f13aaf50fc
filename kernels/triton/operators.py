"""The operators on the Triton kernels: arguments checked, a plan made, kernels launched.

Each has the signature of its schema. `mainboard.kernels.gpu_dispatch` calls them directly;
`torch.ops.mainboard_triton` has the same as operators that `torch.compile` sees through
(`mainboard.kernels.triton.traced`).
"""

from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from mainboard.kernels import validate
from mainboard.kernels.reference import FP8_LIMITS
from mainboard.kernels.triton.device.attention import attention_kernel
from mainboard.kernels.triton.device.cache import write_kernel
from mainboard.kernels.triton.device.joining import combine_kernel, merge_kernel
from mainboard.kernels.triton.device.latent import latent_kernel
from mainboard.kernels.triton.device.numeric import Stored
from mainboard.kernels.triton.plan import Plan, plan, target
from mainboard.kernels.triton.tiles import padded

__all__ = [
    "attention",
    "concat_and_cache_mla",
    "merge_attention_states",
    "mla_decode",
    "reshape_and_cache",
]

# What makes a kernel launchable: itself, or under torch.compile torch.library.wrap_triton.
Wrap = Callable[[Any], Any]

_BITS = {
    torch.float8_e4m3fn: Stored.E4M3,
    torch.float8_e5m2: Stored.E5M2,
    torch.float8_e4m3fnuz: Stored.E4M3FNUZ,
    torch.float8_e5m2fnuz: Stored.E5M2FNUZ,
}
# Architectures whose conversions from these formats are instructions.
_CAST = {
    torch.float8_e4m3fn: ("sm_89", "sm_90", "sm_100", "sm_103", "sm_120", "gfx950", "gfx1201"),
    torch.float8_e5m2: ("sm_89", "sm_90", "sm_100", "sm_103", "sm_120", "gfx950", "gfx1201"),
    torch.float8_e4m3fnuz: ("gfx942",),
    torch.float8_e5m2fnuz: ("gfx942",),
}


def _as_is(kernel: Any) -> Any:
    return kernel


def stored(x: Tensor, index: int) -> tuple[Tensor, Stored]:
    """A cache as a kernel takes it, and how its elements are read there."""
    if x.dtype not in _BITS:
        return x, Stored.SAME
    if target(index) in _CAST[x.dtype]:
        return x, Stored.CAST
    return x.view(torch.uint8), _BITS[x.dtype]


def _described(x: Tensor, rows: int) -> TensorDescriptor | None:
    """Dense keys for the copy engine, all heads of a token side by side; None where they are not."""
    tokens, heads, dim = x.shape
    step = 16 // x.element_size()
    apart = x.stride(0) >= heads * x.stride(1) >= heads * dim
    if not apart or x.stride(0) % step or x.stride(1) % step or x.data_ptr() % 16 or not tokens:
        return None
    width = (heads - 1) * x.stride(1) + dim
    return TensorDescriptor(x, [tokens, width], [x.stride(0), 1], [rows, dim])


def _parts(like: Tensor, made: Plan, tokens: int, heads: int, dim: int) -> tuple[Any, Any]:
    """Room for the results of every share of the keys, if there are several."""
    if made.splits == 1:
        return None, None
    shape = made.splits, tokens, heads
    return (
        like.new_empty((*shape, dim), dtype=torch.float32),
        like.new_empty(shape, dtype=torch.float32),
    )


def _combine(wrap: Wrap, out: Tensor, lse: Tensor | None, parts: Tensor, part_lse: Tensor) -> None:
    splits, tokens, heads, dim = parts.shape
    block = min(padded(dim), 128)
    wrap(combine_kernel)[(tokens * heads, triton.cdiv(dim, block))](
        out, lse, parts, part_lse, tokens, heads, out.stride(0), out.stride(1),
        0 if lse is None else lse.stride(0),
        SPLITS=splits, SPLITS_PAD=triton.next_power_of_2(splits), VDIM=dim, BLOCK_D=block,
        num_warps=4 if splits > 8 else 1,
    )  # fmt: skip


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
    wrap: Wrap = _as_is,
) -> None:
    """Run `mainboard::attention`.

    Raises:
        TypeError: a dtype that is not served.
        ValueError: shapes, strides or devices that do not fit together.
    """
    validate.attention(
        q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, seqused_k, block_table, max_seqlen_q,
        max_seqlen_k, softmax_scale, causal, window_left, window_right, softcap, alibi_slopes,
        sinks, k_scale, v_scale, deterministic,
    )  # fmt: skip
    tokens, heads, dim = q.shape
    batch = cu_seqlens_q.shape[0] - 1
    if tokens == 0 or batch == 0 or max_seqlen_q <= 0:
        return
    kv_heads, value_dim = k.shape[-2], v.shape[-1]
    index = q.device.index or 0
    pad, value_pad = padded(dim), padded(value_dim)
    made = plan(
        "attention", index, max(pad, value_pad), q.element_size(), heads // kv_heads, kv_heads,
        batch, tokens, max_seqlen_q, max_seqlen_k, value_dim, deterministic,
    )  # fmt: skip
    parts, part_lse = _parts(q, made, tokens, heads, value_dim)
    (k, how), (v, _) = stored(k, index), stored(v, index)
    k_desc = v_desc = None
    plain = block_table is None and how is Stored.SAME and (pad, value_pad) == (dim, value_dim)
    if made.tile.described and plain and wrap is _as_is:
        k_desc, v_desc = _described(k, made.tile.block_n), _described(v, made.tile.block_n)
    described = k_desc is not None and v_desc is not None
    paged = block_table is not None
    farthest = max_seqlen_q + max_seqlen_k
    right = 0 if causal else window_right
    programs = made.blocks * kv_heads * -(-(heads // kv_heads) // made.pack)
    wrap(attention_kernel)[(programs, made.splits)](
        q, k, v, out, lse, parts, part_lse, k_desc if described else None,
        v_desc if described else None, cu_seqlens_q, cu_seqlens_k, seqused_k, block_table,
        alibi_slopes, sinks, k_scale, v_scale, batch, made.blocks, tokens, heads, kv_heads,
        softmax_scale, softcap, min(window_left, farthest), min(right, farthest),
        q.stride(0), q.stride(1), k.stride(0) if paged else 0, k.stride(-3), k.stride(-2),
        v.stride(0) if paged else 0, v.stride(-3), v.stride(-2), out.stride(0), out.stride(1),
        0 if lse is None else lse.stride(0), 0 if block_table is None else block_table.stride(0),
        _step(k_scale), _step(v_scale),
        DIM=dim, PAD=pad, VDIM=value_dim, VPAD=value_pad, GROUP=heads // kv_heads, PACK=made.pack,
        PAGE=k.shape[1] if paged else 0, STORED=int(how), LEFT=window_left >= 0, RIGHT=right >= 0,
        SOFTCAP=softcap > 0.0, EVEN=made.even, SPLITS=made.splits, DESCRIBED=described,
        BLOCK_M=made.block_m, BLOCK_N=made.tile.block_n,
        SHORTEST=made.shortest, **made.tile.launch,
    )  # fmt: skip
    if made.splits > 1:
        _combine(wrap, out, lse, parts, part_lse)


def _step(scale: Tensor | None) -> int:
    """From one head's scale to the next's."""
    return 0 if scale is None or scale.shape[0] == 1 else 1


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
    wrap: Wrap = _as_is,
) -> None:
    """Run `mainboard::mla_decode`.

    Raises:
        TypeError: a dtype that is not served.
        ValueError: shapes, strides or devices that do not fit together.
    """
    validate.mla_decode(
        q, kv_cache, out, lse, cu_seqlens_q, seqused_k, block_table, max_seqlen_q, max_seqlen_k,
        softmax_scale, causal, kv_scale, deterministic,
    )  # fmt: skip
    tokens, heads, dim = q.shape
    batch, latent = cu_seqlens_q.shape[0] - 1, out.shape[-1]
    if tokens == 0 or batch == 0 or max_seqlen_q <= 0:
        return
    index, rotary = q.device.index or 0, dim - latent
    made = plan(
        "latent", index, padded(latent), q.element_size(), heads, 1, batch, tokens, max_seqlen_q,
        max_seqlen_k, latent, deterministic,
    )  # fmt: skip
    parts, part_lse = _parts(q, made, tokens, heads, latent)
    cache, how = stored(kv_cache, index)
    wrap(latent_kernel)[(made.blocks * -(-heads // made.pack), made.splits)](
        q, cache, out, lse, parts, part_lse, cu_seqlens_q, seqused_k, block_table, kv_scale, batch,
        made.blocks, tokens, heads, softmax_scale, q.stride(0), q.stride(1), cache.stride(0),
        cache.stride(1), out.stride(0), out.stride(1), 0 if lse is None else lse.stride(0),
        block_table.stride(0),
        LATENT=latent, LATENT_PAD=padded(latent), ROTARY=rotary, ROTARY_PAD=padded(max(rotary, 1)),
        PACK=made.pack, PAGE=cache.shape[1], STORED=int(how), RIGHT=causal, EVEN=made.even,
        SPLITS=made.splits, BLOCK_M=made.block_m,
        BLOCK_N=made.tile.block_n, SHORTEST=made.shortest, **made.tile.launch,
    )  # fmt: skip
    if made.splits > 1:
        _combine(wrap, out, lse, parts, part_lse)


def _write(wrap: Wrap, x: Tensor, cache: Tensor, slots: Tensor, scale: Tensor | None) -> None:
    """Tokens `[tokens, heads, dim]` into a cache `[pages, page_size, heads, dim]`."""
    tokens, heads, dim = slots.shape[0], *x.shape[1:]
    if tokens == 0 or dim == 0:
        return
    how = _BITS.get(cache.dtype, Stored.SAME)
    limit = FP8_LIMITS.get(cache.dtype, 0.0)
    wrap(write_kernel)[(tokens, heads)](
        x, cache.view(torch.uint8) if how else cache, slots, scale, limit, x.stride(0),
        x.stride(1), *cache.stride()[:3], _step(scale), PAGE=cache.shape[1], DIM=dim,
        PAD=padded(dim), STORED=int(how), num_warps=1 if dim <= 256 else 4,
    )  # fmt: skip


def reshape_and_cache(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    *,
    wrap: Wrap = _as_is,
) -> None:
    """Run `mainboard::reshape_and_cache`.

    Raises:
        TypeError: a dtype that is not served.
        ValueError: shapes, strides or devices that do not fit together.
    """
    validate.reshape_and_cache(key, value, key_cache, value_cache, slot_mapping, k_scale, v_scale)
    _write(wrap, key, key_cache, slot_mapping, k_scale)
    _write(wrap, value, value_cache, slot_mapping, v_scale)


def concat_and_cache_mla(
    kv_c: Tensor,
    k_pe: Tensor,
    kv_cache: Tensor,
    slot_mapping: Tensor,
    kv_scale: Tensor | None,
    *,
    wrap: Wrap = _as_is,
) -> None:
    """Run `mainboard::concat_and_cache_mla`.

    Raises:
        TypeError: a dtype that is not served.
        ValueError: shapes, strides or devices that do not fit together.
    """
    validate.concat_and_cache_mla(kv_c, k_pe, kv_cache, slot_mapping, kv_scale)
    rows, latent = kv_cache.unsqueeze(2), kv_c.shape[-1]
    _write(wrap, kv_c.unsqueeze(1), rows[..., :latent], slot_mapping, kv_scale)
    _write(wrap, k_pe.unsqueeze(1), rows[..., latent:], slot_mapping, kv_scale)


def merge_attention_states(
    out: Tensor,
    out_lse: Tensor | None,
    a: Tensor,
    a_lse: Tensor,
    b: Tensor,
    b_lse: Tensor,
    *,
    wrap: Wrap = _as_is,
) -> None:
    """Run `mainboard::merge_attention_states`.

    Raises:
        TypeError: a dtype that is not served.
        ValueError: shapes, strides or devices that do not fit together.
    """
    validate.merge_attention_states(out, out_lse, a, a_lse, b, b_lse)
    tokens, heads, dim = out.shape
    if out.numel() == 0:
        return
    pad = padded(dim)
    rows = max(1, 1024 // pad)
    written = (0, 0) if out_lse is None else out_lse.stride()
    wrap(merge_kernel)[(triton.cdiv(tokens, rows), heads)](
        out, out_lse, a, a_lse, b, b_lse, tokens, out.stride(0), out.stride(1), a.stride(0),
        a.stride(1), b.stride(0), b.stride(1), *written, *a_lse.stride(), *b_lse.stride(),
        DIM=dim, PAD=pad, ROWS=rows, num_warps=4,
    )  # fmt: skip
