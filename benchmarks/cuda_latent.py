"""Check and time latent attention (MLA) on one device of NVIDIA's.

`python benchmarks/cuda_latent.py [--check] [--repeat N] [--time]`: the checks compare with float64;
the repeats demand the same bits; times are as in `cuda_decode.py`, beside what a copy and a matrix
product reach in the same run.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from cuda_decode import BF16, F16, ROTATED_BYTES, graph_microseconds

from mainboard.kernels import cuda_support, library, reference
from mainboard.testing.attention_cases import AttentionCase

Call = list[Any]
LATENT, ROTARY = 512, 64
ROW = LATENT + ROTARY


@dataclass(frozen=True)
class Row:
    """One line of the table: a batch of equal sequences."""

    batch: int
    length: int
    heads: int
    page: int = 64
    queries: int = 1
    deterministic: bool = False

    def __str__(self) -> str:
        name = f"B{self.batch} L{self.length} nq{self.queries} H{self.heads} page{self.page}"
        return name + " fixed" if self.deterministic else name

    @property
    def bytes(self) -> int:
        """Rows of the cache, read once."""
        return 2 * ROW * self.batch * self.length

    @property
    def flops(self) -> int:
        """Of both products; the few keys that the first of several queries do not see count."""
        return 2 * (ROW + LATENT) * self.batch * self.length * self.queries * self.heads


ROWS = (
    Row(64, 8192, 16), Row(64, 8192, 16, page=16), Row(64, 8192, 128), Row(64, 8192, 128, page=16),
    Row(64, 8192, 32), Row(64, 8192, 64), Row(128, 4096, 128), Row(64, 8192, 128, queries=2),
    Row(256, 4096, 16), Row(64, 8192, 16, queries=4), Row(1, 8192, 16), Row(8, 8192, 16),
    Row(1, 131072, 16), Row(8, 1024, 128), Row(64, 1024, 128), Row(64, 8192, 128, deterministic=True),
    Row(64, 8192, 16, deterministic=True),
)  # fmt: skip


def operator() -> Any:
    """The compiled operator."""
    return torch.ops.mainboard_cuda.mla_decode.default


def draw(row: Row, copies: int) -> list[Call]:
    """Arguments of `copies` calls that share nothing but lengths."""
    pages_each = -(-row.length // row.page)
    pages = row.batch * pages_each
    ints: Any = {"dtype": torch.int32, "device": "cuda"}
    offsets = torch.arange(row.batch + 1, **ints) * row.queries
    used = torch.full((row.batch,), row.length, **ints)
    calls = []
    for _ in range(copies):
        cache = torch.empty(pages, row.page, ROW, dtype=BF16, device="cuda").normal_()
        q = torch.randn(row.batch * row.queries, row.heads, ROW, device="cuda").to(BF16)
        table = torch.randperm(pages, device="cuda").to(torch.int32).view(row.batch, pages_each)
        out = q.new_empty(*q.shape[:2], LATENT)
        calls.append([
            q, cache, out, None, offsets, used, table, row.queries, row.length, 192**-0.5, True,
            None, row.deterministic,
        ])  # fmt: skip
    return calls


def cases(reduced: bool) -> Iterator[AttentionCase]:
    """Ragged batches with rubbish in unused slots and table entries; `reduced` is for sanitizers."""
    keys = (700, 1, 64, 0, 2500, 333, 0)
    base = AttentionCase((1,) * 7, keys, 16, 1, ROW, LATENT, dtype=BF16, page_size=64)
    several = replace(base, queries=(2, 1, 3, 2, 0, 5, 1))
    if reduced:
        yield replace(several, heads=24, page_size=16)
        yield replace(base, heads=128, deterministic=True)
        return
    choices = product(
        (base, several), (1, 16, 24, 40, 64, 128), (16, 48, 64, 128),
        ((BF16, False), (F16, False), (BF16, True)),
    )  # fmt: skip
    for case, heads, page, (dtype, fixed) in choices:
        yield replace(case, heads=heads, page_size=page, dtype=dtype, deterministic=fixed)
    yield replace(several, causal=False)
    yield replace(base, queries=(9, 70, 0, 1, 20, 333, 3), heads=16)  # more queries than keys
    many = [(1 + i % 3, 37 * i % 1900) for i in range(300)]
    queries, lengths = zip(*many, strict=True)
    yield replace(base, queries=queries, keys=lengths)
    yield replace(base, queries=queries, keys=lengths, deterministic=True)
    yield replace(base, queries=queries, keys=lengths, heads=40)  # one tile, or two
    yield replace(base, queries=(1, 2), keys=(70000, 5), heads=128)
    yield replace(base, queries=(1,), keys=(140000,), heads=64, page_size=16)


def arguments(case: AttentionCase, given: Any, dtype: torch.dtype, lse_dtype: torch.dtype) -> Call:
    """The operator's arguments for a case, outputs poisoned."""
    o, tokens = given.options, sum(case.queries)
    out = torch.full((tokens, case.heads, LATENT), torch.nan, dtype=dtype, device="cuda")
    lse = torch.full((case.heads, tokens), torch.nan, dtype=lse_dtype, device="cuda")
    return [
        given.q, given.k.squeeze(2), out, lse, o["cu_seqlens_q"], o["seqused_k"], o["block_table"],
        o["max_seqlen_q"], o["max_seqlen_k"], 192**-0.5, case.causal, None, case.deterministic,
    ]  # fmt: skip


