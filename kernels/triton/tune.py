"""Find the fastest tiles of this device, on request only.

Candidates that cannot fit are left out by arithmetic; the others are compiled by several processes,
into Triton's cache, and then timed one after another in this one.
"""

import itertools
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mainboard.kernels.triton import operators, plan, tiles
from mainboard.kernels.triton.tiles import Tile

__all__ = ["WORK", "Measured", "candidates", "measure", "tune"]

logger = logging.getLogger(__name__)

WORK = tuple(
    (kind, pad)
    for kind, pads in (("prefill", (64, 128, 256)), ("decode", (64, 128, 256)), ("latent", (512,)))
    for pad in pads
)
"""What tiles are chosen for: kind of work, and padded dimension."""

_REGISTERS = 208
_UNIT = 65536  # registers of a multiprocessor, of which a half leaves room for a second program
_RESERVED = 2048  # bytes of shared memory that a kernel takes beside its tiles
# The bulk copy engine came with this generation.
_DESCRIBES = (9, 0)

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Measured:
    """A tile and its median milliseconds over the kind's workloads, infinite where it failed."""

    kind: str
    pad: int
    tile: Tile
    milliseconds: tuple[float, ...]
    failure: str | None = None

    @property
    def total(self) -> float:
        """What tiles are compared by: the product, so that each workload counts alike."""
        product = 1.0
        for value in self.milliseconds:
            product *= value
        return product


def _fits(tile: Tile, kind: str, pad: int, shared: int, most: int = _REGISTERS) -> bool:
    """Whether queries, `num_stages` steps of keys and values, and accumulators have room."""
    copies = 1 if kind == "latent" else 2
    held = 2 * pad * (tile.block_m + copies * tile.num_stages * tile.block_n) + _RESERVED
    threads = 32 * tile.num_warps
    registers = tile.block_m * (pad + 1.5 * tile.block_n) / threads
    return held <= shared and registers <= min(most, _REGISTERS)


