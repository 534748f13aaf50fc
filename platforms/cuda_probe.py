"""Whether NVIDIA's devices can be used here, and what they are; no CUDA context is made.

The look is cheap first: device nodes and the PCI bus, then the environment, then torch's files,
then permissions. Only when all of those say yes is the driver asked, in a process of its own.
"""

import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from mainboard.platforms.bounded import ask, time_limit
from mainboard.platforms.machine import Machine
from mainboard.platforms.probing import Activation, Decline
from mainboard.platforms.torch_build import TorchBuild, find_package, find_torch
from mainboard.platforms.values import DeviceCapability

__all__ = [
    "CudaDevice",
    "Inventory",
    "NvmlUnavailable",
    "examine",
    "read_inventory",
    "resolve_entries",
    "visibility",
]

_VENDOR = 0x10DE
_CONTROL = "CUDA_VISIBLE_DEVICES"
_WITH_NVML = "mainboard.platforms.cuda.CudaPlatform"
_WITHOUT_NVML = "mainboard.platforms.cuda.NonNvmlCudaPlatform"
_SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "nvml_inventory.py")
_GIVE_DEVICES = "a container must be started with devices: docker run --gpus all"

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


def examine(machine: Machine) -> Activation:
    """Decide whether the platform can be used.

    Raises:
        Decline: it cannot, for exactly this reason.
    """
    kind = _find_hardware(machine)
    entries = visibility(machine.environ)
    if entries is not None and not entries:
        raise _nothing_visible(machine, "which hides every device")
    build = find_torch(machine)
    if build.cuda is None:
        raise _lacks_cuda(build)
    _check_permission(machine)
    try:
        inventory = read_inventory(machine)
    except NvmlUnavailable as missing:
        reason = f"found an NVIDIA device ({kind}), but {missing.reason}"
        return Activation(_WITHOUT_NVML, missing.code, reason, missing.remedy)
    visible = resolve_entries(entries, inventory)
    if not visible:
        have = ", ".join(f"{device.id} ({device.uuid})" for device in inventory.devices)
        raise _nothing_visible(machine, f"but the devices here are {have}")
    names = sorted({device.name for device in inventory.devices if device.id in visible})
    reason = f"{len(visible)} visible: {', '.join(names)}; driver {inventory.driver}"
    faults = f"; {'; '.join(inventory.faults)}" if inventory.faults else ""
    return Activation(_WITH_NVML, "available", reason + faults)


def visibility(environ: Mapping[str, str]) -> list[str] | None:
    """The entries of `CUDA_VISIBLE_DEVICES` that count; None when it is not set.

    As the driver does, reading stops at the first entry that is neither a number nor an id, and
    a repeated entry hides everything.
    """
    setting = environ.get(_CONTROL)
    if setting is None:
        return None
    entries: list[str] = []
    for entry in setting.split(","):
        match = re.match(r"\s*(\d+|(?:GPU|MIG)-[\w/-]+)", entry)
        if match is None:
            break
        entries.append(match[1])
    return entries if len(set(entries)) == len(entries) else []


def resolve_entries(entries: Sequence[str] | None, inventory: Inventory) -> list[int]:
    """The physical ids that `CUDA_VISIBLE_DEVICES` leaves, in its order."""
    if entries is None:
        return [device.id for device in inventory.devices]
    found: list[int] = []
    for entry in entries:
        matches = [device.id for device in inventory.devices if _means(entry, device)]
        if len(matches) != 1:  # unknown, or an abbreviation of several: nothing after it counts
            break
        found.append(matches[0])
    return found


def _means(entry: str, device: CudaDevice) -> bool:
    """Whether an entry names this device, or a slice of it; ids may be abbreviated."""
    if entry.isdecimal():
        return int(entry) == device.id
    if entry.startswith("MIG-GPU-"):  # the form of drivers before 470: MIG-<device>/<slice>
        return entry.removeprefix("MIG-").partition("/")[0] == device.uuid
    return any(uuid.startswith(entry) for uuid in (device.uuid, *device.mig))


@cache
def read_inventory(machine: Machine) -> Inventory:
    """Ask the driver for its devices, for a bounded time, once.

    Raises:
        NvmlUnavailable: CUDA can work, but NVML cannot be asked.
        Decline: the driver cannot be used.
    """
    folder = find_package(machine, "pynvml")
    outcome = ask(_SCRIPT, [folder or ""], time_limit())
    if outcome.output is None:
        raise Decline(
            "driver_no_answer",
            f"the NVIDIA driver does not answer: {outcome.problem}",
            "see `nvidia-smi` and the kernel's log; MAINBOARD_PROBE_TIMEOUT=<seconds> waits longer",
        )
    answer = _parse(outcome.output)
    if answer is None or outcome.problem:
        raise Decline(
            "driver_error",
            f"asking the NVIDIA driver failed: {outcome.problem or 'its answer is no JSON'}",
            "see `nvidia-smi` and the kernel's log",
            outcome.output,
        )
    if "error" in answer:
        raise _explain(machine, answer)
    return _inventory(answer)