def wrong(case: AttentionCase) -> str | None:
    """What is wrong with the kernel's answer, or None."""
    given = case.inputs("cuda")
    exact = arguments(case, given, torch.float64, torch.float64)
    reference.mla_decode(*exact, precision=torch.float64)
    call = arguments(case, given, case.dtype, torch.float32)
    operator()(*call)
    expected, got = exact[2], call[2].double()
    # Weights and the result are rounded to 16 bits; values are of magnitude one.
    error = (got - expected).abs()
    if not error.le(6 * torch.finfo(case.dtype).eps).all():
        return f"out differs by {error.max().item():.3g}; {got.isnan().sum()} NaN"
    same = (call[3] - exact[3]).abs().le(2e-3) | (call[3] == exact[3])
    if not same.all():
        return "lse differs"
    first = call[2].clone()
    call[2].fill_(torch.nan)
    operator()(*call)
    return None if torch.equal(first, call[2]) else "a second call gives other bits"


def check(reduced: bool) -> int:
    """Compare all cases; returns how many are wrong."""
    failures = count = 0
    for case in cases(reduced):
        count += 1
        why = wrong(case)
        if why is not None:
            failures += 1
            if failures <= 8:
                print(f"WRONG {case}\n  {why}", flush=True)
    print(f"{count} cases, {failures} wrong", flush=True)
    return failures


def check_graph() -> int:
    """Replay one captured call with other lengths and an emptied batch; returns what is wrong."""
    base = AttentionCase((1,) * 4, (4000, 900, 1, 64), 16, 1, ROW, LATENT, dtype=BF16, page_size=64)
    given = base.inputs("cuda")
    call = arguments(base, given, BF16, torch.float32)
    operator()(*call)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        operator()(*call)
    failures = 0
    for lengths in ((4000, 900, 1, 64), (17, 64, 0, 3), (0, 0, 0, 0), (3999, 1, 1, 64)):
        given.options["seqused_k"].copy_(torch.tensor(lengths))
        call[2].fill_(torch.nan)
        graph.replay()
        exact = arguments(base, given, torch.float64, torch.float64)
        reference.mla_decode(*exact, precision=torch.float64)
        failures += not (call[2].double() - exact[2]).abs().le(0.05).all()
    print(f"graph with other lengths: {failures} wrong", flush=True)
    return failures


def check_far() -> int:
    """A cache of more than 2**31 elements, with pages on both sides; returns what is wrong."""
    pages = 2**31 // (64 * ROW) + 70
    cache = torch.zeros(pages, 64, ROW, dtype=BF16, device="cuda")
    cache[-8:].normal_()
    q = torch.randn(1, 16, ROW, device="cuda").to(BF16)
    ints: Any = {"dtype": torch.int32, "device": "cuda"}
    table = torch.arange(pages - 8, pages, **ints)[None]
    offsets, used = torch.tensor([0, 1], **ints), torch.tensor([500], **ints)
    outs = []
    for rows, of in ((cache, table), (cache[-8:].contiguous(), table - (pages - 8))):
        out = q.new_empty(1, 16, LATENT)
        operator()(q, rows, out, None, offsets, used, of, 1, 500, 192**-0.5, True, None, False)
        outs.append(out)
    failures = int(not torch.equal(*outs) or not outs[0].any())
    print(f"far pages: {failures} wrong", flush=True)
    return failures


def check_layouts() -> int:
    """Queries with heads outside tokens, and rows off 16 bytes; returns how many are wrong."""
    (call,) = draw(Row(3, 700, 24, queries=2), 1)
    operator()(*call)
    failures, first, q = 0, call[2].clone(), call[0]
    wider = torch.cat([q, q[..., :1]], dim=-1)
    for layout in (q.transpose(0, 1).contiguous().transpose(0, 1), wider[..., :ROW]):
        call[2].fill_(torch.nan)
        operator()(layout, *call[1:])
        failures += not torch.equal(first, call[2])
    print(f"queries in other layouts: {failures} wrong", flush=True)
    return failures


