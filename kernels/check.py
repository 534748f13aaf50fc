"""What `MAINBOARD_CHECK=1` looks at: values on the device, at the price of a synchronisation."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

__all__ = ["blocks", "lengths", "slots"]


def _refuse(entry: str, value: int, expected: str) -> ValueError:
    return ValueError(f"{entry} is {value}; expected {expected}")


def _offsets(name: str, x: Tensor, most: int) -> list[int]:
    values: list[int] = x.tolist()
    previous = 0
    for i, value in enumerate(values):
        if not previous <= value <= most:
            raise _refuse(f"{name}[{i}]", value, f"ascending offsets from 0 to {most}")
        previous = value
    return values


def lengths(
    q: Tensor,
    k: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor | None,
    seqused_k: Tensor | None,
    block_table: Tensor | None,
) -> None:
    """Every length is within its tensor and every used page within the cache.

    Raises:
        ValueError: naming the entry, its value and what was expected.
    """
    _offsets("cu_seqlens_q", cu_seqlens_q, q.shape[0])
    batch = cu_seqlens_q.shape[0] - 1
    room = [0] * batch
    used = [0] * batch
    if block_table is not None:
        room = [block_table.shape[1] * k.shape[1]] * batch
    if cu_seqlens_k is not None:
        most = k.shape[0] if block_table is None else room[0] * batch if batch else 0
        offsets = _offsets("cu_seqlens_k", cu_seqlens_k, most)
        used = [end - begin for begin, end in pairwise(offsets)]
        if block_table is None:
            room = [k.shape[0] - begin for begin in offsets[:-1]]
    if seqused_k is not None:
        used = seqused_k.tolist()
    for i, (length, most) in enumerate(zip(used, room, strict=True)):
        if not 0 <= length <= most:
            raise _refuse(f"seqused_k[{i}]", length, f"0 to {most}")
    if block_table is not None:
        _pages(block_table.tolist(), used, k.shape[1], k.shape[0])


def _pages(table: list[list[int]], used: list[int], page_size: int, pages: int) -> None:
    for i, length in enumerate(used):
        for j in range(-(-length // page_size)):
            if not 0 <= table[i][j] < pages:
                raise _refuse(f"block_table[{i}][{j}]", table[i][j], f"0 to {pages - 1}")


def slots(cache: Tensor, slot_mapping: Tensor) -> None:
    """Every slot is -1 or within the cache.

    Raises:
        ValueError: naming the entry, its value and what was expected.
    """
    room = cache.shape[0] * cache.shape[1]
    for i, slot in enumerate(slot_mapping.tolist()):
        if not -1 <= slot < room:
            raise _refuse(f"slot_mapping[{i}]", slot, f"-1 to skip, or 0 to {room - 1}")


def blocks(caches: Sequence[Tensor], block_mapping: Tensor) -> None:
    """Every page is -1 or within all caches.

    Raises:
        ValueError: naming the entry, its value and what was expected.
    """
    most = min(cache.shape[0] for cache in caches) - 1
    for i, pair in enumerate(block_mapping.tolist()):
        for column, page in enumerate(pair):
            if not -1 <= page <= most:
                raise _refuse(f"block_mapping[{i}, {column}]", page, f"-1 to skip, or 0 to {most}")
