"""Whether NVIDIA's devices can be used here, and what they are; no CUDA context is made.

The look is cheap first: device nodes and the PCI bus, then the environment, then torch's files,
then permissions. Only when all of those say yes is the driver asked, in a process of its own.
"""

from __future__ import annotations

from mainboard.light_typing import TYPE_CHECKING
from mainboard.platforms.machine import Machine, this_machine
from mainboard.platforms.probing import Activation, Decline, answer
from mainboard.platforms.torch_build import TorchBuild, find_torch

# Where there is no device, neither the inventory nor the class is imported.
if TYPE_CHECKING:
    from collections.abc import Sequence

    from mainboard.platforms.cuda_inventory import Inventory
    from mainboard.platforms.verdict import Verdict

__all__ = ["DEVICES", "GIVE_DEVICES", "ask_ahead", "examine", "is_jetson", "probe"]

DEVICES = ("nvml_inventory", "devices")
"""The script that asks the driver, and the question."""

_VENDOR = 0x10DE
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
    kind, build, entries = _look(machine)
    from mainboard.platforms import cuda_inventory
    from mainboard.platforms.cuda_visible import visible_devices

    # The class is next if the driver says yes, which was asked ahead and is still busy.
    __import__(_WITH_NVML.rpartition(".")[0])
    try:
        inventory = cuda_inventory.read_inventory(machine)
        value, code, remedy, note = _WITH_NVML, "available", None, ""
    except cuda_inventory.NvmlUnavailable as no:
        inventory, _ = cuda_inventory.read_driver_inventory(machine)
        value, code, remedy = _WITHOUT_NVML, no.code, no.remedy
        note = f"; found as {kind}, and {no.reason}"
    _check_version(build, inventory)
    visible = visible_devices(entries, inventory)
    if not visible:
        raise _nothing_visible(machine, f"but the devices here are {_listed(inventory)}")
    names = ", ".join(sorted({device.name for device in visible}))
    driver = f"; driver {inventory.driver}" if inventory.driver else ""
    faults = "".join(f"; {fault}" for fault in inventory.faults)
    return Activation(value, code, f"{len(visible)} visible: {names}{driver}{faults}{note}", remedy)


def ask_ahead(machine: Machine) -> None:
    """Start asking the driver what `examine` will ask it, if it will."""
    try:
        _look(machine)
    except Decline:
        return
    machine.ask_ahead(*DEVICES)


def _look(machine: Machine) -> tuple[str, TorchBuild, Sequence[str] | None]:
    """What can be known without the driver: a file that shows a device, torch, visible ids.

    Raises:
        Decline: there is nothing to ask the driver about.
    """
    kind = _find_hardware(machine)
    from mainboard.platforms.cuda_visible import visibility

    entries = visibility(machine.environ)
    if entries is not None and not entries:
        raise _nothing_visible(machine, "which hides every device")
    build = find_torch(machine)
    if build.cuda is None:
        raise _lacks_cuda(build)
    _check_permission(machine)
    return kind, build, entries


def _check_version(build: TorchBuild, inventory: Inventory) -> None:
    """Decline if the driver is of a generation before the CUDA that torch was built for.

    Within one major version, drivers since CUDA 11 run what is newer than themselves.
    """
    needs = (build.cuda or "").partition(".")[0]
    if inventory.cuda is None or not needs.isdecimal() or inventory.cuda[0] >= int(needs):
        return
    has = ".".join(map(str, inventory.cuda))
    raise Decline(
        "driver_too_old",
        f"the NVIDIA driver {inventory.driver} runs CUDA up to {has}, but the installed torch "
        f"{build.version} is built for CUDA {build.cuda}",
        f"update the driver, or install a torch built for CUDA {inventory.cuda[0]}",
    )


def _listed(inventory: Inventory) -> str:
    divided = "divided, without a slice"
    return ", ".join(
        f"{d.id} ({divided if d.mig and not d.slices else d.uuid})" for d in inventory.devices
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
    from mainboard.platforms.cuda_visible import CONTROL

    return Decline(
        "no_visible_devices",
        f"an NVIDIA device is here, but {CONTROL} is {machine.environ.get(CONTROL)!r}, {why}",
        f"unset {CONTROL}, or name devices in it by number or by id",
    )


def is_jetson(machine: Machine) -> bool:
    """Whether this is one of NVIDIA's boards, whose GPU is not on a PCI bus."""
    board = machine.text("proc/device-tree/compatible") or ""
    return "nvidia,tegra" in board or machine.exists("etc/nv_tegra_release")
