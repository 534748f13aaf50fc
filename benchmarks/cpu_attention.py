"""CPU attention beside torch's scaled_dot_product_attention in the same run.

Prints a table of medians and ratios; the two alternate, and which goes first changes every round.
Both get the same work: SDPA gets contiguous keys and values in its own best layout and the faster
of its two ways to share them within a group of heads (`enable_gqa`, or the group as query rows);
ours reads a paged cache for decode.

    python benchmarks/cpu_attention.py [--rounds N] [--json]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count

import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from mainboard import kernels
from mainboard.kernels.backends.cpu import CpuAttentionBackend
from mainboard.platforms.cpu import CpuPlatform
from mainboard.testing.attention_cases import AttentionCase

# Decode alternates over this many bytes of keys and values, so that none stays in a cache.
POOL_BYTES = 512 << 20
Call = Callable[[], object]


@dataclass(frozen=True)
class Result:
    """Median milliseconds of ours and of the fastest way to ask SDPA."""

    case: str
    dtype: str
    ours_ms: float
    sdpa_ms: float
    ratio: float
    gflops: float
    gbytes: float


def cases() -> Iterator[tuple[str, AttentionCase]]:
    """The shapes that the project promises never to be slower on."""
    shape = {"heads": 32, "kv_heads": 8, "head_dim": 128}
    for dtype in (torch.bfloat16, torch.float32):
        for length in (512, 2048):
            yield f"prefill {length}", AttentionCase((length,), (length,), dtype=dtype, **shape)
        for batch in (1, 8):
            for length in (1024, 4096):
                queries, keys = (1,) * batch, (length,) * batch
                case = AttentionCase(queries, keys, dtype=dtype, page_size=128, **shape)
                yield f"decode {batch} x {length}", case


def prefill_calls(case: AttentionCase) -> tuple[Call, list[Call]]:
    """Ours on token-major tensors, SDPA on head-major ones."""
    given = case.inputs()
    out = torch.empty_like(given.q)
    heads = (x.transpose(0, 1).contiguous()[None] for x in (given.q, given.k, given.v))
    q, k, v = heads
    expanded = [x.repeat_interleave(case.heads // case.kv_heads, dim=1) for x in (k, v)]
    return partial(kernels.attention, given.q, given.k, given.v, out=out, **given.options), [
        lambda: sdpa(q, k, v, is_causal=True, enable_gqa=True),
        lambda: sdpa(q, *expanded, is_causal=True),
    ]


def decode_calls(case: AttentionCase) -> tuple[Call, list[Call]]:
    """Ours on a paged cache in the backend's layout, pages shuffled; SDPA on contiguous keys."""
    batch, keys, page = len(case.keys), case.keys[0], case.page_size
    assert page is not None
    pools = max(1, POOL_BYTES // case.bytes)
    pages = batch * keys // page
    shape = CpuAttentionBackend.get_kv_cache_shape(
        pools * pages, page, case.kv_heads, case.head_dim
    )
    cache = torch.randn(shape).to(case.dtype)
    k_cache, v_cache = CpuAttentionBackend.split_kv_cache(cache)
    tables = torch.randperm(pools * pages).int().view(pools, batch, -1)
    given = case.inputs()
    given.options.pop("block_table")
    out = torch.empty_like(given.q)
    k, v = (x.reshape(pools, batch, case.kv_heads, keys, case.head_dim) for x in cache)
    heads = given.q.view(batch, case.heads, 1, case.head_dim)
    groups = given.q.view(batch, case.kv_heads, -1, case.head_dim)
    turns = count()

    def ours() -> object:
        table = tables[next(turns) % pools]
        return kernels.attention(
            given.q, k_cache, v_cache, block_table=table, out=out, **given.options
        )

    def shared(query: torch.Tensor, **options: bool) -> Call:
        def call() -> object:
            pool = next(turns) % pools
            return sdpa(query, k[pool], v[pool], **options)

        return call

    return ours, [shared(heads, enable_gqa=True), shared(groups)]


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
    ours, peers = (prefill_calls if case.page_size is None else decode_calls)(case)
    mine, *others = median_times([ours, *peers], rounds)
    best = min(others)
    return Result(
        case=name,
        dtype=str(case.dtype).removeprefix("torch."),
        ours_ms=mine * 1e3,
        sdpa_ms=best * 1e3,
        ratio=best / mine,
        gflops=case.flops / mine / 1e9,
        gbytes=case.bytes / mine / 1e9,
    )


def main() -> None:
    """Measure every case and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    results = [measure(name, case, options.rounds) for name, case in cases()]
    status = kernels.status()
    if options.json:
        print(json.dumps({"kernels": status, "results": [asdict(r) for r in results]}, indent=2))
        return
    library = status["libraries"][0]
    print(
        f"{CpuPlatform.get_device_name()}, {status['threads']} threads, torch {status['torch']}, "
        f"kernels {library['active'] or status['level']}; median of {options.rounds}; "
        "heads 32/8, head dim 128\n"
    )
    print("| case | dtype | ours ms | SDPA ms | SDPA / ours | GFLOP/s | GB/s |")
    print("|---|---|---|---|---|---|---|")
    for r in results:
        print(f"| {r.case} | {r.dtype} | {r.ours_ms:.3f} | {r.sdpa_ms:.3f} | {r.ratio:.2f} "
              f"| {r.gflops:.0f} | {r.gbytes:.1f} |")  # fmt: skip


if __name__ == "__main__":
    main()
