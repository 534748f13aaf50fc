"""What NVIDIA's devices are, asked of their driver in a process of its own."""

from __future__ import annotations

from functools import cache

from mainboard.light_typing import TYPE_CHECKING, NamedTuple
from mainboard.platforms.cuda_probe import DEVICES, GIVE_DEVICES, is_jetson
from mainboard.platforms.machine import Machine
from mainboard.platforms.probing import Decline
from mainboard.platforms.values import DeviceCapability

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from mainboard.platforms.bounded import Outcome

__all__ = [
    "CudaDevice",
    "CudaSlice",
    "Inventory",
    "NvmlUnavailable",
    "answer_lines",
    "read_driver_inventory",
    "read_inventory",
]

_SEE = "see `nvidia-smi` and the kernel's log"

# What NVML's errors mean for a user: reason code, sentence, remedy.
_ERRORS = {
    "NVML_ERROR_DRIVER_NOT_LOADED": (
        "driver_not_loaded",
        "the NVIDIA driver is installed but not loaded",
        "load it (modprobe nvidia) or restart the machine",
    ),
    "NVML_ERROR_LIB_RM_VERSION_MISMATCH": (
        "driver_mismatch",
        "the loaded NVIDIA driver and its library are of different versions",
        "restart the machine, or reload the driver's modules",
    ),
    "NVML_ERROR_NO_PERMISSION": (
        "permission_denied",
        "the NVIDIA driver refuses this user",
        "give the user access to /dev/nvidia*",
    ),
}

# What CUDA's driver answers, and what to do about it.
_DRIVER_ERRORS = {
    "CUDA_ERROR_NO_DEVICE": ("no_devices_reported", f"see `nvidia-smi`; {GIVE_DEVICES}"),
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": (
        "driver_mismatch",
        "restart the machine, or reload the driver's modules",
    ),
    "CUDA_ERROR_SYSTEM_NOT_READY": (
        "fabric_not_ready",
        "start NVIDIA's fabric manager: systemctl start nvidia-fabricmanager",
    ),
    "CUDA_ERROR_DEVICE_UNAVAILABLE": ("driver_error", "another process uses it exclusively"),
    "CUDA_ERROR_OPERATING_SYSTEM": ("permission_denied", "give the user access to /dev/nvidia*"),
}

# The errors of a device that was there when the machine started.
_LOST = frozenset({"NVML_ERROR_GPU_IS_LOST", "NVML_ERROR_RESET_REQUIRED"})


class CudaSlice(NamedTuple):
    """A part of a divided device (MIG) that a process uses as its device."""

    uuid: str
    name: str
    memory: int
    multiprocessors: int


class CudaDevice(NamedTuple):
    """One device by its physical id, as the driver describes it.

    Args:
        id: its place in the order of the PCI bus.
        name: the product's name.
        uuid: the id that no other device has, or that of the slice which this stands for.
        capability: the generation.
        memory: bytes of its own memory; None if it uses the host's.
        pci: its PCI address.
        mig: whether it is divided into slices.
        slices: those there are.
        multiprocessors: how many compute, where that is known without starting the driver.
    """

    id: int
    name: str
    uuid: str
    capability: DeviceCapability
    memory: int | None
    pci: str
    mig: bool = False
    slices: tuple[CudaSlice, ...] = ()
    multiprocessors: int | None = None

    def as_slice(self, uuid: str) -> CudaDevice:
        """What a process sees that uses one slice of this device."""
        (part,) = (part for part in self.slices if part.uuid == uuid)
        return self._replace(
            name=part.name,
            uuid=part.uuid,
            memory=part.memory,
            multiprocessors=part.multiprocessors,
        )

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON types."""
        slices = [part._asdict() for part in self.slices]
        text = self.capability.as_version_str()
        return {**self._asdict(), "capability": text, "slices": slices}


class Inventory(NamedTuple):
    """Every device of the machine, visible or not, and what is wrong with the others.

    Args:
        driver: the driver's version; empty where NVML does not tell.
        cuda: the newest CUDA that the driver runs, such as (13, 0); None where it is not known.
        devices: those that work.
        faults: a sentence on each that does not.
    """

    driver: str
    cuda: tuple[int, int] | None
    devices: tuple[CudaDevice, ...]
    faults: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON types."""
        return {
            "driver": self.driver,
            "cuda": self.cuda and ".".join(map(str, self.cuda)),
            "devices": [device.to_dict() for device in self.devices],
            "faults": list(self.faults),
        }


class NvmlUnavailable(Exception):
    """CUDA's driver is there, and NVML is not; `code`, `reason` and `remedy` say why."""

    def __init__(self, code: str, reason: str, remedy: str | None) -> None:
        super().__init__(reason)
        self.code, self.reason, self.remedy = code, reason, remedy


@cache
def read_inventory(machine: Machine) -> Inventory:
    """Ask NVML for the devices, for a bounded time, once.

    Raises:
        NvmlUnavailable: CUDA can work, but NVML cannot be asked.
        Decline: the driver cannot be used.
    """
    lines = answer_lines(machine.ask(*DEVICES))
    if "error" in lines:
        raise _explain(machine, *_padded(lines["error"][0], 3))
    return _inventory(lines)


@cache
def read_driver_inventory(machine: Machine) -> tuple[Inventory, dict[str, list[list[str]]]]:
    """Ask CUDA's driver library for the devices, for a bounded time, once.

    This starts the driver in a process that then ends, and takes longer than asking NVML. The
    second value is the whole answer by kinds of line, with what NVML does not know.

    Raises:
        Decline: the driver cannot be used.
    """
    lines = answer_lines(machine.ask("cuda_driver_inventory", "devices"))
    if "error" in lines:
        raise _explain_driver(*_padded(lines["error"][0], 2))
    inventory = _inventory(lines)
    shared = {fields[0] for fields in lines.get("facts", ()) if "shared" in fields}
    devices = tuple(
        device._replace(memory=None) if str(device.id) in shared else device
        for device in inventory.devices
    )
    return inventory._replace(devices=devices), lines


