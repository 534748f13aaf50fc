"""Print what NVML knows about this machine's devices, one line for each.

Run in a process of its own, with a question as argument; see `bounded.py` for why. It imports
nothing of Mainboard, and as little as it can of anything: the program that asks is waiting. NVML is
called as it is, since the Python package for it takes longer to import than NVML to answer. A line
is a kind and its fields, separated by tabs. The questions, and the lines of their answers::

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

import os
import sys
from _thread import allocate_lock, start_new_thread
from ctypes import CDLL, Structure, byref, c_char, c_char_p, c_int, c_uint, c_ulonglong, c_void_p
from ctypes import create_string_buffer as buffer

TYPE_CHECKING = False  # typing's own takes a tenth of the time that all of this takes
if TYPE_CHECKING:
    from _thread import LockType
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

__all__ = ["main"]

_NVLINK, _READ, _OK = 2, 0, 0  # of nvmlGpuP2PCapsIndex_t and nvmlGpuP2PStatus_t
_NOT_SUPPORTED, _NOT_FOUND, _FUNCTION_NOT_FOUND = 3, 6, 13

_ERRORS = {
    1: "UNINITIALIZED",
    2: "INVALID_ARGUMENT",
    _NOT_SUPPORTED: "NOT_SUPPORTED",
    4: "NO_PERMISSION",
    _NOT_FOUND: "NOT_FOUND",
    9: "DRIVER_NOT_LOADED",
    10: "TIMEOUT",
    12: "LIBRARY_NOT_FOUND",
    _FUNCTION_NOT_FOUND: "FUNCTION_NOT_FOUND",
    15: "GPU_IS_LOST",
    16: "RESET_REQUIRED",
    17: "OPERATING_SYSTEM",
    18: "LIB_RM_VERSION_MISMATCH",
    999: "UNKNOWN",
}


class _Memory(Structure):
    """What is called nvmlMemory_t."""

    _fields_ = [(name, c_ulonglong) for name in ("total", "free", "used")]


class _Pci(Structure):
    """What is called nvmlPciInfo_t."""

    _fields_ = [
        ("legacy_address", c_char * 16),
        *((name, c_uint) for name in ("domain", "bus", "device", "kind", "subsystem")),
        ("address", c_char * 32),
    ]


class _Attributes(Structure):
    """What is called nvmlDeviceAttributes_t."""

    _fields_ = [
        ("multiprocessors", c_uint),
        ("others", c_uint * 7),
        ("memory_in_mebibytes", c_ulonglong),
    ]


class NvmlError(Exception):
    """A function of NVML did not do what it was called for."""

    def __init__(self, code: int, words: str) -> None:
        super().__init__(words)
        self.code = code
        self.name = f"NVML_ERROR_{_ERRORS.get(code, code)}"


def main(arguments: Sequence[str]) -> str:
    """The answer to a question, or the error that NVML gave, as lines."""
    lines = [*_answer(arguments[0]), ("end",)]
    return "\n".join("\t".join(map(_text, fields)) for fields in lines)


def _answer(question: str) -> Iterator[tuple[Any, ...]]:
    try:
        nvml = _Nvml()
        yield from _QUESTIONS[question](nvml, range(nvml.number("nvmlDeviceGetCount_v2")))
    except NvmlError as error:
        yield "error", error.name, error, _libcuda()


class _Nvml:
    """The library; each call ends with an error or with what was put into its last argument."""

    def __init__(self) -> None:
        try:
            self._library: Any = CDLL(_library())
        except OSError as error:
            raise NvmlError(12, str(error)) from error
        # Never shut down: the process ends here, and a driver in trouble may hang in that too.
        self.call("nvmlInit_v2")

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function, and raise what it returns."""
        try:
            function = getattr(self._library, name)
        except AttributeError:
            raise NvmlError(_FUNCTION_NOT_FOUND, f"this NVML has no {name}") from None
        code = function(*arguments)
        if code:
            say = self._library.nvmlErrorString
            say.restype = c_char_p
            raise NvmlError(code, (say(code) or b"").decode("utf-8", "replace"))

    def number(self, name: str, *arguments: Any) -> int:
        """A number that a function answers."""
        value = c_uint(0)
        self.call(name, *arguments, byref(value))
        return value.value

    def text(self, name: str, *arguments: Any) -> str:
        """A text that a function answers."""
        value = buffer(128)
        self.call(name, *arguments, value, c_uint(128))
        return value.value.decode("utf-8", "replace")

    def handle(self, name: str, *arguments: Any) -> c_void_p:
        """A device that a function answers."""
        value = c_void_p()
        self.call(name, *arguments, byref(value))
        return value

    def device(self, number: int) -> c_void_p:
        """A device by its number."""
        return self.handle("nvmlDeviceGetHandleByIndex_v2", c_uint(number))

    def memory(self, handle: c_void_p) -> _Memory | None:
        """A device's memory; None if it has none of its own."""
        value = _Memory()
        if _unsupported(self.call, "nvmlDeviceGetMemoryInfo", handle, byref(value)):
            return None
        return value

    def slices(self, handle: c_void_p) -> Iterator[c_void_p]:
        """The slices that a device is divided into; numbers may have gaps."""
        for number in range(self.number("nvmlDeviceGetMaxMigDeviceCount", handle)):
            try:
                yield self.handle("nvmlDeviceGetMigDeviceHandleByIndex", handle, c_uint(number))
            except NvmlError as error:
                if error.code != _NOT_FOUND:
                    raise

    def is_divided(self, handle: c_void_p) -> bool:
        """Whether a device is in the mode in which it has slices."""
        mode, pending = c_uint(0), c_uint(0)
        if _unsupported(self.call, "nvmlDeviceGetMigMode", handle, byref(mode), byref(pending)):
            return False
        return bool(mode.value)


