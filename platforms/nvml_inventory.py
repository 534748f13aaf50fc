"""Print what NVML knows about this machine's devices, one line for each.

Run as a script in a process of its own, with a question as first argument and the folder of
`pynvml` as second if there is one; see `bounded.py` for why. It imports nothing of Mainboard, and
as little as it can of anything: the program that asks is waiting. A line is a kind and its fields,
separated by tabs. The questions, and the lines of their answers::

    devices
        driver   version  CUDA's version as 1000 * major + 10 * minor
        device   id  name  uuid  major  minor  bytes or "shared"  PCI address  "mig" or ""
        slice    id of the device  name  uuid  bytes  multiprocessors
    links
        link     id  id  "nvlink" or ""  "peer" or ""  level of the nearest common ancestor
    memory
        memory   uuid  bytes free  bytes in all        (slices too)
    all of them
        fault    id  error  message             (a device that does not work)
        error    error  message  "cuda" or ""   (nothing works; whether libcuda can be loaded)
        end
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # typing's own takes a tenth of the time that all of this takes
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

__all__ = ["main"]

_NVLINK, _READ, _OK = 2, 0, 0  # of nvmlGpuP2PCapsIndex_t and nvmlGpuP2PStatus_t


def main(arguments: Sequence[str]) -> str:
    """The answer to a question, or the error that NVML gave, as lines."""
    question, *folders = arguments
    sys.path.extend(folders)
    return "\n".join("\t".join(map(_text, fields)) for fields in [*_answer(question), ("end",)])


def _answer(question: str) -> Iterator[tuple[Any, ...]]:
    try:
        nvml: Any = __import__("pynvml")
    except ImportError as error:
        yield "error", type(error).__name__, error, _libcuda()
        return
    try:
        # Never shut down: the process ends here, and a driver in trouble may hang in that too.
        nvml.nvmlInit()
        yield from _QUESTIONS[question](nvml, range(nvml.nvmlDeviceGetCount()))
    except nvml.NVMLError as error:
        yield "error", type(error).__name__, error, _libcuda()


def _devices(nvml: Any, numbers: Sequence[int]) -> Iterator[tuple[Any, ...]]:
    version = _unless_unsupported(nvml, nvml.nvmlSystemGetCudaDriverVersion)
    yield "driver", nvml.nvmlSystemGetDriverVersion(), version or 0
    for number in numbers:
        try:
            yield from _device(nvml, number)
        except nvml.NVMLError as error:  # a broken one does not hide the others
            yield "fault", number, type(error).__name__, error


def _device(nvml: Any, number: int) -> list[tuple[Any, ...]]:
    """One device and its slices: all of it, or the error."""
    handle = nvml.nvmlDeviceGetHandleByIndex(number)
    mig = _is_divided(nvml, handle)
    memory = _unless_unsupported(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
    device = (
        "device",
        number,
        nvml.nvmlDeviceGetName(handle),
        nvml.nvmlDeviceGetUUID(handle),
        *nvml.nvmlDeviceGetCudaComputeCapability(handle),
        memory.total if memory else "shared",
        nvml.nvmlDeviceGetPciInfo(handle).busId,
        "mig" if mig else "",
    )
    return [device, *(_slice(nvml, number, part) for part in _slices(nvml, handle))]


def _slice(nvml: Any, number: int, part: Any) -> tuple[Any, ...]:
    return (
        "slice",
        number,
        nvml.nvmlDeviceGetName(part),
        nvml.nvmlDeviceGetUUID(part),
        nvml.nvmlDeviceGetMemoryInfo(part).total,
        nvml.nvmlDeviceGetAttributes(part).multiprocessorCount,
    )


def _is_divided(nvml: Any, handle: Any) -> bool:
    mode = _unless_unsupported(nvml, nvml.nvmlDeviceGetMigMode, handle)
    return bool(mode and mode[0])


def _slices(nvml: Any, handle: Any) -> Iterator[Any]:
    """The handles of the slices that a device is divided into."""
    if not _is_divided(nvml, handle):
        return
    for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            yield nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
        except nvml.NVMLError_NotFound:  # numbers may have gaps
            continue


def _links(nvml: Any, numbers: Sequence[int]) -> Iterator[tuple[Any, ...]]:
    for first in numbers:
        for second in range(first + 1, len(numbers)):
            try:
                pair = [nvml.nvmlDeviceGetHandleByIndex(n) for n in (first, second)]
                yield (
                    "link",
                    first,
                    second,
                    "nvlink" if _peers(nvml, pair, _NVLINK) else "",
                    "peer" if _peers(nvml, pair, _READ) else "",
                    nvml.nvmlDeviceGetTopologyCommonAncestor(*pair),
                )
            except nvml.NVMLError as error:
                yield "fault", f"{first} to {second}", type(error).__name__, error


def _peers(nvml: Any, pair: Sequence[Any], index: int) -> bool:
    """Whether each of two devices says that it reaches the other's memory this way."""
    ways = (pair, pair[::-1])
    states = [_unless_unsupported(nvml, nvml.nvmlDeviceGetP2PStatus, *way, index) for way in ways]
    return states == [_OK, _OK]


def _memory(nvml: Any, numbers: Sequence[int]) -> Iterator[tuple[Any, ...]]:
    for number in numbers:
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(number)
            for part in (handle, *_slices(nvml, handle)):
                memory = _unless_unsupported(nvml, nvml.nvmlDeviceGetMemoryInfo, part)
                if memory:
                    yield "memory", nvml.nvmlDeviceGetUUID(part), memory.free, memory.total
        except nvml.NVMLError as error:
            yield "fault", number, type(error).__name__, error


_QUESTIONS: dict[str, Callable[[Any, Sequence[int]], Iterator[tuple[Any, ...]]]] = {
    "devices": _devices,
    "links": _links,
    "memory": _memory,
}


def _unless_unsupported(nvml: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function answers, or None where this device or driver has no answer to it."""
    try:
        return function(*arguments)
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound):
        return None


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
