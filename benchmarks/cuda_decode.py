"""Check and time the compiled CUDA decode kernels on one device.

`python benchmarks/cuda_decode.py [--check] [--time] [--json FILE]`: the checks compare with float64
and repeat; each time is the median with a cold L2 and, beside it, the time of one call inside a CUDA
graph that rotates over more keys than the L2 holds.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from mainboard.kernels import cuda_support
from mainboard.testing.attention_cases import AttentionCase

BF16, F16 = torch.bfloat16, torch.float16
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
ROTATED_BYTES = 400 << 20


@dataclass(frozen=True)
class Row:
    """One line of the table: a batch of equal sequences."""

    batch: int
    length: int
    heads: int = 32
    kv_heads: int = 8
    dim: int = 128
    page: int = 16
    queries: int = 1
    cache: torch.dtype | None = None
    deterministic: bool = False

    def __str__(self) -> str:
        name = f"B{self.batch} L{self.length} nq{self.queries} Hq{self.heads} Hk{self.kv_heads}"
        name += f" D{self.dim} page{self.page}"
        if self.cache is not None:
            name += " " + str(self.cache).removeprefix("torch.float8_")
        return name + " fixed" if self.deterministic else name


ROWS = (
    Row(1, 1024), Row(1, 8192), Row(1, 131072), Row(8, 1024), Row(8, 8192), Row(64, 1024),
    Row(64, 8192), Row(64, 8192, page=64), Row(256, 1024), Row(256, 4096),
    Row(64, 8192, 64, 8, 64), Row(64, 8192, 32, 32), Row(64, 4096, 16, 4, 256),
    Row(64, 8192, queries=4), Row(64, 8192, queries=8), Row(8, 1024, queries=4),
    Row(1, 1024, 8, 1), Row(1, 8192, 8, 1), Row(1, 131072, 8, 1), Row(8, 1024, 8, 1),
    Row(8, 8192, 8, 1), Row(64, 1024, 8, 1), Row(64, 8192, 8, 1), Row(256, 1024, 8, 1),
    Row(64, 8192, cache=E4M3), Row(64, 8192, cache=E5M2), Row(8, 8192, cache=E4M3),
    Row(1, 131072, cache=E4M3), Row(64, 1024, cache=E4M3), Row(256, 1024, cache=E4M3),
    Row(64, 8192, deterministic=True), Row(8, 1024, deterministic=True),
)  # fmt: skip


def cases() -> Iterator[AttentionCase]:
    """Every promise of the operator, on every kernel."""
    base = AttentionCase(
        (1, 1, 0, 1, 1), (700, 33, 40, 0, 2500), 8, 2, 128, dtype=BF16, page_size=16
    )
    for dim in cuda_support.HEAD_DIMS:
        for dtype in (BF16, F16):
            for cache in (None, E4M3, E5M2):
                for queries in ((1, 1, 0, 1, 1), (3, 5, 1, 2, 7), (13, 16, 2, 1, 9)):
                    yield replace(
                        base, head_dim=dim, dtype=dtype, cache_dtype=cache, queries=queries,
                        scaled_cache=cache is not None,
                    )  # fmt: skip
    for group in (1, 5, 7, 8, 16):
        yield replace(base, heads=2 * group)
    for page in (32, 48, 128, None):
        yield replace(base, page_size=page, queries=(1, 2, 0, 3, 4))
    more = replace(base, queries=(4, 16, 0, 3, 1), keys=(900, 7, 31, 0, 300))
    for changes in (
        {"window": (0, 0)}, {"window": (1, -1)}, {"window": (100, 20)}, {"window": (5000, -1)},
        {"softcap": 30.0}, {"softcap": 0.5}, {"alibi": True}, {"sinks": True},
        {"window": (64, -1), "sinks": True}, {"causal": False}, {"strided": True},
        {"causal": False, "window": (40, 3), "softcap": 20.0, "alibi": True, "sinks": True},
        {"cache_dtype": E4M3, "window": (70, -1), "softcap": 20.0, "alibi": True, "sinks": True},
        {"deterministic": True}, {"deterministic": True, "queries": (30, 2, 1, 0, 12)},
        {"page_size": None, "strided": True, "causal": False},
        {"queries": (40, 200, 3, 0, 65)}, {"kv_heads": 1, "queries": (40, 200, 3, 0, 65)},
    ):  # fmt: skip
        yield replace(more, **changes)
    # Two key heads walked side by side, where a head's rows have up to 128 bytes.
    some = [(i % 4, 31 * i % 900) for i in range(40)]
    queries, keys = zip(*some, strict=True)
    paired = replace(base, queries=queries, keys=keys, heads=8, kv_heads=4)
    for dim in cuda_support.HEAD_DIMS:
        for cache in (None, E4M3, E5M2):
            for dtype in (BF16, F16):
                yield replace(paired, head_dim=dim, dtype=dtype, cache_dtype=cache,
                              scaled_cache=cache is not None)  # fmt: skip
    for dim, cache in ((64, None), (128, E4M3)):
        short = replace(paired, head_dim=dim, cache_dtype=cache)
        yield replace(short, queries=(1,) * 40, heads=32)
        yield replace(
            short, queries=(1,) * 6, keys=(900, 40, 3000, 0, 12000, 7), heads=48, kv_heads=6
        )
        yield replace(short, window=(70, -1), softcap=20.0, alibi=True, sinks=True, page_size=32)
        yield replace(short, causal=False, window=(40, 3), strided=True)
    # Large pieces of few tiles: a block to a multiprocessor, joined at once or in groups.
    for dim in (64, 128):
        for cache in (None, E4M3, E5M2):
            for dtype in (BF16, F16):
                large = replace(base, head_dim=dim, dtype=dtype, cache_dtype=cache,
                                scaled_cache=cache is not None)  # fmt: skip
                yield replace(large, queries=(4, 1, 3), keys=(9000, 300, 7000))
                yield replace(large, queries=(2,), keys=(40000,), heads=4, kv_heads=1, sinks=True)
    # Eight of them, a warp each: of up to four rows, where there is much to read by the bound.
    some = [(i % 3, 5200 if i == 7 else 31 * i % 300) for i in range(40)]
    queries, keys = zip(*some, strict=True)
    beside = replace(base, queries=queries, keys=keys, heads=16, kv_heads=8)
    for cache in (None, E4M3, E5M2):
        for dtype in (BF16, F16):
            one = replace(beside, dtype=dtype, cache_dtype=cache, scaled_cache=cache is not None)
            yield one
            yield replace(one, queries=(1,) * 40, heads=32)
    for cache in (None, E4M3):
        one = replace(beside, cache_dtype=cache)
        yield replace(one, queries=(1,) * 40, heads=48, kv_heads=16, page_size=48)
        yield replace(one, queries=(4,) * 40, heads=8, window=(70, -1), sinks=True)
        yield replace(one, causal=False, window=(40, 3), softcap=20.0, alibi=True, sinks=True)
    yield replace(beside, page_size=None)
    many = [(1 + i % 3, 17 * i % 1900) for i in range(300)]
    queries, keys = zip(*many, strict=True)
    yield replace(base, queries=queries, keys=keys, heads=4, kv_heads=1)
    yield replace(base, queries=queries, keys=keys, heads=4, kv_heads=1, deterministic=True)


def arguments(case: AttentionCase, device: str) -> tuple[list[Any], Any]:
    """The operator's arguments for a case, outputs poisoned, and what it was drawn from."""
    given = case.inputs(device)
    o = given.options
    out = torch.full((given.q.shape[0], case.heads, case.values), torch.nan, dtype=case.dtype,
                     device=device)  # fmt: skip
    lse = torch.full((case.heads, given.q.shape[0]), torch.nan, device=device)
    return [
        given.q, given.k, given.v, out, lse, o["cu_seqlens_q"], o.get("cu_seqlens_k"),
        o.get("seqused_k"), o.get("block_table"), o["max_seqlen_q"], o["max_seqlen_k"],
        case.head_dim**-0.5, case.causal is True, *case.window, case.softcap, o.get("alibi_slopes"),
        o.get("sinks"), o.get("k_scale"), o.get("v_scale"), case.deterministic,
        o["causal"] if isinstance(case.causal, tuple) else None,
    ], given  # fmt: skip


