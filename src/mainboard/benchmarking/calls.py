"""The calls of one row: ours as an engine makes it, and torch's own on the same amount of data.

Ours reads a paged cache in the layout of the device's backend, its pages in a drawn order. SDPA
gets what suits it best: contiguous keys, heads outside tokens. Calls go round over enough keys that
none stays in a processor's cache; those of a warm row read the same keys always.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count, groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as sdpa

from mainboard import kernels
from mainboard.benchmarking.rows import Row
from mainboard.benchmarking.timing import Call
from mainboard.kernels import host_memory
from mainboard.kernels.backends.cpu import CpuAttentionBackend
from mainboard.kernels.backends.dispatched import DispatchedAttentionBackend
from mainboard.testing.attention_cases import AttentionCase

__all__ = ["Calls", "build", "filled"]

_POOL_BYTES = 512 << 20
_BLOCK = 1 << 20

# The ways to share keys within a group of heads, and torch's kernels on a GPU.
_GPU_PEERS = {
    "SDPA flash": SDPBackend.FLASH_ATTENTION,
    "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
}


@dataclass(frozen=True)
class Calls:
    """What is timed for a row.

    Args:
        ours: one call of the operator.
        peers: torch's ways to the same result.
        arguments: of `ours` as one keyword call, to check its result with.
    """

    ours: Call
    peers: dict[str, Call]
    arguments: dict[str, Any]


def filled(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    """Normal values without drawing each: one drawn block, again and again."""
    size = torch.Size(shape).numel()
    drawn = torch.randn(min(size, _BLOCK), device=device)
    block = (drawn * 40).to(dtype) if dtype is torch.int8 else drawn.to(dtype)
    bits = block.view(torch.uint8)
    nbytes = (size * dtype.itemsize,)
    if device == "cpu":  # ours and torch's alike on the memory that the CPU backend asks for
        whole = host_memory.zeros(nbytes, torch.uint8)
    else:
        whole = torch.empty(nbytes, dtype=torch.uint8, device=device)
    rounds = whole.numel() // bits.numel()
    whole[: rounds * bits.numel()].view(rounds, -1).copy_(bits)
    whole[rounds * bits.numel() :] = bits[: whole.numel() - rounds * bits.numel()]
    return whole.view(dtype).view(shape)


def _pools(row: Row, device: str) -> int:
    """How many times the row's keys are there."""
    if row.warm or not row.few_queries or row.bytes == 0:
        return 1
    room = _POOL_BYTES
    if device == "cpu":
        room = min(room, os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4)
    return int(max(1, room // row.bytes))


def _offsets(lengths: tuple[int, ...], device: str) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32).to(device)


def _options(case: AttentionCase, device: str) -> dict[str, Any]:
    """The arguments that every pool shares."""
    options: dict[str, Any] = {
        "cu_seqlens_q": _offsets(case.queries, device),
        "max_seqlen_q": max(case.queries),
        "max_seqlen_k": max(case.keys),
        "causal": case.causal,
        "window": case.window,
        "softcap": case.softcap,
        "deterministic": case.deterministic,
    }
    if case.alibi:
        options["alibi_slopes"] = torch.rand(case.heads, device=device) * 0.1
    if case.sinks:
        options["sinks"] = torch.randn(case.heads, device=device)
    if case.scaled_cache:
        scale = 1.0 / 40 if case.cache_dtype is torch.int8 else 1.0
        options["k_scale"] = options["v_scale"] = torch.full((1,), scale, device=device)
    return options


def _tables(case: AttentionCase, pools: int, device: str) -> tuple[int, list[Tensor]]:
    """How many pages there are, and a table of drawn pages for each pool."""
    page = case.page_size
    assert page is not None
    counts = [-(-length // page) for length in case.keys]
    drawn = torch.randperm(pools * sum(counts)).int().view(pools, -1)
    tables = []
    for pages in drawn:
        table = torch.zeros(len(counts), max(counts), dtype=torch.int32)
        for i, mine in enumerate(pages.split(counts)):
            table[i, : counts[i]] = mine
        tables.append(table.to(device))
    return pools * sum(counts), tables


def _cache(case: AttentionCase, pages: int, device: str) -> tuple[Tensor, Tensor]:
    """Keys and values of so many pages, as the device's backend lays them out."""
    backend = {"cpu": CpuAttentionBackend}.get(device, DispatchedAttentionBackend)
    assert case.page_size is not None
    shape = backend.get_kv_cache_shape(pages, case.page_size, case.kv_heads, case.head_dim)
    k, v = backend.split_kv_cache(filled(shape, case.cache_dtype or case.dtype, device))
    return k, v


def _by_turns(call: Callable[[int], object], pools: int) -> Call:
    turns = count()
    return lambda: call(next(turns) % pools)


def _attention(row: Row, device: str) -> Calls:
    case, pools = row.case, _pools(row, device)
    options = _options(case, device)
    q = filled((sum(case.queries), case.heads, case.head_dim), case.dtype, device)
    out = torch.empty_like(q)
    run = partial(kernels.attention, q, out=out)
    if case.page_size is None:
        stored = case.cache_dtype or case.dtype
        shape = (sum(case.keys), case.kv_heads, case.head_dim)
        options |= {"k": filled(shape, stored, device), "v": filled(shape, stored, device)}
        options["cu_seqlens_k"] = _offsets(case.keys, device)
        ours: Call = partial(run, **options)
    else:
        pages, tables = _tables(case, pools, device)
        k, v = _cache(case, pages, device)
        options |= {"k": k, "v": v, "seqused_k": torch.tensor(case.keys, device=device).int()}
        turn = partial(run, **options)
        ours = _by_turns(lambda pool: turn(block_table=tables[pool]), pools)
        options["block_table"] = tables[0]
    return Calls(ours, dict(_attention_peers(row, q, pools, device)), {"q": q, **options})


def _attention_peers(row: Row, q: Tensor, pools: int, device: str) -> Iterator[tuple[str, Call]]:
    """SDPA over each run of sequences of one shape; none where it lacks the row's options."""
    case = row.case
    plain = case.window == (-1, -1) and not (case.softcap or case.alibi or case.sinks)
    if not plain or case.cache_dtype is not None:
        return
    parts: list[Callable[[str, int], object]] = []
    begin = 0
    for (new, keys), run in groupby(zip(case.queries, case.keys, strict=True)):
        batch = len(list(run))
        mine = q[begin : begin + batch * new].view(batch, new, case.heads, -1).transpose(1, 2)
        parts.append(_part(case, mine, keys, pools, device))
        begin += batch * new
    ways = ("shared", "grouped") if row.few_queries and max(case.queries) == 1 else ("shared",)
    if device == "cpu":
        if not row.few_queries:
            ways = ("shared", "expanded")
        for way in ways:
            yield f"SDPA {way}", _by_turns(partial(_all_parts, parts, way), pools)
        return
    for name, kernel in _GPU_PEERS.items():
        yield name, _by_turns(partial(_by_kernel, parts, kernel), pools)


def _all_parts(parts: list[Callable[[str, int], object]], way: str, pool: int) -> object:
    return [part(way, pool) for part in parts]


def _by_kernel(parts: list[Callable[[str, int], object]], kernel: SDPBackend, pool: int) -> object:
    with sdpa_kernel(kernel):
        return _all_parts(parts, "shared", pool)


def _part(
    case: AttentionCase, q: Tensor, keys: int, pools: int, device: str
) -> Callable[[str, int], object]:
    """SDPA on a batch of sequences of one shape, by one of the ways to share keys."""
    batch, heads, new, dim = q.shape
    group = heads // case.kv_heads
    q = q.contiguous()
    kv = filled((2, pools, batch, case.kv_heads, keys, dim), case.dtype, device)
    k, v = kv.unbind(0)
    square = case.causal and new == keys
    mask = None
    if case.causal and 1 < new < keys:
        mask = torch.ones(new, keys, dtype=torch.bool, device=device).tril(keys - new)
    options: dict[str, Any] = {"is_causal": square, "attn_mask": mask}
    wide: list[Tensor] = []

    def call(way: str, pool: int) -> object:
        if way == "grouped":  # the heads of a group as query rows, which a single query allows
            return sdpa(q.view(batch, case.kv_heads, group, dim), k[pool], v[pool])
        if way == "expanded":
            if not wide:
                wide.extend(x[pool].repeat_interleave(group, dim=1) for x in (k, v))
            return sdpa(q, wide[0], wide[1], **options)
        return sdpa(q, k[pool], v[pool], enable_gqa=group > 1, **options)

    return call


def _latent(row: Row, device: str) -> Calls:
    case, pools = row.case, _pools(row, device)
    pages, tables = _tables(case, pools, device)
    assert case.page_size is not None
    cache = filled((pages, case.page_size, case.head_dim), case.dtype, device)
    q = filled((sum(case.queries), case.heads, case.head_dim), case.dtype, device)
    out = q.new_empty(*q.shape[:-1], case.values)
    options = {
        "q": q,
        "kv_cache": cache,
        "seqused_k": torch.tensor(case.keys, device=device).int(),
        "softmax_scale": 192**-0.5,
        **{key: _options(case, device)[key] for key in ("cu_seqlens_q", "max_seqlen_q",
                                                        "max_seqlen_k", "causal")},
    }  # fmt: skip
    run = partial(kernels.mla_decode, out=out, **options)
    ours = _by_turns(lambda pool: run(block_table=tables[pool]), pools)
    batch, keys = len(case.keys), case.keys[0]
    rows = cache.view(pools, batch, 1, keys, case.head_dim)
    heads = q.view(batch, 1, case.heads, case.head_dim)  # the heads as query rows of one key head

    def peer(pool: int) -> object:
        return sdpa(heads, rows[pool], rows[pool][..., : case.values], scale=192**-0.5)

    arguments = {**options, "value_dim": case.values, "block_table": tables[0]}
    return Calls(ours, {"SDPA grouped": _by_turns(peer, pools)}, arguments)


def _write(row: Row, device: str) -> Calls:
    """Beside a plain copy of the same rows, and of as many bytes."""
    case = row.case
    tokens = sum(case.keys)
    assert case.page_size is not None
    key, value = filled((2, tokens, case.kv_heads, case.head_dim), case.dtype, device).unbind(0)
    caches = _cache(case, -(-tokens // case.page_size), device)
    pages = torch.randperm(tokens // case.page_size, device=device)
    slots = (pages[:, None] * case.page_size).add(torch.arange(case.page_size, device=device))
    arguments = {"key": key, "value": value, "slot_mapping": slots.flatten()}
    ours = partial(
        kernels.reshape_and_cache, key_cache=caches[0], value_cache=caches[1], **arguments
    )
    target = torch.empty_like(torch.stack([key, value]), dtype=case.cache_dtype)

    def copy() -> None:
        target[0].copy_(key)
        target[1].copy_(value)

    return Calls(ours, {"copy_": copy}, {})


def _merge(row: Row, device: str) -> Calls:
    """Beside an addition, which reads and writes as much."""
    case = row.case
    shape = (sum(case.queries), case.heads, case.values)
    a, b = filled((2, *shape), case.dtype, device).unbind(0)
    a_lse, b_lse = torch.randn(2, shape[1], shape[0], device=device).unbind(0)
    out, out_lse = torch.empty_like(a), torch.empty_like(a_lse)
    ours = partial(kernels.merge_attention_states, a, a_lse, b, b_lse, out=out, out_lse=out_lse)
    return Calls(ours, {"add": lambda: torch.add(a, b, out=out)}, {})


_BUILDERS = {
    "attention": _attention,
    "mla_decode": _latent,
    "reshape_and_cache": _write,
    "merge_attention_states": _merge,
}


def build(row: Row, device: str) -> Calls:
    """The calls of a row, on tensors of their own."""
    torch.manual_seed(row.case.seed)
    return _BUILDERS[row.operator](row, device)