def _library() -> str:
    if sys.platform != "win32":
        return "libnvidia-ml.so.1"
    return os.path.join(os.environ.get("WINDIR", "C:/Windows"), "System32", "nvml.dll")


def _unsupported(function: Callable[..., Any], *arguments: Any) -> bool:
    """Call a function; whether this device or driver has no answer to it."""
    try:
        function(*arguments)
    except NvmlError as error:
        if error.code not in (_NOT_SUPPORTED, _FUNCTION_NOT_FOUND):
            raise
        return True
    return False


def _start(nvml: _Nvml, numbers: Sequence[int]) -> None:
    """Touch all devices at once: each takes some 7 ms, the first time."""

    def touch(number: int, done: LockType) -> None:
        try:
            nvml.device(number)
        except NvmlError:  # again when it is asked
            return
        finally:
            done.release()

    begun = []
    for number in numbers if len(numbers) > 1 else ():
        done = allocate_lock()
        done.acquire()
        try:
            start_new_thread(touch, (number, done))
        except RuntimeError:  # so many threads are not allowed here
            break
        begun.append(done)
    for done in begun:
        done.acquire()


def _devices(nvml: _Nvml, numbers: Sequence[int]) -> Iterator[tuple[Any, ...]]:
    version = c_int(0)
    _unsupported(nvml.call, "nvmlSystemGetCudaDriverVersion", byref(version))
    yield "driver", nvml.text("nvmlSystemGetDriverVersion"), version.value
    _start(nvml, numbers)
    for number in numbers:
        try:
            yield from _device(nvml, number)
        except NvmlError as error:  # a broken one does not hide the others
            yield "fault", number, error.name, error


def _device(nvml: _Nvml, number: int) -> list[tuple[Any, ...]]:
    """One device and its slices: all of it, or the error."""
    handle = nvml.device(number)
    memory, divided, pci = nvml.memory(handle), nvml.is_divided(handle), _Pci()
    major, minor = c_int(0), c_int(0)
    nvml.call("nvmlDeviceGetCudaComputeCapability", handle, byref(major), byref(minor))
    nvml.call("nvmlDeviceGetPciInfo_v3", handle, byref(pci))
    device = (
        "device",
        number,
        nvml.text("nvmlDeviceGetName", handle),
        nvml.text("nvmlDeviceGetUUID", handle),
        major.value,
        minor.value,
        memory.total if memory else "shared",
        pci.address.decode("ascii", "replace"),
        "mig" if divided else "",
    )
    slices = nvml.slices(handle) if divided else ()
    return [device, *(_slice(nvml, number, part) for part in slices)]


def _slice(nvml: _Nvml, number: int, part: c_void_p) -> tuple[Any, ...]:
    attributes, memory = _Attributes(), nvml.memory(part)
    nvml.call("nvmlDeviceGetAttributes_v2", part, byref(attributes))
    return (
        "slice",
        number,
        nvml.text("nvmlDeviceGetName", part),
        nvml.text("nvmlDeviceGetUUID", part),
        memory.total if memory else 0,
        attributes.multiprocessors,
    )


def _links(nvml: _Nvml, numbers: Sequence[int]) -> Iterator[tuple[Any, ...]]:
    for first in numbers:
        for second in range(first + 1, len(numbers)):
            try:
                pair = [nvml.device(first), nvml.device(second)]
                nvlink = "nvlink" if _reach(nvml, pair, _NVLINK) else ""
                peer = "peer" if _reach(nvml, pair, _READ) else ""
                level = nvml.number("nvmlDeviceGetTopologyCommonAncestor", *pair)
                yield "link", first, second, nvlink, peer, level
            except NvmlError as error:
                yield "fault", f"{first} to {second}", error.name, error


def _reach(nvml: _Nvml, pair: Sequence[c_void_p], index: int) -> bool:
    """Whether each of two devices says that it reaches the other's memory this way."""
    for way in (pair, pair[::-1]):
        state = c_uint(0)
        question = ("nvmlDeviceGetP2PStatus", *way, c_uint(index), byref(state))
        if _unsupported(nvml.call, *question) or state.value != _OK:
            return False
    return True


def _memory(nvml: _Nvml, numbers: Sequence[int]) -> Iterator[tuple[Any, ...]]:
    for number in numbers:
        try:
            handle = nvml.device(number)
            slices = nvml.slices(handle) if nvml.is_divided(handle) else ()
            for part in (handle, *slices):
                memory = nvml.memory(part)
                if memory:
                    uuid = nvml.text("nvmlDeviceGetUUID", part)
                    yield "memory", uuid, memory.free, memory.total
        except NvmlError as error:
            yield "fault", number, error.name, error


_QUESTIONS: dict[str, Callable[[_Nvml, Sequence[int]], Iterator[tuple[Any, ...]]]] = {
    "devices": _devices,
    "links": _links,
    "memory": _memory,
}


def _text(value: object) -> str:
    """One field: a message may have lines."""
    return " ".join(str(value).split())


def _libcuda() -> str:
    """Whether CUDA's driver library is there at all; loading it starts nothing."""
    try:
        CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return ""
    return "cuda"
