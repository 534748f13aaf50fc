"""What NVIDIA's devices are, asked of their driver in a process of its own."""

from __future__ import annotations

import os
from functools import cache

from mainboard.light_typing import TYPE_CHECKING, NamedTuple
from mainboard.platforms.bounded import ask, time_limit
from mainboard.platforms.cuda_probe import GIVE_DEVICES, is_jetson
from mainboard.platforms.machine import Machine
from mainboard.platforms.probing import Decline
from mainboard.platforms.torch_build import find_package
from mainboard.platforms.values import DeviceCapability

if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "CudaDevice",
    "Inventory",
    "NvmlUnavailable",
    "read_inventory",
]


_SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "nvml_inventory.py")

# What NVML's errors mean for a user: reason code, sentence, remedy.
_ERRORS = {
    "NVMLError_DriverNotLoaded": (
        "driver_not_loaded",
        "the NVIDIA driver is installed but not loaded",
        "load it (modprobe nvidia) or restart the machine",
    ),
    "NVMLError_LibRmVersionMismatch": (
        "driver_mismatch",
        "the loaded NVIDIA driver and its library are of different versions",
        "restart the machine, or reload the driver's modules",
    ),
    "NVMLError_NoPermission": (
        "permission_denied",
        "the NVIDIA driver refuses this user",
        "give the user access to /dev/nvidia*",
    ),
}


class CudaDevice(NamedTuple):
    """One device by its physical id, as NVML describes it; `memory` is None if it shares RAM."""

    id: int
    name: str
    uuid: str
    capability: DeviceCapability
    memory: int | None
    pci: str
    mig: tuple[str, ...] = ()


class Inventory(NamedTuple):
    """Every device of the machine, visible or not, and what is wrong with the others."""

    driver: str
    devices: tuple[CudaDevice, ...]
    faults: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON types."""
        devices = [
            {
                **device._asdict(),
                "capability": device.capability.as_version_str(),
                "mig": list(device.mig),
            }
            for device in self.devices
        ]
        return {"driver": self.driver, "devices": devices, "faults": list(self.faults)}


class NvmlUnavailable(Exception):
    """CUDA's driver is there, and NVML is not; `code`, `reason` and `remedy` say why."""

    def __init__(self, code: str, reason: str, remedy: str | None) -> None:
        super().__init__(reason)
        self.code, self.reason, self.remedy = code, reason, remedy


@cache
def read_inventory(machine: Machine) -> Inventory:
    """Ask the driver for its devices, for a bounded time, once.

    Raises:
        NvmlUnavailable: CUDA can work, but NVML cannot be asked.
        Decline: the driver cannot be used.
    """
    folder = find_package(machine, "pynvml")
    outcome = ask(_SCRIPT, [folder] if folder else [], time_limit())
    if outcome.output is None:
        raise Decline(
            "driver_no_answer",
            f"the NVIDIA driver does not answer: {outcome.problem}",
            "see `nvidia-smi` and the kernel's log; MAINBOARD_PROBE_TIMEOUT=<seconds> waits longer",
        )
    lines = _lines(outcome.output)
    if outcome.problem or "end" not in lines:
        raise Decline(
            "driver_error",
            f"asking the NVIDIA driver failed: {outcome.problem or 'its answer has no end'}",
            "see `nvidia-smi` and the kernel's log",
            outcome.output,
        )
    if "error" in lines:
        raise _explain(machine, *lines["error"][0])
    return _inventory(lines)


def _lines(output: str) -> dict[str, list[list[str]]]:
    """The lines of an answer by kind; a library may print others between them."""
    lines: dict[str, list[list[str]]] = {}
    for line in output.splitlines():
        kind, *fields = line.split("\t")
        lines.setdefault(kind, []).append(fields)
    return lines


def _inventory(lines: dict[str, list[list[str]]]) -> Inventory:
    devices = tuple(_device(*fields) for fields in lines.get("device", ()))
    faults = tuple(
        f"device {number} does not work: {message} ({error})"
        for number, error, message in lines.get("fault", ())
    )
    if not devices:
        raise Decline(
            "driver_error" if faults else "no_devices_reported",
            "; ".join(faults) or "the NVIDIA driver answers, but reports no device",
            f"see `nvidia-smi`; {GIVE_DEVICES}",
        )
    return Inventory(lines["driver"][0][0], devices, faults)


def _device(
    number: str, name: str, uuid: str, major: str, minor: str, memory: str, pci: str, mig: str
) -> CudaDevice:
    return CudaDevice(
        int(number),
        name,
        uuid,
        DeviceCapability(int(major), int(minor)),
        None if memory == "shared" else int(memory),
        pci,
        tuple(mig.split(",")) if mig else (),
    )


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
    if error in ("ImportError", "ModuleNotFoundError"):
        return NvmlUnavailable(
            "nvml_missing",
            "the Python package nvidia-ml-py is not installed, so torch is asked instead",
            "pip install nvidia-ml-py, to learn of devices without starting them",
        )
    if error == "NVMLError_LibraryNotFound":
        return NvmlUnavailable(
            "nvml_library_missing",
            "NVML's library is not here, so torch is asked instead",
            "in a container, add `utility` to NVIDIA_DRIVER_CAPABILITIES",
        )
    if is_jetson(machine) or machine.in_wsl:
        return NvmlUnavailable(
            "nvml_unsupported",
            f"NVML does not serve it ({message}), so torch is asked instead",
            None,
        )
    return Decline(
        "driver_error",
        f"the NVIDIA driver answers with {error}: {message}",
        "see `nvidia-smi` and the kernel's log",
    )
