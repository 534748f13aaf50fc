"""The functions of the flash-attn package, on Mainboard's attention.

Names, order of arguments and meaning are those of flash-attn 2, so that
`from mainboard.kernels.flash_attn import flash_attn_func` is all that changes. They infer: there is
no backward and no dropout, and what is not served is refused.
"""

from typing import cast

import torch
from torch import Tensor

from mainboard.errors import UnsupportedConfigurationError
from mainboard.kernels.ops import attention, reshape_and_cache
from mainboard.kernels.token_views import over_rows, row_offsets

__all__ = ["flash_attn_func", "flash_attn_varlen_func", "flash_attn_with_kvcache"]


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Tensor:
    """Attention over a batch of equal lengths.

    Args:
        q: `[batch, queries, heads, dim]`.
        k: `[batch, keys, kv_heads, dim]`.
        v: as `k`; its last dimension may differ.
        dropout_p: must be 0.
        softmax_scale: 1 / sqrt(dim) by default.
        causal: aligned to the last query and key.
        window_size: keys seen to the left and right, inclusive; -1 is unbounded.
        softcap: 0 is off.
        alibi_slopes: `[heads]` float32.
        deterministic: bits do not depend on the rest of the batch.
        return_attn_probs: must be False.

    Returns:
        `[batch, queries, heads, dim of v]`.

    Raises:
        UnsupportedConfigurationError: dropout, probabilities or slopes per sequence.
        RuntimeError: gradients are required.
    """
    _refuse(dropout_p, return_attn_probs)
    _batched(q=q, k=k, v=v)
    batch, queries, heads, dim = q.shape
    keys, values, distance = over_rows(k, v)
    length = k.shape[1]
    used = None
    if distance != length:
        used = torch.full((batch,), length, dtype=torch.int32, device=q.device)
    out = attention(
        q.reshape(batch * queries, heads, dim),
        keys,
        values,
        cu_seqlens_q=row_offsets(batch, queries, queries, q.device),
        cu_seqlens_k=row_offsets(batch, distance, length, q.device),
        seqused_k=used,
        max_seqlen_q=queries,
        max_seqlen_k=length,
        softmax_scale=softmax_scale,
        causal=causal,
        window=_window(window_size),
        softcap=softcap,
        alibi_slopes=_slopes(alibi_slopes),
        deterministic=deterministic,
    )
    return cast(Tensor, out).view(batch, queries, heads, v.shape[3])


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Tensor:
    """Attention over sequences of any lengths, laid end to end.

    Args:
        q: `[tokens, heads, dim]`.
        k: `[tokens, kv_heads, dim]`, or with `block_table` `[pages, page_size, kv_heads, dim]`.
        v: as `k`; its last dimension may differ.
        cu_seqlens_q: `[sequences + 1]` int32, where each begins in `q`.
        cu_seqlens_k: the same for `k` and `v`; with `block_table` it gives the lengths.
        max_seqlen_q: an upper bound on the queries of one sequence.
        max_seqlen_k: an upper bound on its keys.
        dropout_p: must be 0.
        softmax_scale: 1 / sqrt(dim) by default.
        causal: aligned to the last query and key.
        window_size: keys seen to the left and right, inclusive; -1 is unbounded.
        softcap: 0 is off.
        alibi_slopes: `[heads]` float32.
        deterministic: bits do not depend on the rest of the batch.
        return_attn_probs: must be False.
        block_table: `[sequences, pages]` int32; pages of a multiple of 16.

    Returns:
        `[tokens, heads, dim of v]`.

    Raises:
        UnsupportedConfigurationError: dropout, probabilities or slopes per sequence.
        RuntimeError: gradients are required.
    """
    _refuse(dropout_p, return_attn_probs)
    out = attention(
        q,
        k,
        v,
        cu_seqlens_q=cu_seqlens_q,
        cu_seqlens_k=cu_seqlens_k,
        block_table=block_table,
        max_seqlen_q=max_seqlen_q,
        max_seqlen_k=max_seqlen_k,
        softmax_scale=softmax_scale,
        causal=causal,
        window=_window(window_size),
        softcap=softcap,
        alibi_slopes=_slopes(alibi_slopes),
        deterministic=deterministic,
    )
    return cast(Tensor, out)


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    block_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of new queries over a cache, after writing new keys and values into it.

    Args:
        q: `[batch, queries, heads, dim]`.
        k_cache: `[rows, room, kv_heads, dim]`, or with `block_table`
            `[pages, page_size, kv_heads, dim]`.
        v_cache: as `k_cache`.
        k: `[batch, new, kv_heads, dim]`, written from `cache_seqlens` on.
        v: as `k`.
        rotary_cos: `[positions, rotary_dim / 2]`; turns `k`, and `q` alike, by their positions.
        rotary_sin: as `rotary_cos`.
        cache_seqlens: keys in the cache before `k`: a number, or `[batch]` int32; all by default.
        cache_batch_idx: `[batch]`, the row of the cache of each sequence.
        cache_leftpad: `[batch]` int32, where the keys of each row begin.
        block_table: `[batch, pages]` int32; pages of a multiple of 16.
        softmax_scale: 1 / sqrt(dim) by default.
        causal: aligned to the last query and key.
        window_size: keys seen to the left and right, inclusive; -1 is unbounded.
        softcap: 0 is off.
        rotary_interleaved: turn neighbours 0 and 1, 2 and 3, not halves.
        alibi_slopes: `[heads]` float32.
        num_splits: not needed; keys are split as the machine has threads.
        return_softmax_lse: also return the log of the softmax's denominator.

    Returns:
        `[batch, queries, heads, dim]`, or that and `[batch, heads, queries]` float32.

    Raises:
        UnsupportedConfigurationError: a combination that the operator does not have.
        ValueError: arguments that do not fit together.
    """
    _batched(q=q, k_cache=k_cache, v_cache=v_cache)
    paged = block_table is not None
    _check_cache_options(k, v, rotary_cos, rotary_sin, cache_seqlens, cache_batch_idx,
                         cache_leftpad, paged)  # fmt: skip
    batch, queries, heads, dim = q.shape
    before = _lengths(cache_seqlens, batch, k_cache, block_table)
    window = _window(window_size)
    if k is not None and v is not None:
        if rotary_cos is not None and rotary_sin is not None:
            moving = causal or window != (-1, -1)
            k = _rotate(k, rotary_cos, rotary_sin, before, rotary_interleaved, moving=True)
            q = _rotate(q, rotary_cos, rotary_sin, before, rotary_interleaved, moving=moving)
        _append(k, v, k_cache, v_cache, before, cache_batch_idx, block_table)
    used = before if k is None else before + k.shape[1]
    starts, most = None, k_cache.shape[1]
    if block_table is not None:
        most *= block_table.shape[1]
    else:
        k_cache, v_cache, starts, used = _dense_rows(
            k_cache, v_cache, used, batch, cache_batch_idx, cache_leftpad
        )
    result = attention(
        q.reshape(batch * queries, heads, dim),
        k_cache,
        v_cache,
        cu_seqlens_q=row_offsets(batch, queries, queries, q.device),
        cu_seqlens_k=starts,
        seqused_k=used,
        block_table=block_table,
        max_seqlen_q=queries,
        max_seqlen_k=most,
        softmax_scale=softmax_scale,
        causal=causal,
        window=window,
        softcap=softcap,
        alibi_slopes=_slopes(alibi_slopes),
        return_lse=return_softmax_lse,
    )
    shape = (batch, queries, heads, v_cache.shape[-1])
    if isinstance(result, Tensor):
        return result.view(shape)
    out, lse = result
    return out.view(shape), lse.view(heads, batch, queries).transpose(0, 1)


def _refuse(dropout_p: float, return_attn_probs: bool) -> None:
    reasons = []
    if dropout_p:
        reasons.append(f"dropout_p is {dropout_p}, and this attention only infers: pass 0.0")
    if return_attn_probs:
        reasons.append(
            "return_attn_probs is True, and the probabilities are never formed; for their "
            "log-sum-exp call mainboard.kernels.attention(..., return_lse=True)"
        )
    if reasons:
        raise UnsupportedConfigurationError("these arguments are not served", reasons)


def _batched(**tensors: Tensor) -> None:
    for name, x in tensors.items():
        if x.dim() != 4:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; expected four dimensions")


def _window(size: tuple[int, int]) -> tuple[int, int]:
    left, right = size
    return left, right


def _slopes(slopes: Tensor | None) -> Tensor | None:
    if slopes is None or slopes.dim() == 1:
        return slopes
    if slopes.dim() == 2 and slopes.shape[0] == 1:
        return slopes[0]
    raise UnsupportedConfigurationError(
        f"alibi_slopes has shape {tuple(slopes.shape)}; mainboard attention takes one slope per "
        "head for the whole batch, [heads]: call it once for each sequence"
    )


def _check_cache_options(
    k: Tensor | None,
    v: Tensor | None,
    rotary_cos: Tensor | None,
    rotary_sin: Tensor | None,
    cache_seqlens: int | Tensor | None,
    cache_batch_idx: Tensor | None,
    cache_leftpad: Tensor | None,
    paged: bool,
) -> None:
    if (k is None) != (v is None):
        raise ValueError("k and v are new keys and values: give both, or neither")
    if (rotary_cos is None) != (rotary_sin is None):
        raise ValueError("rotary_cos and rotary_sin belong together: give both, or neither")
    if k is not None and cache_seqlens is None:
        raise ValueError("cache_seqlens is missing: it says where k and v are to be written")
    if rotary_cos is not None and k is None:
        raise ValueError("rotary_cos and rotary_sin turn new keys: give k and v")
    reasons = []
    if rotary_cos is not None and cache_leftpad is not None:
        reasons.append("rotary_cos with cache_leftpad: turn q and k before the call")
    if paged and cache_leftpad is not None:
        reasons.append("block_table with cache_leftpad: start each table at its first page")
    if paged and cache_batch_idx is not None:
        reasons.append("block_table with cache_batch_idx: index block_table instead")
    if reasons:
        raise UnsupportedConfigurationError("these arguments are not served together", reasons)


def _lengths(
    cache_seqlens: int | Tensor | None, batch: int, cache: Tensor, block_table: Tensor | None
) -> Tensor:
    """Keys in the cache, `[batch]` int32."""
    if isinstance(cache_seqlens, Tensor):
        return cache_seqlens.to(torch.int32)
    room = cache.shape[1] * (1 if block_table is None else block_table.shape[1])
    length = room if cache_seqlens is None else cache_seqlens
    return torch.full((batch,), length, dtype=torch.int32, device=cache.device)


def _rotate(
    x: Tensor, cos: Tensor, sin: Tensor, before: Tensor, interleaved: bool, *, moving: bool
) -> Tensor:
    """Turn pairs of `x` [batch, tokens, heads, dim] by their positions, or all by the first's."""
    step = torch.arange(x.shape[1], device=x.device) * int(moving)
    position = before.long()[:, None] + step
    c, s = (table[position][:, :, None].float() for table in (cos, sin))
    pairs = cos.shape[1]
    turned, rest = x[..., : 2 * pairs].float(), x[..., 2 * pairs :]
    first, second = (
        (turned[..., ::2], turned[..., 1::2]) if interleaved else turned.split(pairs, dim=-1)
    )
    ends = first * c - second * s, first * s + second * c
    mixed = torch.stack(ends, dim=-1).flatten(-2) if interleaved else torch.cat(ends, dim=-1)
    return torch.cat([mixed.to(x.dtype), rest], dim=-1)


