"""Print what NVML knows about this machine's devices, one line for each.

Run as a script in a process of its own, with the folder of `pynvml` as argument if there is one;
see `bounded.py` for why. It imports nothing of Mainboard, and as little as it can of anything: the
program that asks is waiting. A line is a kind and its fields, separated by tabs::

    driver   version
    device   id  name  uuid  major  minor  bytes or "shared"  PCI address  MIG ids with commas
    fault    id  error  message             (a device that does not work)
    error    error  message  "cuda" or ""   (nothing works; whether libcuda can be loaded)
    end
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # typing's own takes a tenth of the time that all of this takes
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

__all__ = ["main"]


def main(arguments: Sequence[str]) -> str:
    """The inventory, or the error that NVML gave, as lines."""
    sys.path.extend(arguments)
    return "\n".join("\t".join(map(_text, fields)) for fields in [*_inventory(), ("end",)])


def _inventory() -> Iterator[tuple[Any, ...]]:
    try:
        nvml: Any = __import__("pynvml")
    except ImportError as error:
        yield "error", type(error).__name__, error, _libcuda()
        return
    try:
        # Never shut down: the process ends here, and a driver in trouble may hang in that too.
        nvml.nvmlInit()
        yield "driver", nvml.nvmlSystemGetDriverVersion()
        for number in range(nvml.nvmlDeviceGetCount()):
            yield _device(nvml, number)
    except nvml.NVMLError as error:
        yield "error", type(error).__name__, error, _libcuda()


def _device(nvml: Any, number: int) -> tuple[Any, ...]:
    """One device; a broken one does not hide the others."""
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(number)
        return (
            "device",
            number,
            nvml.nvmlDeviceGetName(handle),
            nvml.nvmlDeviceGetUUID(handle),
            *nvml.nvmlDeviceGetCudaComputeCapability(handle),
            _memory(nvml, handle),
            nvml.nvmlDeviceGetPciInfo(handle).busId,
            ",".join(map(_text, _mig_uuids(nvml, handle))),
        )
    except nvml.NVMLError as error:
        return "fault", number, type(error).__name__, error


def _mig_uuids(nvml: Any, handle: Any) -> list[str | bytes]:
    """The ids of the slices that a device is divided into."""
    try:
        if not nvml.nvmlDeviceGetMigMode(handle)[0]:
            return []
        most = nvml.nvmlDeviceGetMaxMigDeviceCount(handle)
    except nvml.NVMLError_NotSupported:
        return []
    uuids = []
    for number in range(most):
        try:
            part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
        except nvml.NVMLError_NotFound:  # numbers may have gaps
            continue
        uuids.append(nvml.nvmlDeviceGetUUID(part))
    return uuids


def _memory(nvml: Any, handle: Any) -> int | str:
    """Total bytes, or that the device has no memory of its own."""
    try:
        return int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    except nvml.NVMLError_NotSupported:
        return "shared"


def _text(value: object) -> str:
    """One field; old versions of pynvml answer in bytes, and a message may have lines."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return " ".join(text.split())


def _libcuda() -> str:
    """Whether CUDA's driver library is there at all; loading it starts nothing."""
    import ctypes

    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return ""
    return "cuda"


def _postpone_ctypes_util() -> None:
    """Let `ctypes.util` be imported when it is used.

    pynvml imports it, never uses it, and would wait for it longer than for NVML.
    """
    name = "ctypes.util"

    def find_library(library: str) -> str | None:
        del sys.modules[name]
        from ctypes import util

        return util.find_library(library)

    stand_in: Any = type(sys)(name)
    stand_in.find_library = find_library
    sys.modules[name] = stand_in


if __name__ == "__main__":
    import os

    _postpone_ctypes_util()
    print(main(sys.argv[1:]), flush=True)
    # The interpreter's and the libraries' own endings are nobody's concern, and take time.
    os._exit(0)