def wrong(case: AttentionCase) -> str | None:
    """What is wrong with the kernel's answer, or None."""
    call, given = arguments(case, "cuda")
    expected, expected_lse = case.expected(given)
    torch.ops.mainboard_cuda.attention(*call)
    out, lse = call[3].double(), call[4].double()
    # Weights, values of fp8 sums and the result are rounded to 16 bits.
    allowed = 3 * torch.finfo(case.dtype).eps * case.weighed_magnitude(given) + 1e-5
    if case.cache_dtype is not None and case.dtype is BF16:
        allowed += 2**-8 * case.weighed_magnitude(given)
    if not (out - expected).abs().le(allowed).all():
        worst = ((out - expected).abs() / allowed).nan_to_num(nan=1e9).max().item()
        return f"out is {worst:.3g} of what is allowed from float64; {out.isnan().sum()} NaN"
    same = (lse - expected_lse).abs().le(2e-3) | (lse == expected_lse)
    if not same.all():
        return f"lse differs by {(lse - expected_lse).abs().max().item():.3g}"
    first = call[3].clone()
    call[3].fill_(torch.nan)
    torch.ops.mainboard_cuda.attention(*call)
    return None if torch.equal(first, call[3]) else "a second call gives other bits"


def check(dims: list[int]) -> int:
    """Run all cases of some head dimensions; returns how many are wrong."""
    failures = count = 0
    for case in cases():
        if case.head_dim not in dims:
            continue
        count += 1
        try:
            why = wrong(case)
        except RuntimeError as error:
            why = f"{type(error).__name__}: {error}"
        if why is not None:
            failures += 1
            if failures <= 12:
                print(f"WRONG {case}\n  {why}", flush=True)
            if "CUDA error" in why:
                break
    print(f"{count} cases, {failures} wrong", flush=True)
    return failures