def _append(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    before: Tensor,
    rows: Tensor | None,
    block_table: Tensor | None,
) -> None:
    """Write new keys and values behind those in the cache."""
    for name, x, cache in (("k", k, k_cache), ("v", v, v_cache)):
        if x.dtype != cache.dtype:
            raise TypeError(f"{name} has dtype {x.dtype}; expected {name}_cache's {cache.dtype}")
    position = before.long()[:, None] + torch.arange(k.shape[1], device=k.device)
    if block_table is None:
        row = torch.arange(k.shape[0], device=k.device) if rows is None else rows.long()
        k_cache[row[:, None], position] = k
        v_cache[row[:, None], position] = v
        return
    size = k_cache.shape[1]
    page = block_table.long().gather(1, position // size)
    slots = (page * size + position % size).flatten()
    reshape_and_cache(k.flatten(0, 1), v.flatten(0, 1), k_cache, v_cache, slots)


def _dense_rows(
    k_cache: Tensor,
    v_cache: Tensor,
    used: Tensor,
    batch: int,
    rows: Tensor | None,
    leftpad: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keys and values as tokens, where each row's keys begin, and how many it has."""
    if rows is not None:
        # Offsets must ascend, and any order of rows is allowed here.
        k_cache, v_cache = k_cache[rows.long()], v_cache[rows.long()]
    k_cache, v_cache = k_cache[:batch], v_cache[:batch]
    length = k_cache.shape[1]
    keys, values, distance = over_rows(k_cache, v_cache)
    starts = row_offsets(batch, distance, length, k_cache.device)
    if leftpad is None:
        return keys, values, starts, used
    leftpad = leftpad.to(torch.int32)
    starts[:-1] += leftpad
    return keys, values, starts, used - leftpad
