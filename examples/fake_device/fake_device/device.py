"""`torch.fake`: the device's module in torch, with the names that `torch.cuda` has."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import torch

from fake_device import _C, operators

__all__ = [
    "Event",
    "Properties",
    "Stream",
    "current_device",
    "current_stream",
    "device",
    "device_count",
    "empty_cache",
    "get_device_properties",
    "install",
    "is_available",
    "is_initialized",
    "manual_seed",
    "manual_seed_all",
    "max_memory_allocated",
    "mem_get_info",
    "memory_allocated",
    "memory_stats",
    "reset_peak_memory_stats",
    "set_device",
    "set_stream",
    "stream",
    "synchronize",
]

Device = torch.device | int | str | None


class Stream(torch.Stream):
    """A stream of the device; a new one of the current device by default."""

    def __new__(cls, device: Device = None, priority: int = 0, **kwargs: Any) -> Self:
        """Make a stream, or wrap the one that `stream_id` and its companions name."""
        if "stream_id" in kwargs:
            return super().__new__(cls, **kwargs)
        return super().__new__(cls, torch.device("fake", _index(device)), priority=priority)


class Event(torch.Event):
    """A point in a stream's work."""

    def __new__(cls, enable_timing: bool = False, blocking: bool = False) -> torch.Event:
        """Make an event of this device; torch measures no time between those of a subclass."""
        return torch.Event("fake", enable_timing=enable_timing, blocking=blocking)


class Properties(NamedTuple):
    """What is known of a device."""

    name: str
    total_memory: int


_installed = False


def install() -> None:
    """Give torch the device `fake`, its module and the operators, once."""
    global _installed
    if _installed:
        return
    _installed = True
    torch.utils.rename_privateuse1_backend("fake")
    torch._register_device_module("fake", sys.modules[__name__])
    torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)
    operators.install()


def _index(device: Device = None) -> int:
    if isinstance(device, int):
        return device
    index = None if device is None else torch.device(device).index
    return _C.current_device() if index is None else index


def is_available() -> bool:
    """Whether a device is visible."""
    return _C.device_count() > 0


def is_initialized() -> bool:
    """Whether a device was started in this process."""
    return any(_C.started(index) for index in range(_C.device_count()))


def _is_in_bad_fork() -> bool:
    return False


def device_count() -> int:
    """How many devices are visible."""
    return _C.device_count()


def current_device() -> int:
    """The device that new tensors of this thread are on."""
    return _C.current_device()


def set_device(device: Device) -> None:
    """Put new tensors of this thread on `device`."""
    _C.set_device(_index(device))


def current_stream(device: Device = None) -> Stream:
    """The stream that new work of this thread goes to."""
    stream_id, device_index, device_type = _C.current_stream(_index(device))
    return Stream(stream_id=stream_id, device_index=device_index, device_type=device_type)


def set_stream(stream: torch.Stream) -> None:
    """Send new work of this thread on the stream's device to it."""
    _C.set_stream(stream.stream_id, stream.device_index)


@contextmanager
def device(device: Device) -> Iterator[None]:
    """A scope whose new tensors are on `device`."""
    before = _C.current_device()
    set_device(device)
    try:
        yield
    finally:
        _C.set_device(before)


@contextmanager
def stream(stream: torch.Stream | None) -> Iterator[None]:
    """A scope whose work goes to `stream`."""
    if stream is None:
        yield
        return
    device, before = _C.current_device(), current_stream(stream.device_index)
    _C.set_device(stream.device_index)
    set_stream(stream)
    try:
        yield
    finally:
        set_stream(before)
        _C.set_device(device)


def synchronize(device: Device = None) -> None:
    """Wait until all work of a device is done."""
    _C.synchronize(_index(device))


def empty_cache() -> None:
    """Wait until what was freed can be given out again."""
    for index in range(_C.device_count()):
        if _C.started(index):
            _C.empty_cache(index)


def mem_get_info(device: Device = None) -> tuple[int, int]:
    """Free and total bytes."""
    return _C.mem_get_info(_index(device))


def memory_stats(device: Device = None) -> dict[str, int]:
    """What the allocator counts."""
    return _C.memory_stats(_index(device))


def memory_allocated(device: Device = None) -> int:
    """Bytes that tensors occupy."""
    return memory_stats(device)["allocated_bytes.all.current"]


def max_memory_allocated(device: Device = None) -> int:
    """The most bytes that tensors have occupied since the last reset."""
    return memory_stats(device)["allocated_bytes.all.peak"]


def reset_peak_memory_stats(device: Device = None) -> None:
    """Start counting the most bytes from now."""
    _C.reset_peak(_index(device))


def get_device_properties(device: Device = None) -> Properties:
    """Name and size of a device."""
    index = _index(device)
    return Properties(f"Fake Device {index}", mem_get_info(index)[1])


def manual_seed(seed: int) -> None:
    """Seed the random generator of the current device."""
    _C.manual_seed(seed, _C.current_device())


def manual_seed_all(seed: int) -> None:
    """Seed the random generator of every device."""
    for index in range(_C.device_count()):
        _C.manual_seed(seed, index)