def repeat(times: int) -> int:
    """Call the same `times` times; returns how many gave other bits than the first."""
    others = torch.zeros((), dtype=torch.int64, device="cuda")
    for row in (Row(7, 3000, 128), Row(150, 777, 16, queries=2), Row(3, 20000, 24, page=16)):
        (call,) = draw(row, 1)
        operator()(*call)
        first = call[2].clone()
        for _ in range(times):
            call[2].fill_(torch.nan)
            operator()(*call)
            others += (call[2] != first).any()
    print(f"{times} repeats of 3 calls: {others.item()} with other bits", flush=True)
    return int(others.item())


def ceilings() -> tuple[float, float]:
    """What a copy (read and write, GB/s) and a product (TFLOP/s) reach."""
    from triton.testing import do_bench

    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copied = do_bench(lambda: target.copy_(source), return_mode="median")
    a, b = (torch.randn(8192, 8192, device="cuda").to(BF16) for _ in "ab")
    multiplied = do_bench(lambda: a @ b, return_mode="median")
    return 2 * source.numel() / copied / 1e6, 2 * 8192**3 / multiplied / 1e9


def measure(row: Row) -> dict[str, Any]:
    """Time a row both ways."""
    from triton.testing import do_bench

    copies = max(1, min(24, -(-ROTATED_BYTES // row.bytes)))
    calls: list[Callable[[], Any]] = [partial(operator(), *given) for given in draw(row, copies)]
    graphed = graph_microseconds(calls, max(1, 48 // copies))
    cold = do_bench(calls[0], warmup=20, rep=60, return_mode="median") * 1e3
    return {
        "row": str(row), "do_bench_us": cold, "graph_us": graphed, "bytes": row.bytes,
        "graph_gbs": row.bytes / graphed / 1e3, "graph_tflops": row.flops / graphed / 1e6,
    }  # fmt: skip


def measure_writes() -> None:
    """Time concat_and_cache_mla over enough tokens to be bound by memory."""
    tokens = 65536
    latent, rotary = (torch.randn(tokens, n, device="cuda").to(BF16) for n in (LATENT, ROTARY))
    cache = torch.empty(tokens // 64, 64, ROW, dtype=BF16, device="cuda")
    slots = torch.randperm(tokens, device="cuda")
    write = torch.ops.mainboard_cuda.concat_and_cache_mla.default
    time = graph_microseconds([partial(write, latent, rotary, cache, slots, None)], 48)
    moved = 4 * ROW * tokens
    print(f"concat_and_cache_mla {tokens} tokens {time:8.1f} us {moved / time / 1e3:6.0f} GB/s")


def time_rows(only: str | None, file: str | None) -> None:
    """Print a line for each row, after the ceilings."""
    copied, multiplied = ceilings()
    name = torch.cuda.get_device_name()
    print(f"{name}: copy {copied:.0f} GB/s, product {multiplied:.0f} TFLOP/s", flush=True)
    results = []
    for row in ROWS:
        if only and not re.search(only, str(row)):
            continue
        result = measure(row)
        results.append(result)
        print(
            f"{result['row']:40} do_bench {result['do_bench_us']:8.1f} us   graph"
            f" {result['graph_us']:8.1f} us {result['graph_gbs']:6.0f} GB/s"
            f" ({result['graph_gbs'] / copied:4.0%}) {result['graph_tflops']:4.0f} TFLOP/s"
            f" ({result['graph_tflops'] / multiplied:4.0%})",
            flush=True,
        )
    measure_writes()
    if file:
        with open(file, "w", encoding="utf-8") as out:
            json.dump({"copy": copied, "product": multiplied, "rows": results}, out, indent=1)


def main() -> None:
    """Check, repeat, time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--reduced", action="store_true", help="two cases only, for sanitizers")
    parser.add_argument("--repeat", type=int, default=0)
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--only", help="rows that this regular expression finds")
    parser.add_argument("--library", help="a library to load instead of the installed one")
    parser.add_argument("--json", help="where to write the times")
    options = parser.parse_args()
    assert cuda_support.OPERATORS  # imported: the operators are declared
    if options.library:
        torch.ops.load_library(options.library)
    else:
        print(library.loaded("cuda").reason)
    failures = 0
    if options.check:
        failures = check(options.reduced)
        if not options.reduced:
            failures += check_graph() + check_far() + check_layouts()
    if options.repeat:
        failures += repeat(options.repeat)
    if options.time:
        time_rows(options.only, options.json)
    sys.exit(failures != 0)


if __name__ == "__main__":
    main()
