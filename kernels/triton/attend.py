"""`attention` and `mla_decode` on the Triton kernels.

The first call of a configuration is checked and planned; later ones, whose tensors differ by
address only, launch what was prepared.
"""

from math import prod

import torch
from torch import Tensor

from mainboard.kernels import validate
from mainboard.kernels.library import interpreted
from mainboard.kernels.triton.launch import Prepared, Wrap, as_is, glance
from mainboard.kernels.triton.plan import KEYS_ROUNDED
from mainboard.kernels.triton.works import Work, attention_work, describe, latent_work

__all__ = ["PREPARED", "attention", "mla_decode"]

PREPARED: Prepared[Work] = Prepared()
"""By everything that a call's checks and launches depend on."""


def _parts(work: Work, out: Tensor) -> Tensor:
    """Room for partial results, and behind them for their log-sum-exps."""
    numbers = prod(work.parts)
    return torch.empty(numbers + numbers // work.parts[-1], dtype=torch.float32, device=out.device)


def _first(work: Work, caches: tuple[Tensor, ...], tensors: tuple[Tensor | None, ...],
           begins: Tensor, wrap: Wrap) -> None:  # fmt: skip
    """Launch through Triton, which compiles what it must.

    Args:
        work: what is launched.
        caches: keys and values, or what holds both.
        tensors: all of the call's: the query and `caches`, then the output and its log-sum-exp.
        begins: where sequences begin.
        wrap: what makes a kernel launchable.
    """
    behind = 1 + len(caches)
    q, out, lse = tensors[0], tensors[behind], tensors[behind + 1]
    assert out is not None
    read = [x.view(torch.uint8) for x in caches] if work.as_bytes else caches
    part = part_lse = None
    if work.combine is not None:
        room, count = _parts(work, out), prod(work.parts)
        part, part_lse = room[:count], room[count:]
    work.main.first(
        q, *read, out, lse, part, part_lse, *describe(work, caches), *tensors[behind + 2 :],
        wrap=wrap,
    )  # fmt: skip
    if work.combine is not None:
        work.combine.first(out, lse, part, part_lse, begins, wrap=wrap)


def _again(work: Work, caches: tuple[Tensor, ...], at: list[int | None], out: Tensor,
           begins: Tensor) -> None:  # fmt: skip
    """Launch what `_first` did on tensors that differ by address only; `at` has the addresses."""
    behind = 3 + len(caches)
    descriptors = describe(work, caches)
    if work.combine is None:
        work.main.again(work.index, *at[:behind], None, None, *descriptors, *at[behind:])
        return
    room = _parts(work, out)
    part = room.data_ptr()
    part_lse = part + 4 * prod(work.parts)
    work.main.again(work.index, *at[:behind], part, part_lse, *descriptors, *at[behind:])
    work.combine.again(work.index, *at[behind - 2 : behind], part, part_lse, begins.data_ptr())


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
    wrap: Wrap = as_is,
) -> None:
    """Run `mainboard::attention`.

    Raises:
        TypeError: a dtype that is not served.
        ValueError: shapes, strides or devices that do not fit together.
    """
    keys = -(-max_seqlen_k // KEYS_ROUNDED) * KEYS_ROUNDED
    tensors = (
        q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, seqused_k, block_table, alibi_slopes, sinks,
        k_scale, v_scale, causal_flags,
    )  # fmt: skip
    key = None
    if wrap is as_is:
        key, at = glance(
            tensors, max_seqlen_q, keys, softmax_scale, causal, window_left, window_right, softcap,
            deterministic,
        )  # fmt: skip
        work = PREPARED.get(key)
        if work is not None:
            return _again(work, (k, v), at, out, cu_seqlens_q)
    validate.attention(
        q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, seqused_k, block_table, max_seqlen_q,
        max_seqlen_k, softmax_scale, causal, window_left, window_right, softcap, alibi_slopes,
        sinks, k_scale, v_scale, deterministic, causal_flags,
    )  # fmt: skip
    work = attention_work(
        q, k, v, out, lse, cu_seqlens_q.shape[0] - 1, block_table, max_seqlen_q, keys,
        softmax_scale, window_left, 0 if causal else window_right, softcap, k_scale, v_scale,
        deterministic, causal_flags is not None, wrap,
    )  # fmt: skip
    if work is None:
        return None
    _first(work, (k, v), tensors, cu_seqlens_q, wrap)
    if key is not None and not interpreted():
        PREPARED.keep(key, work)
    return None


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
    tensors = q, kv_cache, out, lse, cu_seqlens_q, seqused_k, block_table, kv_scale
    key = None
    if wrap is as_is:
        key, at = glance(
            tensors, "latent", max_seqlen_q, keys, softmax_scale, causal, deterministic
        )
        work = PREPARED.get(key)
        if work is not None:
            return _again(work, (kv_cache,), at, out, cu_seqlens_q)
    validate.mla_decode(
        q, kv_cache, out, lse, cu_seqlens_q, seqused_k, block_table, max_seqlen_q, max_seqlen_k,
        softmax_scale, causal, kv_scale, deterministic,
    )  # fmt: skip
    work = latent_work(
        q, kv_cache, out, lse, cu_seqlens_q.shape[0] - 1, block_table, max_seqlen_q, keys,
        softmax_scale, causal, deterministic, wrap,
    )  # fmt: skip
    if work is None:
        return None
    _first(work, (kv_cache,), tensors, cu_seqlens_q, wrap)
    if key is not None and not interpreted():
        PREPARED.keep(key, work)
    return None
