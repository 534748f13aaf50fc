"""Whether AMD's devices can be used here, from the kernel's own files: nothing here can hang."""

from __future__ import annotations

from mainboard.light_typing import TYPE_CHECKING
from mainboard.platforms.machine import Machine, this_machine
from mainboard.platforms.probing import Activation, Decline, answer
from mainboard.platforms.torch_build import TorchBuild, find_torch
from mainboard.platforms.verdict import Verdict

# Where there is no device, what describes one is not imported.
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mainboard.platforms.rocm_devices import RocmDevice

__all__ = ["examine", "probe", "usable"]

_VENDOR = 0x1002
_TOPOLOGY = "sys/class/kfd/kfd/topology"
_PLATFORM = "mainboard.platforms.rocm.RocmPlatform"
_GIVE_DEVICES = "a container must be given them: docker run --device /dev/kfd --device /dev/dri"


def probe(machine: Machine | None = None) -> Verdict:
    """Say whether AMD's devices can be used here, without importing torch."""
    return answer("rocm", lambda: examine(machine or this_machine()))


def examine(machine: Machine) -> Activation:
    """Decide whether the platform can be used.

    Raises:
        Decline: it cannot, for exactly this reason.
    """
    in_windows = _find_hardware(machine)
    from mainboard.platforms.rocm_devices import read_devices, visible_ids

    devices = read_devices(machine)
    if not in_windows and not devices:
        raise Decline(
            "no_devices_reported",
            "the amdgpu driver is loaded (/dev/kfd), but lists no device that computes",
            f"see the kernel's log; {_GIVE_DEVICES}",
        )
    visible = visible_ids(machine.environ, devices)
    hidden = _hides_all(machine.environ) if in_windows else not visible
    if hidden:
        raise _nothing_visible(machine, devices)
    build = find_torch(machine)
    if build.hip is None:
        raise _lacks_rocm(build)
    if in_windows:
        return Activation(
            _PLATFORM, "available_in_wsl", "found an AMD device of Windows (/dev/dxg)"
        )
    _check_permission(machine, [devices[index] for index in visible])
    names = sorted({f"{devices[index].name} ({devices[index].architecture})" for index in visible})
    return Activation(_PLATFORM, "available", f"{len(visible)} visible: {', '.join(names)}")


def usable(machine: Machine, device: RocmDevice) -> bool:
    """Whether this user may use a device's own node."""
    return not device.node or machine.may_use(device.node)


def _lists_devices(machine: Machine) -> bool:
    from mainboard.platforms.rocm_devices import read_devices

    return bool(read_devices(machine))


def _hides_all(environ: Mapping[str, str]) -> bool:
    """Whether a control variable begins with no device at all."""
    names = ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
    settings = [environ[name] for name in names if name in environ]
    if "HIP_VISIBLE_DEVICES" not in environ and "CUDA_VISIBLE_DEVICES" in environ:
        settings.append(environ["CUDA_VISIBLE_DEVICES"])
    return any(
        not (first.startswith("GPU-") or first[:1].isdecimal())
        for first in (setting.lstrip() for setting in settings)
    )


def _find_hardware(machine: Machine) -> bool:
    """Decline unless this system can reach an AMD device; whether it does so through Windows."""
    if machine.exists("dev/kfd"):
        return False
    libraries = ("opt/rocm/lib/librocdxg.so", "usr/lib/librocdxg.so")
    if machine.in_wsl and machine.exists("dev/dxg") and any(map(machine.exists, libraries)):
        return True
    if machine.exists(_TOPOLOGY) and _lists_devices(machine):
        raise Decline(
            "device_node_missing",
            "the kernel lists an AMD device, but /dev/kfd is not here",
            _GIVE_DEVICES,
        )
    on_bus = [device.address for device in machine.pci_devices if device.vendor == _VENDOR]
    if on_bus:
        raise Decline(
            "driver_missing",
            f"an AMD device is on the PCI bus ({', '.join(on_bus)}), but no driver offers it "
            "for computing (/dev/kfd)",
            f"install or load the amdgpu driver, if it is a device that computes; {_GIVE_DEVICES}",
        )
    raise Decline("hardware_absent", "no AMD device is on this machine")


def _check_permission(machine: Machine, devices: Sequence[RocmDevice]) -> None:
    closed = [device.node for device in devices if not usable(machine, device)]
    if not machine.may_use("dev/kfd"):
        closed = ["/dev/kfd"]
    elif len(closed) < len(devices):
        return
    raise Decline(
        "permission_denied",
        f"this user may not read and write {', '.join(closed)}",
        "add the user to the groups `render` and `video`, or correct the nodes' modes",
    )


def _lacks_rocm(build: TorchBuild) -> Decline:
    instead = f"for CUDA {build.cuda}" if build.cuda else "without ROCm"
    return Decline(
        "torch_lacks_rocm",
        f"an AMD device is here, but the installed torch {build.version} is built {instead}",
        "install a ROCm build of torch; see https://pytorch.org/get-started/locally",
    )


def _nothing_visible(machine: Machine, devices: Sequence[RocmDevice]) -> Decline:
    from mainboard.platforms.rocm_devices import CONTROLS

    settings = [f"{name}={machine.environ[name]!r}" for name in CONTROLS if name in machine.environ]
    have = ", ".join(f"{device.id} ({device.uuid or device.name})" for device in devices)
    return Decline(
        "no_visible_devices",
        f"the AMD devices here are {have or 'known to Windows'}, but {' and '.join(settings)} "
        "hides them all",
        "unset the variable, or name devices in it by number or by id",
    )