def answer_lines(outcome: Outcome) -> dict[str, list[list[str]]]:
    """The lines of an answer by kind; a library may print others between them.

    Raises:
        Decline: there was no answer in time, or none that is whole.
    """
    if outcome.output is None:
        raise Decline(
            "driver_no_answer",
            f"the NVIDIA driver does not answer: {outcome.problem}",
            "see `nvidia-smi` and the kernel's log; MAINBOARD_PROBE_TIMEOUT=<seconds> waits longer",
        )
    lines: dict[str, list[list[str]]] = {}
    for line in outcome.output.splitlines():
        kind, *fields = line.split("\t")
        lines.setdefault(kind, []).append(fields)
    if outcome.problem or "end" not in lines:
        problem = outcome.problem or "its answer has no end"
        reason = f"asking the NVIDIA driver failed: {problem}"
        raise Decline("driver_error", reason, _SEE, outcome.output)
    return lines


def _inventory(lines: dict[str, list[list[str]]]) -> Inventory:
    try:
        driver, version = lines["driver"][0]
        devices = tuple(_devices(lines))
        cuda = (int(version) // 1000, int(version) % 1000 // 10) if int(version) else None
        faults = tuple(
            f"device {number} does not work: {message} ({error})"
            for number, error, message in lines.get("fault", ())
        )
    except (KeyError, ValueError) as error:
        reason = f"the NVIDIA driver answers what cannot be read: {error}"
        raise Decline("driver_error", reason, _SEE, repr(lines)) from error
    if not devices:
        raise _no_devices(lines.get("fault", []), faults)
    return Inventory(driver, cuda, devices, faults)


def _no_devices(faulty: list[list[str]], faults: tuple[str, ...]) -> Decline:
    if not faulty:
        reason = "the NVIDIA driver answers, but reports no device"
        return Decline("no_devices_reported", reason, f"see `nvidia-smi`; {GIVE_DEVICES}")
    if all(fields[1] in _LOST for fields in faulty):
        return Decline(
            "devices_lost",
            "; ".join(faults),
            "the devices fell off the bus or need a reset: restart the machine; `dmesg | grep Xid`"
            " says why",
        )
    return Decline("driver_error", "; ".join(faults), _SEE)


def _devices(lines: dict[str, list[list[str]]]) -> Iterator[CudaDevice]:
    """Every device, with its slices.

    Raises:
        ValueError: a line is not as the script writes it, or a number is out of all reason.
    """
    slices: dict[str, list[CudaSlice]] = {}
    for owner, name, uuid, memory, multiprocessors in lines.get("slice", ()):
        part = CudaSlice(uuid, name, _size(memory), int(multiprocessors))
        slices.setdefault(owner, []).append(part)
    for number, name, uuid, major, minor, memory, pci, mig in lines.get("device", ()):
        generation = DeviceCapability(int(major), int(minor))
        if not name or not uuid or not 1 <= generation.major < 100:
            raise ValueError(
                f"device {number} is {name!r} with id {uuid!r}, generation {generation}"
            )
        own = None if memory == "shared" else _size(memory)
        parts = tuple(slices.get(number, ()))
        yield CudaDevice(int(number), name, uuid, generation, own, pci, bool(mig), parts)


def _size(text: str) -> int:
    size = int(text)
    if not 0 < size < 1 << 50:  # a petabyte
        raise ValueError(f"a memory of {size} bytes")
    return size


def _explain_driver(error: str, message: str) -> Decline:
    """What an error of CUDA's driver library means."""
    if error == "OSError":
        return Decline(
            "driver_library_missing",
            f"CUDA's driver library cannot be loaded ({message})",
            f"install the NVIDIA driver's libraries; {GIVE_DEVICES}",
        )
    code, remedy = _DRIVER_ERRORS.get(error, ("driver_error", _SEE))
    return Decline(code, f"CUDA's driver answers with {error}: {message}", remedy)


def _padded(fields: list[str], count: int) -> list[str]:
    """As many fields as there should be, whatever was written."""
    return [*fields, *[""] * count][:count]


def _explain(machine: Machine, error: str, message: str, libcuda: str) -> Exception:
    """What an error of NVML, or its absence, means here."""
    if error in _ERRORS:
        code, reason, remedy = _ERRORS[error]
        return Decline(code, f"{reason} ({message})", remedy)
    if not libcuda:
        return Decline(
            "driver_library_missing",
            f"CUDA's driver library (libcuda) cannot be loaded, nor can NVML ({message})",
            f"install the NVIDIA driver's libraries; {GIVE_DEVICES}",
        )
    if error == "NVML_ERROR_LIBRARY_NOT_FOUND":
        return NvmlUnavailable(
            "nvml_library_missing",
            "NVML's library is not here, so CUDA is asked instead",
            "in a container, add `utility` to NVIDIA_DRIVER_CAPABILITIES",
        )
    if is_jetson(machine) or machine.in_wsl:
        return NvmlUnavailable(
            "nvml_unsupported",
            f"NVML does not serve it ({message}), so CUDA is asked instead",
            None,
        )
    return Decline(
        "driver_error",
        f"the NVIDIA driver answers with {error}: {message}",
        "see `nvidia-smi` and the kernel's log",
    )