def candidates(kind: str, pad: int, index: int = 0) -> list[Tile]:
    """The tiles worth trying on a device: the table's first, then whatever else fits."""
    properties = torch.cuda.get_device_properties(index)
    shared: int = getattr(properties, "shared_memory_per_block_optin", 65536)
    amd = torch.version.hip is not None
    stages = (1, 2) if amd else (2, 3, 4)
    describes = not amd and torch.cuda.get_device_capability(index) >= _DESCRIBES
    first = tiles.tile(plan.target(index), kind, pad)
    found = dict.fromkeys([first])
    if kind == "prefill":
        grid = itertools.product((64, 128), (32, 64, 128), (4, 8), stages, (False, True))
    else:
        grid = itertools.product((64,), (16, 32, 64, 128), (2, 4, 8), stages, (False,))
    for rows, keys, warps, depth, described in grid:
        if (described and not describes) or (kind == "prefill" and rows < 16 * warps):
            continue
        if kind == "prefill" and keys * pad < 4096:
            continue
        # Rows found in a page table need two loads, one after the other, for each step ahead.
        scattered = 2 * depth - 1 if kind == "prefill" and depth > 1 else 0
        tile = replace(
            first, block_m=rows, block_n=keys, num_warps=warps, num_stages=depth,
            described=described, scattered_stages=scattered,
        )  # fmt: skip
        if _fits(tile, kind, pad, shared):
            found[tile] = None
            half = _UNIT // (64 * tile.num_warps)
            if kind == "prefill" and not amd and _fits(tile, kind, pad, shared // 2, half):
                found[replace(tile, options={"maxnreg": min(half, 255)})] = None
    if kind != "prefill":
        for tile in list(found):
            for per_unit in (1, 2, 4):
                found[replace(tile, per_unit=per_unit)] = None
    return list(found)


def _lengths(*values: int) -> Tensor:
    return torch.tensor([0, *values], dtype=torch.int64).cumsum(0).int().cuda()


def _prefill(pad: int, batch: int, length: int) -> Callable[[], None]:
    heads, kv_heads = (32, 8) if pad <= 128 else (16, 4)
    shape = batch * length, heads, pad
    q = torch.randn(shape, device="cuda", dtype=torch.float16)
    k, v = torch.randn(2, batch * length, kv_heads, pad, device="cuda", dtype=q.dtype).unbind(0)
    offsets, out = _lengths(*[length] * batch), torch.empty_like(q)
    return lambda: operators.attention(
        q, k, v, out, None, offsets, offsets, None, None, length, length, pad**-0.5, True, -1, -1,
        0.0, None, None, None, None, False,
    )  # fmt: skip


def _paged(queries: int, pad: int, batch: int, length: int) -> Callable[[], None]:
    heads, kv_heads, page = (32, 8, 16) if pad <= 128 else (16, 4, 16)
    count = batch * length // page
    q = torch.randn(batch * queries, heads, pad, device="cuda", dtype=torch.float16)
    cache = torch.randn(2, count, page, kv_heads, pad, device="cuda", dtype=q.dtype)
    table = torch.randperm(count, device="cuda").int().view(batch, -1)
    used = torch.full((batch,), length, dtype=torch.int32, device="cuda")
    offsets, out = _lengths(*[queries] * batch), torch.empty_like(q)
    return lambda: operators.attention(
        q, cache[0], cache[1], out, None, offsets, None, used, table, queries, length, pad**-0.5,
        True, -1, -1, 0.0, None, None, None, None, False,
    )  # fmt: skip


def _latent(pad: int, batch: int, length: int) -> Callable[[], None]:
    page = 64
    count = batch * length // page
    q = torch.randn(batch, 64, pad + 64, device="cuda", dtype=torch.float16)
    cache = torch.randn(count, page, pad + 64, device="cuda", dtype=q.dtype)
    table = torch.randperm(count, device="cuda").int().view(batch, -1)
    used = torch.full((batch,), length, dtype=torch.int32, device="cuda")
    offsets, out = _lengths(*[1] * batch), q.new_empty(batch, 64, pad)
    return lambda: operators.mla_decode(
        q, cache, out, None, offsets, used, table, 1, length, 0.07, True, None, False
    )


_Make = Callable[[int], Callable[[], None]]


def _workloads(kind: str) -> tuple[_Make, ...]:
    """What a kind is timed on: dense and paged prefill, few and many sequences in decode."""
    if kind == "prefill":
        dense = tuple(partial(_prefill, batch=b, length=n) for b, n in ((8, 2048), (1, 8192)))
        return (*dense, partial(_paged, 1024, batch=4, length=8192))
    sizes = (8, 8192), (64, 4096)
    make = _latent if kind == "latent" else partial(_paged, 1)
    return tuple(partial(make, batch=b, length=n) for b, n in sizes)


def measure(kind: str, pad: int, tile: Tile, milliseconds: int = 40) -> Measured:
    """Time one tile over the workloads of a kind; a tile that fails is kept with its reason."""
    from triton.testing import do_bench

    tiles.use(plan.target(torch.cuda.current_device()), kind, pad, tile)
    times = []
    try:
        for make in _workloads(kind):
            call = make(pad)
            call()
            spent: Any = do_bench(call, warmup=10, rep=milliseconds, return_mode="median")
            times.append(float(spent))
    except Exception as error:  # whatever the compiler or the launch refuses
        logger.debug("%s %s %s", kind, pad, tile, exc_info=True)
        return Measured(kind, pad, tile, (float("inf"),), f"{type(error).__name__}: {error}")
    return Measured(kind, pad, tile, tuple(times))


def _compile(kind: str, pad: int, tile: Tile) -> None:
    """Run a tile once, in a process of its own, for what that leaves in Triton's cache."""
    tiles.use(plan.target(torch.cuda.current_device()), kind, pad, tile)
    for make in _workloads(kind):
        make(pad)()
    torch.cuda.synchronize()


def _compile_all(jobs: list[tuple[str, int, Tile]], workers: int, progress: Progress) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        pending: list[Future[None]] = [pool.submit(_compile, *job) for job in jobs]
        for done, future in enumerate(as_completed(pending), 1):
            # What fails here fails again, and is recorded, when it is timed.
            future.exception()
            progress("compile", done, len(jobs))


def tune(
    work: tuple[tuple[str, int], ...] = WORK,
    progress: Progress = lambda stage, done, total: None,
    workers: int | None = None,
) -> Iterator[Measured]:
    """Time every candidate for some work on the current device.

    Args:
        work: kinds and padded dimensions, of `WORK`.
        progress: called with the stage, what is done and how much there is.
        workers: processes that compile; by default as many as half of the processors, at most 8.

    Yields:
        Each candidate with its times. The fastest of a kind and dimension has the least `total`.
    """
    jobs = [(kind, pad, tile) for kind, pad in work for tile in candidates(kind, pad)]
    if workers is None:
        workers = max(1, min(8, (os.cpu_count() or 2) // 2))
    _compile_all(jobs, workers, progress)
    for done, job in enumerate(jobs, 1):
        yield measure(*job)
        progress("time", done, len(jobs))
