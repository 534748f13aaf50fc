"""How a call is cut up: tile, rows packed into it, and shares of the keys.

Only sizes known on the host enter, so a plan needs no synchronisation and holds under graph capture.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from mainboard.kernels.architecture import architecture
from mainboard.kernels.library import interpreted
from mainboard.kernels.triton.tiles import Tile, tile

__all__ = ["KEYS_ROUNDED", "Plan", "plan"]

KEYS_ROUNDED = 256
"""Plans are made for a longest sequence of a multiple of this, so that few are made."""

# Partial results of split keys, at most; beyond it a tile walks all of its keys.
_PART_BYTES = 256 << 20
# Fewer keys than this are not worth a share of their own.
_SHORTEST_SHARE = 256
_MOST_SPLITS = 128
# A choice of splits must fill this much of its last wave, beside the best choice.
_GOOD_ENOUGH = 0.95


@dataclass(frozen=True)
class Plan:
    """One launch of an attention kernel."""

    tile: Tile
    block_m: int
    pack: int
    blocks: int
    even: bool
    splits: int
    shortest: int


_pretended: str | None = None


@contextmanager
def pretending(name: str) -> Iterator[None]:
    """Plan for an architecture that is not here."""
    global _pretended
    plan.cache_clear()
    _pretended = name
    try:
        yield
    finally:
        _pretended = None
        plan.cache_clear()


@functools.cache
def _units(index: int) -> int:
    return int(torch.cuda.get_device_properties(index).multi_processor_count)


def units(index: int) -> int:
    """Compute units of a device."""
    if _pretended is not None:
        return 100
    return 4 if interpreted() else _units(index)


def target(index: int) -> str:
    """The architecture by which tiles are chosen."""
    if _pretended is not None:
        return _pretended
    return "interpreted" if interpreted() else architecture(index)


def splits_for(programs: int, most_keys: int, block_n: int, slots: int, row_bytes: int) -> int:
    """Into how many shares the keys are cut: the fewest that fill the device nearly best.

    Args:
        programs: how many there are without splitting.
        most_keys: of the longest sequence.
        block_n: keys of one step.
        slots: programs that the device runs at a time.
        row_bytes: partial results of one share, in bytes.
    """
    shares = min(most_keys // max(_SHORTEST_SHARE, block_n), _MOST_SPLITS)
    shares = min(shares, _PART_BYTES // max(row_bytes, 1))
    if shares <= 1 or programs >= 4 * slots:
        return 1

    def filled(splits: int) -> float:
        waves = programs * splits / slots
        return waves / -(-programs * splits // slots)

    best = max(filled(splits) for splits in range(1, shares + 1))
    return next(s for s in range(1, shares + 1) if filled(s) >= _GOOD_ENOUGH * best)


@functools.lru_cache(maxsize=4096)
def plan(
    kind: str,
    index: int,
    pad: int,
    itemsize: int,
    group: int,
    kv_heads: int,
    batch: int,
    tokens: int,
    queries: int,
    most_keys: int,
    value_dim: int,
    deterministic: bool,
    traced: bool = False,
) -> Plan:
    """The plan for a call of these sizes.

    Args:
        kind: `attention` or `latent`.
        index: of the device.
        pad: the larger of key and value dimension, padded.
        itemsize: bytes of a query's element.
        group: query heads that share a key head.
        kv_heads: key heads.
        batch: sequences.
        tokens: queries of the whole batch.
        queries: of the longest sequence.
        most_keys: of the longest sequence.
        value_dim: of a result.
        deterministic: whether the rest of the batch must not change a sequence's bits.
        traced: whether the kernels become part of a compiled graph.
    """
    rows = queries * group
    if kind != "latent":
        kind = "decode" if rows <= 64 or deterministic else "prefill"
    chosen = tile(target(index), kind, pad, itemsize, traced)
    block_m = chosen.block_m
    if kind != "prefill" and not deterministic:
        block_m = min(block_m, max(16, 1 << (rows - 1).bit_length()))
    pack = min(group, block_m)
    per_tile = block_m // pack
    longest = batch * -(-queries // per_tile)
    even = longest <= tokens // per_tile + batch
    blocks = longest if even else tokens // per_tile + batch
    splits = 1
    if not deterministic:
        programs = blocks * kv_heads * -(-group // pack)
        row_bytes = tokens * kv_heads * group * value_dim * 4
        slots = units(index) * chosen.per_unit
        splits = splits_for(programs, most_keys, chosen.block_n, slots, row_bytes)
    shortest = max(1, _SHORTEST_SHARE // chosen.block_n)
    return Plan(chosen, block_m, pack, blocks, even, splits, shortest)
