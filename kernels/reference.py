"""Every operator in plain PyTorch, for any device: the meaning that all kernels must have.

Arguments are those of the schemas in `mainboard.kernels.schema`. Lengths are read on the host, one
sequence after another; this is the specification, not a fast path. Arithmetic is in float32, or in
`precision` where a test asks for more.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

FP8_LIMITS = {
    torch.float8_e4m3fn: 448.0,
    torch.float8_e5m2: 57344.0,
    torch.float8_e4m3fnuz: 240.0,
    torch.float8_e5m2fnuz: 57344.0,
}


def sequence_bounds(cu_seqlens: Tensor) -> list[tuple[int, int]]:
    """Begin and end of every sequence."""
    return list(pairwise(cu_seqlens.tolist()))


def _keys_of(
    index: int,
    cache: Tensor,
    cu_seqlens_k: Tensor | None,
    seqused_k: Tensor | None,
    block_table: Tensor | None,
) -> Tensor:
    """The keys (or values) of one sequence, [length, heads, dim]."""
    begin, length = 0, 0
    if cu_seqlens_k is not None:
        begin, end = cu_seqlens_k[index : index + 2].tolist()
        length = end - begin
    if seqused_k is not None:
        length = int(seqused_k[index].item())
    if block_table is None:
        return cache[begin : begin + length]
    pages = -(-length // cache.shape[1])
    return cache[block_table[index, :pages].long()].flatten(0, 1)[:length]


def scores(
    q: Tensor,
    k: Tensor,
    *,
    scale: float,
    causal: bool,
    window: tuple[int, int],
    softcap: float,
    alibi_slopes: Tensor | None,
) -> Tensor:
    """Masked scores of one sequence: q [lq, h, d] and k [lk, h, d] to [h, lq, lk]."""
    s = torch.einsum("qhd,khd->hqk", q, k) * scale
    if softcap > 0:
        s = softcap * torch.tanh(s / softcap)
    lq, lk = q.shape[0], k.shape[0]
    position = torch.arange(lq, device=q.device)[:, None] + (lk - lq)
    key = torch.arange(lk, device=q.device)[None, :]
    if alibi_slopes is not None:
        s = s - alibi_slopes.to(s.dtype)[:, None, None] * (position - key).abs()
    left, right = window
    hidden = torch.zeros(lq, lk, dtype=torch.bool, device=q.device)
    if left >= 0:
        hidden |= key < position - left
    if causal or right >= 0:
        hidden |= key > position + (0 if causal else right)
    return s.masked_fill(hidden, float("-inf"))


def _weigh(s: Tensor, v: Tensor, sinks: Tensor | None) -> tuple[Tensor, Tensor]:
    """Softmax of scores [h, lq, lk] over values [lk, h, dv], with the log of its denominator."""
    if sinks is not None:
        column = sinks.to(s.dtype)[:, None, None].expand(*s.shape[:2], 1)
        lse = torch.logsumexp(torch.cat([s, column], dim=-1), dim=-1)
    elif s.shape[-1]:
        lse = torch.logsumexp(s, dim=-1)
    else:
        lse = s.new_full(s.shape[:2], float("-inf"))
    finite = torch.where(lse == float("-inf"), 0.0, lse)
    return torch.einsum("hqk,khd->qhd", torch.exp(s - finite[..., None]), v), lse


def _expand(x: Tensor, heads: int, precision: torch.dtype, scale: Tensor | None) -> Tensor:
    """Keys or values in the working precision, rescaled, each head repeated for its group."""
    x = x.to(precision)
    if scale is not None:
        x = x * scale.to(precision).reshape(-1, 1)
    return x.repeat_interleave(heads // x.shape[1], dim=1) if x.shape[1] else x


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
    causal_flags: Tensor | None = None,
    *,
    precision: torch.dtype = torch.float32,
) -> None:
    """Write softmax(scores) v into `out`, and the log of its denominator into `lse`."""
    heads = q.shape[1]
    flags = None if causal_flags is None else causal_flags.tolist()
    for index, (begin, end) in enumerate(sequence_bounds(cu_seqlens_q)):
        if begin == end:
            continue
        lengths = cu_seqlens_k, seqused_k, block_table
        keys = _expand(_keys_of(index, k, *lengths), heads, precision, k_scale)
        values = _expand(_keys_of(index, v, *lengths), heads, precision, v_scale)
        s = scores(
            q[begin:end].to(precision),
            keys,
            scale=softmax_scale,
            causal=causal or (flags is not None and flags[index]),
            window=(window_left, window_right),
            softcap=softcap,
            alibi_slopes=alibi_slopes,
        )
        o, log_sum = _weigh(s, values, sinks)
        out[begin:end] = o.to(out.dtype)
        if lse is not None:
            lse[:, begin:end] = log_sum.to(lse.dtype)


def quantize(x: Tensor, dtype: torch.dtype, scale: Tensor | None) -> Tensor:
    """`x` [tokens, heads, dim] over its scale, saturated to the range of a `dtype` of one byte.

    To the nearest, ties to even; NaN is 0 in int8, which has none.
    """
    if scale is not None:
        x = x.float() * (1.0 / scale.float()).reshape(-1, 1)
    if dtype is torch.int8:
        return x.float().nan_to_num(nan=0.0).round().clamp(-128, 127).to(dtype)
    limit = FP8_LIMITS[dtype]
    return x.float().clamp(-limit, limit).to(dtype)


def reshape_and_cache(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
) -> None:
    """Write token t into slot `slot_mapping[t]` of the caches; -1 skips it."""
    slots = slot_mapping.tolist()
    tokens = [t for t, slot in enumerate(slots) if slot >= 0]
    page = key_cache.shape[1]
    where = torch.tensor([slots[t] for t in tokens], dtype=torch.long, device=key.device)
    for source, cache, scale in ((key, key_cache, k_scale), (value, value_cache, v_scale)):
        rows = source[tokens]
        if cache.dtype in FP8_LIMITS or cache.dtype is torch.int8:
            rows = quantize(rows, cache.dtype, scale)
            # Indexed assignment knows no fp8: move the bytes.
            cache, rows = cache.view(torch.uint8), rows.view(torch.uint8)
        cache[where // page, where % page] = rows


def merge_attention_states(
    out: Tensor, out_lse: Tensor | None, a: Tensor, a_lse: Tensor, b: Tensor, b_lse: Tensor
) -> None:
    """Join two results over disjoint keys, [tokens, heads, dim] with LSE [heads, tokens]."""
    top = torch.maximum(a_lse.float(), b_lse.float())
    finite = torch.where(top == float("-inf"), 0.0, top)
    shares = [torch.exp(lse.float() - finite) for lse in (a_lse, b_lse)]
    total = shares[0] + shares[1]
    merged = torch.zeros_like(out, dtype=torch.float32)
    for x, share in zip((a, b), shares, strict=True):
        # Not exp(lse - log-sum-exp): one of 90 is rounded by 4e-6, and so would the weight be.
        weight = (share / total).T[..., None]
        # A part with no keys may hold anything; it must not be read.
        merged += torch.where(weight > 0, x.float() * weight, 0.0)
    out.copy_(merged)
    if out_lse is not None:
        out_lse.copy_(finite + torch.log(total))


def _bytes(cache: Tensor) -> Tensor:
    """A cache as integers, because indexed assignment knows no fp8."""
    return cache.view(torch.uint8) if cache.element_size() == 1 else cache


def copy_blocks(caches: Sequence[Tensor], block_mapping: Tensor) -> None:
    """Copy page `block_mapping[i, 0]` of every cache to page `block_mapping[i, 1]`; -1 skips."""
    pairs = block_mapping[(block_mapping >= 0).all(dim=1)]
    for cache in map(_bytes, caches):
        cache[pairs[:, 1]] = cache[pairs[:, 0]]


def swap_blocks(src: Tensor, dst: Tensor, block_mapping: Tensor) -> None:
    """Copy page `block_mapping[i, 0]` of `src` to page `block_mapping[i, 1]` of `dst`."""
    here, there = block_mapping.unbind(1)
    pages = _bytes(src)[here.to(src.device)].to(dst.device)
    _bytes(dst)[there.to(dst.device)] = pages


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
    precision: torch.dtype = torch.float32,
) -> None:
    """Attention whose one key head is a row of the latent cache, and its values the row's front."""
    keys = kv_cache.unsqueeze(2)
    attention(
        q, keys, keys[..., : out.shape[-1]], out, lse, cu_seqlens_q, None, seqused_k, block_table,
        max_seqlen_q, max_seqlen_k, softmax_scale, causal, -1, -1, 0.0, None, None, kv_scale,
        kv_scale, deterministic, precision=precision,
    )  # fmt: skip


def concat_and_cache_mla(
    kv_c: Tensor, k_pe: Tensor, kv_cache: Tensor, slot_mapping: Tensor, kv_scale: Tensor | None
) -> None:
    """Write token t's latent and rotary parts, side by side, into slot `slot_mapping[t]`."""
    rows = torch.cat([kv_c, k_pe], dim=-1)[:, None]
    latent, pages = rows[..., : kv_c.shape[-1]], kv_cache.unsqueeze(2)
    reshape_and_cache(
        rows, latent, pages, pages[..., : kv_c.shape[-1]], slot_mapping, kv_scale, kv_scale
    )