def _parse(output: str) -> dict[str, Any] | None:
    """The JSON in the last line; libraries may print others before it."""
    import json

    lines = output.strip().splitlines()
    try:
        answer = json.loads(lines[-1]) if lines else None
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


def _inventory(answer: dict[str, Any]) -> Inventory:
    working = [entry for entry in answer["devices"] if "error" not in entry]
    faults = tuple(
        f"device {entry['id']} does not work: {entry['message']}"
        for entry in answer["devices"]
        if "error" in entry
    )
    if not working:
        raise Decline(
            "driver_error" if faults else "no_devices_reported",
            "; ".join(faults) or "the NVIDIA driver answers, but reports no device",
            f"see `nvidia-smi`; {_GIVE_DEVICES}",
        )
    devices = [
        CudaDevice(
            **{
                **entry,
                "capability": DeviceCapability(*entry["capability"]),
                "mig": tuple(entry["mig"]),
            }
        )
        for entry in working
    ]
    return Inventory(answer["driver"], tuple(devices), faults)


def _explain(machine: Machine, answer: dict[str, Any]) -> Exception:
    """What an error of NVML, or its absence, means here."""
    error, message, has_cuda = answer["error"], answer["message"], answer["cuda"]
    if error in _ERRORS:
        code, reason, remedy = _ERRORS[error]
        return Decline(code, f"{reason} ({message})", remedy)
    if not has_cuda:
        return Decline(
            "driver_library_missing",
            f"CUDA's driver library (libcuda) cannot be loaded, nor can NVML ({message})",
            f"install the NVIDIA driver's libraries; {_GIVE_DEVICES}",
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
    if _is_jetson(machine) or machine.in_wsl:
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


def _find_hardware(machine: Machine) -> str:
    """The file that shows an NVIDIA device which this system can reach."""
    nodes = _nodes(machine)
    if nodes:
        return nodes[0]
    if machine.system == "win32" and machine.exists("Windows/System32/nvcuda.dll"):
        return "nvcuda.dll"
    if machine.in_wsl and machine.exists("dev/dxg"):
        if machine.exists("usr/lib/wsl/lib/libcuda.so.1"):
            return "/dev/dxg"
        raise Decline(
            "hardware_absent",
            "Windows offers a GPU to this Linux (/dev/dxg), but no NVIDIA driver of Windows with it",
            "if it is an NVIDIA device, install NVIDIA's driver in Windows",
        )
    on_bus = [device.address for device in machine.pci_devices if device.vendor == _VENDOR]
    if on_bus or _is_jetson(machine):
        where = f"on the PCI bus ({', '.join(on_bus)})" if on_bus else "part of this board"
        raise Decline(
            "driver_missing",
            f"an NVIDIA device is {where}, but there is no device node for it under /dev",
            f"install or load the NVIDIA driver; {_GIVE_DEVICES}",
        )
    raise Decline("hardware_absent", "no NVIDIA device is on this machine")


def _nodes(machine: Machine) -> list[str]:
    """Device nodes of GPUs, as paths of the machine."""
    names = [name for name in machine.names("dev") if re.fullmatch(r"nvidia\d+", name)]
    if not names and _is_jetson(machine):
        names = [name for name in ("nvhost-gpu", "nvgpu", "nvmap") if machine.exists(f"dev/{name}")]
    return [f"/dev/{name}" for name in names]


def _is_jetson(machine: Machine) -> bool:
    """Whether this is one of NVIDIA's boards, whose GPU is not on a PCI bus."""
    board = machine.text("proc/device-tree/compatible") or ""
    return "nvidia,tegra" in board or machine.exists("etc/nv_tegra_release")


def _check_permission(machine: Machine) -> None:
    """Decline unless the control node and at least one device may be used."""
    nodes = _nodes(machine)
    control = "/dev/nvidiactl"
    closed = [node for node in nodes if not machine.may_use(node)]
    if machine.exists(control) and not machine.may_use(control):
        closed = [control]
    elif not nodes or len(closed) < len(nodes):
        return
    raise Decline(
        "permission_denied",
        f"this user may not read and write {', '.join(closed)}",
        "add the user to the group that owns the node (often `video`), or correct its mode",
    )


def _lacks_cuda(build: TorchBuild) -> Decline:
    instead = f"for ROCm {build.hip}" if build.hip else "without CUDA"
    return Decline(
        "torch_lacks_cuda",
        f"an NVIDIA device is here, but the installed torch {build.version} is built {instead}",
        "install a CUDA build of torch; see https://pytorch.org/get-started/locally",
    )


def _nothing_visible(machine: Machine, why: str) -> Decline:
    return Decline(
        "no_visible_devices",
        f"an NVIDIA device is here, but {_CONTROL} is {machine.environ.get(_CONTROL)!r}, {why}",
        f"unset {_CONTROL}, or name devices in it by number or by id",
    )
