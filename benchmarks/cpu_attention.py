"""CPU attention beside torch's scaled_dot_product_attention in the same run.

Prints a table of medians and ratios; the two alternate, and which goes first changes every round.
Both get the same work: SDPA gets contiguous keys and values in its own best layout and the faster
of its two ways to share them within a group of heads (`enable_gqa`, or the group as query rows);
ours reads a paged cache for decode.

    python benchmarks/cpu_attention.py [--rounds N] [--json]
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from mainboard import kernels

HEADS, KV_HEADS, DIM, PAGE = 32, 8, 128, 128
# Decode alternates over this many caches' worth of keys, so that none stays in the processor's cache.
POOL_BYTES = 512 << 20


@dataclass(frozen=True)
class Case:
    """One shape: `queries` new tokens at the end of `keys`, in each of `batch` sequences."""

    name: str
    batch: int
    queries: int
    keys: int
    dtype: torch.dtype

    @property
    def flops(self) -> float:
        """Multiply-adds times two of both products, the causal half counted once."""
        past = self.keys - self.queries
        seen = self.queries * past + self.queries * (self.queries + 1) / 2
        return 4 * self.batch * HEADS * DIM * seen

    @property
    def bytes(self) -> int:
        """Keys and values read once."""
        return 2 * self.batch * self.keys * KV_HEADS * DIM * self.dtype.itemsize


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


def cases() -> Iterator[Case]:
    """The shapes that the project promises never to be slower on."""
    for dtype in (torch.bfloat16, torch.float32):
        for length in (512, 2048):
            yield Case(f"prefill {length}", 1, length, length, dtype)
        for batch in (1, 8):
            for length in (1024, 4096):
                yield Case(f"decode {batch} x {length}", batch, 1, length, dtype)


def prefill_calls(case: Case) -> tuple[Callable[[], object], list[Callable[[], object]]]:
    """Ours on token-major tensors, SDPA on head-major ones."""
    q = torch.randn(case.queries, HEADS, DIM, dtype=case.dtype)
    k, v = (torch.randn(case.keys, KV_HEADS, DIM, dtype=case.dtype) for _ in range(2))
    offsets = torch.tensor([0, case.queries], dtype=torch.int32)
    out = torch.empty_like(q)

    def ours() -> object:
        return kernels.attention(
            q, k, v, cu_seqlens_q=offsets, cu_seqlens_k=offsets,
            max_seqlen_q=case.queries, max_seqlen_k=case.keys, out=out,
        )  # fmt: skip

    qh, kh, vh = (x.transpose(0, 1).contiguous()[None] for x in (q, k, v))
    ke, ve = (x.repeat_interleave(HEADS // KV_HEADS, dim=1) for x in (kh, vh))
    return ours, [
        lambda: sdpa(qh, kh, vh, is_causal=True, enable_gqa=True),
        lambda: sdpa(qh, ke, ve, is_causal=True),
    ]


def decode_calls(case: Case) -> tuple[Callable[[], object], list[Callable[[], object]]]:
    """Ours on a paged cache with shuffled pages, SDPA on contiguous keys."""
    pools = max(1, POOL_BYTES // case.bytes)
    pages = case.batch * case.keys // PAGE
    shape = (pools * pages, KV_HEADS, PAGE, DIM)
    k_cache, v_cache = (torch.randn(shape, dtype=case.dtype).transpose(1, 2) for _ in range(2))
    tables = torch.randperm(pools * pages).int().view(pools, case.batch, -1)
    q = torch.randn(case.batch, HEADS, DIM, dtype=case.dtype)
    offsets = torch.arange(case.batch + 1, dtype=torch.int32)
    used = torch.full((case.batch,), case.keys, dtype=torch.int32)
    out = torch.empty_like(q)
    turn = 0

    def ours() -> object:
        nonlocal turn
        turn += 1
        return kernels.attention(
            q, k_cache, v_cache, cu_seqlens_q=offsets, seqused_k=used,
            block_table=tables[turn % pools], max_seqlen_q=1, max_seqlen_k=case.keys, out=out,
        )  # fmt: skip

    dense = (pools, case.batch, KV_HEADS, case.keys, DIM)
    k, v = k_cache.transpose(1, 2).reshape(dense), v_cache.transpose(1, 2).reshape(dense)
    heads = q.view(case.batch, HEADS, 1, DIM)
    groups = q.view(case.batch, KV_HEADS, HEADS // KV_HEADS, DIM)

    def shared(query: torch.Tensor, **options: bool) -> Callable[[], object]:
        def call() -> object:
            nonlocal turn
            turn += 1
            return sdpa(query, k[turn % pools], v[turn % pools], **options)

        return call

    return ours, [shared(heads, enable_gqa=True), shared(groups)]


def median_times(calls: list[Callable[[], object]], rounds: int) -> list[float]:
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


def measure(case: Case, rounds: int) -> Result:
    """Time one case."""
    calls = prefill_calls if case.queries > 1 else decode_calls
    ours, peers = calls(case)
    mine, *others = median_times([ours, *peers], rounds)
    best = min(others)
    return Result(
        case.name,
        str(case.dtype).removeprefix("torch."),
        mine * 1e3,
        best * 1e3,
        best / mine,
        case.flops / mine / 1e9,
        case.bytes / mine / 1e9,
    )


def main() -> None:
    """Measure every case and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(0)
    results = [measure(case, options.rounds) for case in cases()]
    status = kernels.status()
    if options.json:
        print(json.dumps({"kernels": status, "results": [asdict(r) for r in results]}, indent=2))
        return
    library = status["libraries"][0]
    print(f"{platform.processor() or platform.machine()}, {status['threads']} threads, torch")
    print(f"{status['torch']}, kernels {status['level']} ({library['active']}); median of "
          f"{options.rounds}; heads {HEADS}/{KV_HEADS}, dim {DIM}\n")  # fmt: skip
    print("| case | dtype | ours ms | SDPA ms | SDPA / ours | GFLOP/s | GB/s |")
    print("|---|---|---|---|---|---|---|")
    for r in results:
        print(f"| {r.case} | {r.dtype} | {r.ours_ms:.3f} | {r.sdpa_ms:.3f} | {r.ratio:.2f} "
              f"| {r.gflops:.0f} | {r.gbytes:.1f} |")  # fmt: skip


if __name__ == "__main__":
    main()