def tensors(row: Row, copies: int) -> list[list[Any]]:
    """Arguments of `copies` calls that share nothing but lengths."""
    dtype = row.cache or BF16
    pages_each = -(-row.length // row.page)
    pages = row.batch * pages_each
    ints = {"dtype": torch.int32, "device": "cuda"}
    offsets = torch.arange(row.batch + 1, **ints) * row.queries
    used = torch.full((row.batch,), row.length, **ints)
    calls = []
    for _ in range(copies):
        shape = (pages, row.page, row.kv_heads, row.dim)
        k, v = (torch.empty(shape, dtype=BF16, device="cuda").normal_().to(dtype) for _ in "kv")
        q = torch.randn(row.batch * row.queries, row.heads, row.dim, device="cuda").to(BF16)
        table = torch.randperm(pages, device="cuda").to(torch.int32).view(row.batch, pages_each)
        calls.append([
            q, k, v, torch.empty_like(q), None, offsets, None, used, table, row.queries,
            row.length, row.dim**-0.5, True, -1, -1, 0.0, None, None, None, None,
            row.deterministic,
        ])  # fmt: skip
    return calls


def graph_microseconds(calls: list[Callable[[], Any]], repeats: int) -> float:
    """Time of one call in a graph of `repeats` rounds over all calls."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            for call in calls:
                call()
    times = []
    for _ in range(5):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / (repeats * len(calls)))
    return sorted(times)[2]


def measure(row: Row) -> dict[str, Any]:
    """Time a row both ways."""
    from triton.testing import do_bench

    size = (row.cache or BF16).itemsize
    moved = 2 * row.batch * row.length * row.kv_heads * row.dim * size
    flops = 4 * row.batch * row.length * row.heads * row.dim * row.queries
    copies = max(1, min(24, -(-ROTATED_BYTES // moved)))
    operator = torch.ops.mainboard_cuda.attention.default
    calls = [lambda given=given: operator(*given) for given in tensors(row, copies)]
    graphed = graph_microseconds(calls, max(1, 48 // copies))
    cold = do_bench(calls[0], warmup=20, rep=60, return_mode="median") * 1e3
    return {
        "row": str(row), "do_bench_us": cold, "graph_us": graphed, "bytes": moved,
        "do_bench_gbs": moved / cold / 1e3, "graph_gbs": moved / graphed / 1e3,
        "graph_tflops": flops / graphed / 1e6,
    }  # fmt: skip


def main() -> None:
    """Check, time, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--only", help="rows that this regular expression finds")
    parser.add_argument("--dims", type=int, nargs="*", help="head dimensions to check, all if none")
    parser.add_argument("--library", help="a library to load instead of the installed one")
    parser.add_argument("--json", help="where to write the times")
    options = parser.parse_args()
    if options.library:
        torch.ops.load_library(options.library)
    else:
        from mainboard.kernels import library

        print(library.loaded("cuda").reason)
    failures = check(options.dims or [*cuda_support.HEAD_DIMS]) if options.check else 0
    results = []
    if options.time:
        for row in ROWS:
            if options.only and not re.search(options.only, str(row)):
                continue
            result = measure(row)
            results.append(result)
            print(
                f"{result['row']:55} do_bench {result['do_bench_us']:8.1f} us "
                f"{result['do_bench_gbs']:6.0f} GB/s   graph {result['graph_us']:8.1f} us "
                f"{result['graph_gbs']:6.0f} GB/s {result['graph_tflops']:4.0f} TFLOP/s",
                flush=True,
            )
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)
    sys.exit(failures != 0)


if __name__ == "__main__":
    main()
