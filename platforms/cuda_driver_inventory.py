"""Print what CUDA's driver library knows about this machine's devices, one line for each.

Run in a process of its own, for which see `bounded.py`: `cuInit` starts the driver, and a process
that has called it cannot fork and use CUDA in the child. No context is made. It asks for every
device in the order of the PCI bus, whatever the environment hides or reorders. A line is a kind and
its fields, separated by tabs::

    driver   ""  CUDA's version as 1000 * major + 10 * minor
    device   id  name  uuid  major  minor  bytes  PCI address  ""
    facts    id  multiprocessors  "shared" or ""  bytes of shared memory  bytes of L2 cache
    link     id  id  ""  "peer" or ""  ""
    error    error  message
    end
"""

from __future__ import annotations

import os
import sys
from ctypes import CDLL, byref, c_char_p, c_int, c_size_t, create_string_buffer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

__all__ = ["main"]

# Numbers of CUdevice_attribute.
_L2_CACHE, _MULTIPROCESSORS, _INTEGRATED = 38, 16, 18
_MAJOR, _MINOR, _SHARED_MEMORY = 75, 76, 97


def main(arguments: Sequence[str]) -> str:
    """The inventory, or the error that the driver gave, as lines."""
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    return "\n".join("\t".join(map(str, fields)) for fields in [*_answer(), ("end",)])


class _DriverError(Exception):
    """The name that the driver gives to a failure, and its words."""


def _answer() -> Iterator[tuple[Any, ...]]:
    try:
        cuda = CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError as error:
        yield "error", "OSError", " ".join(str(error).split())
        return
    try:
        yield "driver", "", _number(cuda, "cuDriverGetVersion")
        _call(cuda, "cuInit", 0)
        count = _number(cuda, "cuDeviceGetCount")
        devices = [_number(cuda, "cuDeviceGet", number) for number in range(count)]
        for number, device in enumerate(devices):
            yield _device(cuda, number, device)
            yield _facts(cuda, number, device)
        for first in range(count):
            for second in range(first + 1, count):
                yield "link", first, second, "", _peers(cuda, devices[first], devices[second]), ""
    except _DriverError as error:
        yield "error", *error.args


def _device(cuda: Any, number: int, device: int) -> tuple[Any, ...]:
    name, uuid, address = (create_string_buffer(size) for size in (256, 16, 64))
    memory = c_size_t(0)
    _call(cuda, "cuDeviceGetName", name, 256, device)
    _call(cuda, "cuDeviceGetUuid", uuid, device)
    _call(cuda, "cuDeviceTotalMem_v2", byref(memory), device)
    _call(cuda, "cuDeviceGetPCIBusId", address, 64, device)
    return (
        "device",
        number,
        " ".join(name.value.decode("utf-8", "replace").split()),
        _dashed(uuid.raw.hex()),
        _attribute(cuda, _MAJOR, device),
        _attribute(cuda, _MINOR, device),
        memory.value,
        address.value.decode("ascii", "replace"),
        "",
    )


def _facts(cuda: Any, number: int, device: int) -> tuple[Any, ...]:
    return (
        "facts",
        number,
        _attribute(cuda, _MULTIPROCESSORS, device),
        "shared" if _attribute(cuda, _INTEGRATED, device) else "",
        _attribute(cuda, _SHARED_MEMORY, device),
        _attribute(cuda, _L2_CACHE, device),
    )


def _peers(cuda: Any, first: int, second: int) -> str:
    ways = ((first, second), (second, first))
    reach = [_number(cuda, "cuDeviceCanAccessPeer", *way) for way in ways]
    return "peer" if all(reach) else ""


def _attribute(cuda: Any, attribute: int, device: int) -> int:
    return _number(cuda, "cuDeviceGetAttribute", attribute, device)


def _number(cuda: Any, name: str, *arguments: int) -> int:
    """What a function that puts a number into its first argument answers."""
    value = c_int(0)
    _call(cuda, name, byref(value), *arguments)
    return value.value


def _call(cuda: Any, name: str, *arguments: Any) -> None:
    try:
        function = getattr(cuda, name)
    except AttributeError:
        raise _DriverError("CUDA_ERROR_NOT_FOUND", f"the driver has no {name}") from None
    error = function(*arguments)
    if error:
        texts = [c_char_p(), c_char_p()]
        for ask, text in zip(("cuGetErrorName", "cuGetErrorString"), texts, strict=True):
            getattr(cuda, ask, lambda *_: 0)(error, byref(text))
        words = [(text.value or b"").decode("utf-8", "replace") for text in texts]
        raise _DriverError(words[0] or f"CUDA_ERROR_{error}", f"{name}: {words[1] or error}")


def _dashed(digits: str) -> str:
    """An id as NVML writes it."""
    places = ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32))
    return "GPU-" + "-".join(digits[start:end] for start, end in places)
