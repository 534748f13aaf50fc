"""Time the operators that only move memory on one device, each beside a plain copy.

`python benchmarks/cuda_cache.py [--library FILE] [--json FILE]`: each time is one call inside a CUDA
graph that rotates over more memory than the L2 holds, and so is the copy of as many bytes beside it.
Copies to the host and back are timed as they are.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from typing import Any

import torch
from cuda_decode import BF16, E4M3, graph_microseconds

from mainboard.kernels import cuda_support  # noqa: F401  declares torch.ops.mainboard_cuda

ROTATED_BYTES = 300 << 20
HEADS, DIM, PAGE = 8, 128, 16

Calls = list[Callable[[], Any]]
Line = tuple[str, int, Calls, Calls]  # what, bytes moved by each call, the calls, plain copies


def plain_copies(moved: int) -> Calls:
    """Copies that read and write `moved` bytes together."""
    half = moved // 2
    count = max(2, min(64, ROTATED_BYTES // max(moved, 1)))
    pairs = [torch.empty(2, half, dtype=torch.uint8, device="cuda") for _ in range(count)]
    return [lambda p=p: p[1].copy_(p[0]) for p in pairs]


def rotated(moved: int, make: Callable[[], Callable[[], Any]]) -> Calls:
    """Calls that share no memory, and together move more than the L2 holds."""
    return [make() for _ in range(max(2, min(64, ROTATED_BYTES // max(moved, 1))))]


def writes(tokens: int, cache: torch.dtype) -> Line:
    """reshape_and_cache of new tokens to drawn slots."""
    operator = torch.ops.mainboard_cuda.reshape_and_cache.default
    moved = 2 * tokens * HEADS * DIM * (BF16.itemsize + cache.itemsize)
    scale = None if cache is BF16 else torch.tensor([0.5], device="cuda")

    def make() -> Callable[[], Any]:
        key, value = torch.randn(2, tokens, HEADS, DIM, device="cuda").to(BF16).unbind(0)
        pages = -(-tokens // PAGE)
        pair = [torch.empty(pages, PAGE, HEADS, DIM, dtype=cache, device="cuda") for _ in "kv"]
        slots = torch.randperm(pages, device="cuda")[:, None] * PAGE
        slots = (slots + torch.arange(PAGE, device="cuda")).flatten()[:tokens].contiguous()
        return lambda: operator(key, value, *pair, slots, scale, scale)

    name = f"reshape_and_cache, {tokens} tokens to {str(cache).removeprefix('torch.')}"
    return name, moved, rotated(moved, make), plain_copies(moved)


def merges(tokens: int) -> Line:
    """merge_attention_states over 32 heads."""
    operator = torch.ops.mainboard_cuda.merge_attention_states.default
    moved = 32 * tokens * 3 * (DIM * BF16.itemsize + 4)

    def make() -> Callable[[], Any]:
        a, b = torch.randn(2, tokens, 32, DIM, device="cuda").to(BF16).unbind(0)
        a_lse, b_lse = torch.randn(2, 32, tokens, device="cuda").unbind(0)
        out, lse = torch.empty_like(a), torch.empty_like(a_lse)
        return lambda: operator(out, lse, a, a_lse, b, b_lse)

    return (
        f"merge_attention_states, {tokens} tokens",
        moved,
        rotated(moved, make),
        plain_copies(moved),
    )


def copies(pairs: int, layers: int) -> Line:
    """copy_blocks in the key and value caches of some layers."""
    operator = torch.ops.mainboard_cuda.copy_blocks.default
    page = PAGE * HEADS * DIM
    moved = 2 * pairs * 2 * layers * page * BF16.itemsize

    def make() -> Callable[[], Any]:
        caches = [torch.randn(2 * pairs, page, device="cuda").to(BF16) for _ in range(2 * layers)]
        mapping = torch.randperm(2 * pairs, device="cuda").view(pairs, 2)
        return lambda: operator(caches, mapping)

    name = f"copy_blocks, {pairs} pages of {layers} layers"
    return name, moved, rotated(moved, make), plain_copies(moved)


def lines() -> Iterator[Line]:
    """What is timed in a graph."""
    for cache in (BF16, E4M3):
        for tokens in (64, 2048, 32768):
            yield writes(tokens, cache)
    yield merges(64)
    yield merges(16384)
    yield copies(4, 32)
    yield copies(1024, 1)


def swap(pages: int) -> list[dict[str, Any]]:
    """swap_blocks to pinned host memory and back, scattered and in one run, beside a plain copy."""
    there = torch.randn(2 * pages, PAGE * HEADS * DIM, device="cuda").to(BF16)
    host = torch.empty(pages, PAGE * HEADS * DIM, dtype=BF16, pin_memory=True)
    moved = host.numel() * host.element_size()
    operator = torch.ops.mainboard_cuda.swap_blocks.default
    order = torch.randperm(2 * pages)[:pages]
    scattered = torch.stack([order, torch.arange(pages)], 1)
    run = torch.stack([torch.arange(pages)] * 2, 1)
    results = []
    for name, call in (
        ("out, scattered", lambda: operator(there, host, scattered)),
        ("out, one run", lambda: operator(there, host, run)),
        ("out, plain copy", lambda: host.copy_(there[:pages], non_blocking=True)),
        ("back, scattered", lambda: operator(host, there, scattered.flip(1).contiguous())),
        ("back, plain copy", lambda: there[:pages].copy_(host, non_blocking=True)),
    ):
        times = []
        for _ in range(5):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) * 1e3)
        us = sorted(times)[2]
        results.append({"what": f"swap_blocks {pages} pages {name}", "us": us, "bytes": moved})
        print(f"{results[-1]['what']:55} {us:9.1f} us {moved / us / 1e3:6.1f} GB/s", flush=True)
    return results


def main() -> None:
    """Time every line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", help="a library to load instead of the installed one")
    parser.add_argument("--json", help="where to write the times")
    options = parser.parse_args()
    if options.library:
        torch.ops.load_library(options.library)
    else:
        from mainboard.kernels import library

        print(library.loaded("cuda").reason)
    results: list[dict[str, Any]] = []
    for what, moved, calls, plain in lines():
        us, plain_us = (
            graph_microseconds(each, max(1, 48 // len(each))) for each in (calls, plain)
        )
        results.append({"what": what, "us": us, "bytes": moved, "copy_us": plain_us})
        print(
            f"{what:55} {us:9.1f} us {moved / us / 1e3:6.0f} GB/s   copy {plain_us:9.1f} us "
            f"{moved / plain_us / 1e3:6.0f} GB/s   {plain_us / us:5.2f} of the copy's speed",
            flush=True,
        )
    results += swap(512)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
