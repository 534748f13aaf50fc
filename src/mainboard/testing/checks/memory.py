"""Checks of device memory: what is counted, what is limited, and what comes back."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

from mainboard.testing.check import NotOffered, check
from mainboard.testing.subject import Subject

__all__: list[str] = []


def _bytes(subject: Subject) -> int:
    return subject.requirements.memory_mib << 20


def _allocate(subject: Subject, size: int) -> Any:
    """A tensor of so many bytes, every one of them written."""
    import torch

    return torch.ones(size, dtype=torch.uint8, device=subject.device)


def _idle(subject: Subject) -> None:
    gc.collect()
    subject.ask("synchronize")


@check("memory.total", "the device's size is the same wherever it is asked for", feature="memory")
def total(subject: Subject) -> Iterator[str]:
    """Within a tenth: drivers keep some for themselves."""
    one, other = subject.ask("mem_get_info")[1], subject.ask("get_device_total_memory")
    if abs(one - other) > 0.1 * max(one, other):
        yield f"mem_get_info() says {one} bytes in all, get_device_total_memory() {other}"


@check("memory.counted", "memory_allocated() follows what tensors occupy", feature="memory")
def counted(subject: Subject) -> Iterator[str]:
    """Up with a tensor, down without it."""
    size = _bytes(subject)
    _idle(subject)
    before = subject.ask("memory_allocated")
    tensor = _allocate(subject, size)
    _idle(subject)
    during = subject.ask("memory_allocated")
    del tensor
    _idle(subject)
    after = subject.ask("memory_allocated")
    if during - before < 0.9 * size:
        yield f"a tensor of {size} bytes changes memory_allocated() by {during - before}"
    if during - after < 0.9 * size:
        yield f"without it memory_allocated() falls by {during - after} of {size} bytes"


@check(
    "memory.free", "a tensor takes its size from the free memory, and returns it", feature="memory"
)
def free(subject: Subject) -> Iterator[str]:
    """empty_cache() gives back what the allocator keeps."""
    subject.elsewhere("the host's free memory depends on other programs")
    size = _bytes(subject)
    _idle(subject)
    subject.ask("empty_cache")
    before = subject.ask("mem_get_info")[0]
    tensor = _allocate(subject, size)
    _idle(subject)
    during = subject.ask("mem_get_info")[0]
    del tensor
    _idle(subject)
    subject.ask("empty_cache")
    after = subject.ask("mem_get_info")[0]
    if before - during < 0.9 * size:
        yield f"a tensor of {size} bytes takes {before - during} from the free memory"
    if after - during < 0.9 * size:
        yield f"without it, and after empty_cache(), {after - during} bytes of {size} come back"


@check("memory.peak", "max_memory_allocated() keeps the most until it is reset", feature="memory")
def peak(subject: Subject) -> Iterator[str]:
    """reset_peak_memory_stats() starts again from what is allocated now."""
    size = _bytes(subject)
    _idle(subject)
    subject.ask("reset_peak_memory_stats")
    start = subject.ask("max_memory_allocated")
    tensor = _allocate(subject, size)
    _idle(subject)
    del tensor
    _idle(subject)
    most = subject.ask("max_memory_allocated")
    subject.ask("reset_peak_memory_stats")
    again = subject.ask("max_memory_allocated")
    if most - start < 0.9 * size:
        yield f"a tensor of {size} bytes raises the most by {most - start}"
    if most - again < 0.9 * size:
        yield f"after a reset the most falls by {most - again} of {size} bytes"


@check("memory.limit", "more memory than there is gives an error, after which the device works")
def limit(subject: Subject) -> Iterator[str]:
    """torch.OutOfMemoryError, which programs catch to try with less."""
    import torch

    from mainboard.testing.child import compute

    subject.elsewhere("the host's system promises more memory than it has")
    size = subject.ask("get_device_total_memory") + (1 << 20)
    try:
        _allocate(subject, size)
    except torch.OutOfMemoryError:
        pass
    except RuntimeError as error:
        yield f"it is a {type(error).__name__}, which programs do not catch: torch.OutOfMemoryError"
    else:
        yield f"a tensor of {size} bytes can be made on a device that has fewer"
    if not compute(subject.platform):
        yield "after the error a computation gives a wrong result"


@check("memory.reused", "memory that is freed does not change what is in use")
def reused(subject: Subject) -> Iterator[str]:
    """Many tensors come and go while the first stays as it is."""
    import torch

    kept = torch.arange(4096, dtype=torch.int32).to(subject.device)
    for round_ in range(64):
        size = 1 + (round_ * 977) % 8192
        torch.full((size,), round_, dtype=torch.int32, device=subject.device)
    if not torch.equal(kept.cpu(), torch.arange(4096, dtype=torch.int32)):
        yield "a tensor that is in use was overwritten by later ones"


@check("memory.pinned", "page-locked memory is what the platform says of it", feature="pinned")
def pinned(subject: Subject) -> Iterator[str]:
    """Copies from it that do not wait are right after synchronize()."""
    import torch

    if not subject.ask("is_pin_memory_available"):
        raise NotOffered("is_pin_memory_available() is false")
    host = torch.arange(1 << 16).pin_memory()
    if not host.is_pinned():
        yield "is_pin_memory_available() is true, but pin_memory() pins nothing"
    there = host.to(subject.device, non_blocking=True)
    subject.ask("synchronize")
    if not torch.equal(there.cpu(), host):
        yield "a copy that does not wait arrives changed"
