"""Print what NVML knows about this machine's devices as one line of JSON.

Run as a script in a process of its own, whose only argument is the folder of `pynvml`; see
`bounded.py` for why. It imports nothing of Mainboard.
"""

import sys
from collections.abc import Sequence
from typing import Any

__all__ = ["main"]


def main(arguments: Sequence[str]) -> str:
    """The inventory, or the error that NVML gave, as JSON."""
    import json

    sys.path.append(arguments[0])
    return json.dumps(_inventory())


def _inventory() -> dict[str, Any]:
    import importlib

    try:
        pynvml: Any = importlib.import_module("pynvml")
    except ImportError as error:
        return {"error": type(error).__name__, "message": str(error), "cuda": _has_libcuda()}
    try:
        pynvml.nvmlInit()
        devices = [_device(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
        return {"driver": _text(pynvml.nvmlSystemGetDriverVersion()), "devices": devices}
    except pynvml.NVMLError as error:
        # Not shut down: the process ends here, and a driver in trouble may hang in that too.
        name = type(error).__name__
        return {"error": name, "message": str(error), "cuda": _has_libcuda()}


def _device(nvml: Any, index: int) -> dict[str, Any]:
    """One device; a broken one does not hide the others."""
    try:
        return _facts(nvml, index, nvml.nvmlDeviceGetHandleByIndex(index))
    except nvml.NVMLError as error:
        return {"id": index, "error": type(error).__name__, "message": str(error)}


def _facts(nvml: Any, index: int, handle: Any) -> dict[str, Any]:
    return {
        "id": index,
        "name": _text(nvml.nvmlDeviceGetName(handle)),
        "uuid": _text(nvml.nvmlDeviceGetUUID(handle)),
        "capability": list(nvml.nvmlDeviceGetCudaComputeCapability(handle)),
        "memory": _memory(nvml, handle),
        "pci": _text(nvml.nvmlDeviceGetPciInfo(handle).busId),
        "mig": _mig_uuids(nvml, handle),
    }


def _mig_uuids(nvml: Any, handle: Any) -> list[str]:
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
        uuids.append(_text(nvml.nvmlDeviceGetUUID(part)))
    return uuids


def _memory(nvml: Any, handle: Any) -> int | None:
    """Total bytes; None for a device without memory of its own."""
    try:
        return int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    except nvml.NVMLError_NotSupported:
        return None


def _text(value: str | bytes) -> str:
    """Old versions of pynvml answer in bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _has_libcuda() -> bool:
    """Whether CUDA's driver library is there at all; loading it starts nothing."""
    import ctypes

    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


if __name__ == "__main__":
    print(main(sys.argv[1:]))
