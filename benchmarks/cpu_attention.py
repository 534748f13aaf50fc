"""CPU attention beside torch's scaled_dot_product_attention in the same run.

Prints a table of medians and ratios; the two alternate, and which goes first changes every round.
Both get the same work. SDPA gets contiguous keys and values in its own best layout, one call a
sequence where the lengths differ, and the faster of its ways to share keys within a group of heads;
ours reads a paged cache, pages shuffled and cold, wherever there is a history. A case with a
feature that SDPA lacks has no ratio.

    python benchmarks/cpu_attention.py [--rounds N] [--only REGEX] [--json]
"""

import argparse
import json
import re
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import accumulate, count
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from mainboard import kernels
from mainboard.kernels.backends.cpu import CpuAttentionBackend
from mainboard.platforms.cpu import CpuPlatform
from mainboard.testing.attention_cases import AttentionCase

# Paged cases alternate over this many bytes of keys and values, so that none stays in a cache.
POOL_BYTES = 512 << 20
SHAPE: dict[str, Any] = {"heads": 32, "kv_heads": 8, "head_dim": 128}
FEATURES: dict[str, dict[str, Any]] = {
    "softcap": {"softcap": 30.0},
    "alibi": {"alibi": True},
    "sinks": {"sinks": True},
}
Call = Callable[[], object]


@dataclass(frozen=True)
class Result:
    """Median milliseconds of ours and of the fastest way to ask SDPA."""

    case: str
    dtype: str
    ours_ms: float
    sdpa_ms: float | None
    ratio: float | None
    gflops: float
    gbytes: float


def prefill_cases(dtype: torch.dtype) -> Iterator[tuple[str, AttentionCase]]:
    """Many new tokens."""
    for length in (512, 2048, 8192):
        yield f"prefill {length}", AttentionCase((length,), (length,), dtype=dtype, **SHAPE)
    for feature, options in FEATURES.items():
        case = AttentionCase((2048,), (2048,), dtype=dtype, **SHAPE, **options)
        yield f"prefill 2048 {feature}", case
    window = AttentionCase((8192,), (8192,), dtype=dtype, window=(1023, 0), **SHAPE)
    yield "prefill 8192 window 1024", window
    paged: dict[str, Any] = {"dtype": dtype, "page_size": 128, **SHAPE}
    for new, old in ((512, 4096), (128, 8192)):
        yield f"chunk {new} after {old}", AttentionCase((new,), (new + old,), **paged)
    lengths = (300, 700, 1500, 2500)
    yield "varlen 300+700+1500+2500", AttentionCase(lengths, lengths, dtype=dtype, **SHAPE)
    mixed = AttentionCase((512,) + (1,) * 15, (2048,) + (4096,) * 15, **paged)
    yield "mixed 512 at 2k, 15 decodes at 4k", mixed
    yield "verify 8 x 5 at 4096", AttentionCase((5,) * 8, (4096,) * 8, **paged)


def decode_cases(dtype: torch.dtype) -> Iterator[tuple[str, AttentionCase]]:
    """One new token a sequence."""
    for batch in (1, 8, 32):
        for length in (1024, 4096, 16384):
            queries, keys = (1,) * batch, (length,) * batch
            case = AttentionCase(queries, keys, dtype=dtype, page_size=128, **SHAPE)
            if case.bytes <= 1 << 30:
                yield f"decode {batch} x {length}", case
    for page in (16, 32):
        case = AttentionCase((1,) * 8, (4096,) * 8, dtype=dtype, page_size=page, **SHAPE)
        yield f"decode 8 x 4096, pages of {page}", case
    hot = AttentionCase((1,), (512,), dtype=dtype, page_size=128, **SHAPE)
    yield "decode 1 x 512, hot", hot


def cases() -> Iterator[tuple[str, AttentionCase]]:
    """Every shape and type."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        yield from prefill_cases(dtype)
        yield from decode_cases(dtype)


def ask_sdpa(q: Tensor, k: Tensor, v: Tensor, causal: bool, way: str) -> Tensor:
    """One sequence, head-major: q `[heads, new, dim]`, k and v `[kv_heads, keys, dim]`."""
    new, keys = q.shape[1], k.shape[1]
    if way == "groups as rows" and new == 1:
        return sdpa(q.view(1, k.shape[0], -1, q.shape[2]), k[None], v[None])
    q, k, v = q[None], k[None], v[None]
    if not causal or new == 1:
        return sdpa(q, k, v, enable_gqa=True)
    if new == keys:
        return sdpa(q, k, v, is_causal=True, enable_gqa=True)
    mask = torch.ones(new, keys, dtype=torch.bool).tril(keys - new)
    return sdpa(q, k, v, attn_mask=mask, enable_gqa=True)


def split_queries(case: AttentionCase, q: Tensor) -> list[Tensor]:
    """Each sequence's queries, head-major."""
    return [x.transpose(0, 1).contiguous() for x in q.split(case.queries)]


def dense_calls(case: AttentionCase) -> tuple[Call, list[Call]]:
    """Ours on token-major tensors, SDPA on head-major ones."""
    given = case.inputs()
    out = torch.empty_like(given.q)
    queries = split_queries(case, given.q)
    keys, values = (
        [part.transpose(0, 1).contiguous() for part in x.split(case.keys)]
        for x in (given.k, given.v)
    )
    group = case.heads // case.kv_heads

    def shared() -> None:
        for q, k, v in zip(queries, keys, values, strict=True):
            ask_sdpa(q, k, v, case.causal, "enable_gqa")

    expanded = [
        (q[None], k.repeat_interleave(group, 0)[None], v.repeat_interleave(group, 0)[None])
        for q, k, v in zip(queries, keys, values, strict=True)
    ]

    def copied() -> None:
        for q, k, v in expanded:
            sdpa(q, k, v, is_causal=True)

    ours = partial(kernels.attention, given.q, given.k, given.v, out=out, **given.options)
    plain = not (case.softcap or case.alibi or case.sinks or case.window != (-1, -1))
    return ours, [shared, copied] if plain else []


