"""Whether NVIDIA's devices can be used here, and what they are; no CUDA context is made.

The look is cheap first: device nodes and the PCI bus, then the environment, then torch's files,
then permissions. Only when all of those say yes is the driver asked, in a process of its own.
"""

from __future__ import annotations

from mainboard.light_typing import TYPE_CHECKING
from mainboard.platforms.machine import Machine, this_machine
from mainboard.platforms.probing import Activation, Decline, answer
from mainboard.platforms.torch_build import TorchBuild, find_torch
from mainboard.platforms.verdict import Verdict

# Where there is no device, neither the inventory nor the class is imported.
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mainboard.platforms.cuda_inventory import CudaDevice, Inventory

__all__ = ["GIVE_DEVICES", "examine", "is_jetson", "probe", "resolve_entries", "visibility"]

_VENDOR = 0x10DE
_CONTROL = "CUDA_VISIBLE_DEVICES"
_WITH_NVML = "mainboard.platforms.cuda.CudaPlatform"
_WITHOUT_NVML = "mainboard.platforms.cuda.NonNvmlCudaPlatform"
GIVE_DEVICES = "a container must be started with devices: docker run --gpus all"


def probe(machine: Machine | None = None) -> Verdict:
    """Say whether NVIDIA's devices can be used here, without importing torch."""
    return answer("cuda", lambda: examine(machine or this_machine()))


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
    from mainboard.platforms.cuda_inventory import NvmlUnavailable, read_inventory

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
    import re

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
    if on_bus or is_jetson(machine):
        where = f"on the PCI bus ({', '.join(on_bus)})" if on_bus else "part of this board"
        raise Decline(
            "driver_missing",
            f"an NVIDIA device is {where}, but there is no device node for it under /dev",
            f"install or load the NVIDIA driver; {GIVE_DEVICES}",
        )
    raise Decline("hardware_absent", "no NVIDIA device is on this machine")


def _nodes(machine: Machine) -> list[str]:
    """Device nodes of GPUs, as paths of the machine."""
    known = machine.names("dev")
    names = [name for name in known if name.startswith("nvidia") and name[6:].isdecimal()]
    if not names and is_jetson(machine):
        names = [name for name in ("nvhost-gpu", "nvgpu", "nvmap") if machine.exists(f"dev/{name}")]
    return [f"/dev/{name}" for name in names]


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


def is_jetson(machine: Machine) -> bool:
    """Whether this is one of NVIDIA's boards, whose GPU is not on a PCI bus."""
    board = machine.text("proc/device-tree/compatible") or ""
    return "nvidia,tegra" in board or machine.exists("etc/nv_tegra_release")
