"""Calls made ahead of time, so that none that matters waits for a compiler."""

import itertools
import logging
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mainboard.kernels.ops import attention, mla_decode

__all__ = ["warm_up"]

logger = logging.getLogger(__name__)


def warm_up(
    k: Tensor,
    v: Tensor | None,
    *,
    heads: int,
    keys: Sequence[int],
    queries: Sequence[int] = (1,),
    batches: Sequence[int] = (1,),
    dtype: torch.dtype | None = None,
    **options: Any,
) -> float:
    """Call `attention`, or `mla_decode`, on empty sequences, once for each combination of sizes.

    It chooses, compiles and loads what calls of these sizes will use, and reads no key. Compiled
    Triton kernels stay in Triton's cache on disk, where later processes find them.

    Args:
        k: your key cache, or dense keys: their dtype, layout and alignment are what matters.
        v: the same for values; None says that `k` is a cache of latent rows, for `mla_decode`.
        heads: of queries.
        keys: of the longest sequence.
        queries: of the longest sequence: 1 for decode, the size of a chunk for prefill.
        batches: numbers of sequences.
        dtype: of queries; by default the keys', or bfloat16 over 8-bit floats.
        options: what else your calls give to the operator, such as `window` or `value_dim`; a tensor
            of causal flags may have any length.

    Returns:
        The seconds it took.
    """
    begin = time.perf_counter()
    if dtype is None:
        dtype = torch.bfloat16 if k.element_size() == 1 else k.dtype
    zeros = partial(torch.zeros, dtype=torch.int32, device=k.device)
    for batch, longest, length in itertools.product(batches, queries, keys):
        q = torch.empty(batch * longest, heads, k.shape[-1], dtype=dtype, device=k.device)
        nowhere, nothing = zeros(batch + 1), zeros(batch)
        sizes: dict[str, Any] = {
            "cu_seqlens_q": nowhere,
            "max_seqlen_q": longest,
            "max_seqlen_k": length,
        }
        where: dict[str, Any] = {"cu_seqlens_k": nowhere}
        if k.dim() == 4 or v is None:
            table = zeros(batch, -(-length // k.shape[1]))
            where = {"seqused_k": nothing, "block_table": table}
        if isinstance(options.get("causal"), Tensor):
            options["causal"] = nothing.bool()
        if v is None:
            scale = {"softmax_scale": k.shape[-1] ** -0.5}
            mla_decode(q, k, **sizes, **where, **scale | options)
        else:
            attention(q, k, v, **sizes, **where, **options)
    if k.is_cuda:
        torch.cuda.synchronize(k.device)
    seconds = time.perf_counter() - begin
    logger.debug("warmed up for %s x %s x %s in %.1f s", batches, queries, keys, seconds)
    return seconds