def paged_calls(case: AttentionCase, hot: bool) -> tuple[Call, list[Call]]:
    """Ours on a paged cache in the backend's layout, pages shuffled; SDPA on contiguous keys."""
    page = case.page_size
    assert page is not None
    needed = [-(-keys // page) for keys in case.keys]
    pages, pools = sum(needed), 1 if hot else max(1, POOL_BYTES // case.bytes)
    shape = CpuAttentionBackend.get_kv_cache_shape(
        pools * pages, page, case.kv_heads, case.head_dim
    )
    cache = torch.randn(shape).to(case.dtype)
    k_cache, v_cache = CpuAttentionBackend.split_kv_cache(cache)
    order = torch.randperm(pools * pages).int().view(pools, pages)
    tables = torch.zeros(pools, len(needed), max(needed), dtype=torch.int32)
    for i, (begin, n) in enumerate(zip([0, *accumulate(needed)], needed, strict=False)):
        tables[:, i, :n] = order[:, begin : begin + n]
    given = case.inputs()
    given.options.pop("block_table")
    out = torch.empty_like(given.q)
    k, v = (x.reshape(pools, case.kv_heads, pages * page, case.head_dim) for x in cache)
    queries = split_queries(case, given.q)
    starts = [begin * page for begin in [0, *accumulate(needed)]]
    turns = count()

    def ours() -> object:
        table = tables[next(turns) % pools]
        return kernels.attention(
            given.q, k_cache, v_cache, block_table=table, out=out, **given.options
        )

    def peer(way: str) -> None:
        pool = next(turns) % pools
        if len(set(case.keys)) == 1 and set(case.queries) == {1} and len(needed) > 1:
            shape = (len(needed), case.kv_heads, case.keys[0], case.head_dim)
            q = given.q.view(len(needed), case.heads, 1, case.head_dim)
            if way == "groups as rows":
                q = q.view(len(needed), case.kv_heads, -1, case.head_dim)
            sdpa(q, k[pool].view(shape), v[pool].view(shape), enable_gqa=way == "enable_gqa")
            return
        for q, start, length in zip(queries, starts, case.keys, strict=False):
            part = slice(start, start + length)
            ask_sdpa(q, k[pool, :, part], v[pool, :, part], case.causal, way)

    return ours, [partial(peer, way) for way in ("enable_gqa", "groups as rows")]


def median_times(calls: list[Call], rounds: int) -> list[float]:
    """Median seconds of each call, taken in turn."""
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for turn in range(rounds):
        order = range(len(calls)) if turn % 2 else reversed(range(len(calls)))
        for i in order:
            begin = time.perf_counter()
            calls[i]()
            times[i].append(time.perf_counter() - begin)
    return [statistics.median(samples) for samples in times]


def measure(name: str, case: AttentionCase, rounds: int) -> Result:
    """Time one case."""
    calls = dense_calls(case) if case.page_size is None else paged_calls(case, "hot" in name)
    mine, *others = median_times([calls[0], *calls[1]], rounds)
    best = min(others, default=None)
    return Result(
        case=name,
        dtype=str(case.dtype).removeprefix("torch."),
        ours_ms=mine * 1e3,
        sdpa_ms=None if best is None else best * 1e3,
        ratio=None if best is None else best / mine,
        gflops=visible_flops(case) / mine / 1e9,
        gbytes=case.bytes / mine / 1e9,
    )


def visible_flops(case: AttentionCase) -> float:
    """The case's operations, of what its window leaves to be seen."""
    left = case.window[0]
    if left < 0:
        return case.flops
    (new,), (keys,) = case.queries, case.keys
    seen = sum(min(position + 1, left + 1) for position in range(keys - new, keys))
    return 2.0 * case.heads * (case.head_dim + case.values) * seen


def main() -> None:
    """Measure every case and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--only", default="", help="a regular expression on 'case dtype'")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    status = kernels.status()
    library = status["libraries"][0]
    if not options.json:
        print(
            f"{CpuPlatform.get_device_name()}, {status['threads']} threads, torch "
            f"{status['torch']}, kernels {library['active'] or status['level']}; median of "
            f"{options.rounds}; heads 32/8, head dim 128\n"
        )
        print("| case | dtype | ours ms | SDPA ms | SDPA / ours | GFLOP/s | GB/s |")
        print("|---|---|---|---|---|---|---|", flush=True)
    results = []
    for name, case in cases():
        if not re.search(options.only, f"{name} {str(case.dtype).removeprefix('torch.')}"):
            continue
        r = measure(name, case, options.rounds)
        results.append(r)
        if not options.json:
            peer = "- | -" if r.sdpa_ms is None else f"{r.sdpa_ms:.3f} | {r.ratio:.2f}"
            print(f"| {r.case} | {r.dtype} | {r.ours_ms:.3f} | {peer} | {r.gflops:.0f} "
                  f"| {r.gbytes:.1f} |", flush=True)  # fmt: skip
    if options.json:
        print(json.dumps({"kernels": status, "results": [asdict(r) for r in results]}, indent=2))


if __name__ == "__main__":
    main()
