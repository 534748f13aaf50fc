"""Whether AMD's devices can be used here, and what they are, from the kernel's own files.

The amdgpu driver describes every compute device under `/sys/class/kfd`, so no library of AMD's
is loaded, and nothing that could hang is called.
"""

from __future__ import annotations

from functools import cache

from mainboard.light_typing import TYPE_CHECKING, NamedTuple
from mainboard.platforms.machine import Machine, this_machine
from mainboard.platforms.probing import Activation, Decline, answer
from mainboard.platforms.torch_build import TorchBuild, find_torch
from mainboard.platforms.values import DeviceCapability
from mainboard.platforms.verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

__all__ = ["RocmDevice", "examine", "probe", "read_devices", "usable", "visible_ids"]

_VENDOR = 0x1002
_TOPOLOGY = "sys/class/kfd/kfd/topology/nodes"
_PLATFORM = "mainboard.platforms.rocm.RocmPlatform"
_GIVE_DEVICES = "a container must be given them: docker run --device /dev/kfd --device /dev/dri"


class RocmDevice(NamedTuple):
    """One device by its physical id: its place among the devices that the kernel lists."""

    id: int
    name: str
    architecture: str
    capability: DeviceCapability
    uuid: str
    memory: int | None
    pci: str
    node: str

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON types."""
        return {**self._asdict(), "capability": self.capability.as_version_str()}


def probe(machine: Machine | None = None) -> Verdict:
    """Say whether AMD's devices can be used here, without importing torch."""
    return answer("rocm", lambda: examine(machine or this_machine()))


def examine(machine: Machine) -> Activation:
    """Decide whether the platform can be used.

    Raises:
        Decline: it cannot, for exactly this reason.
    """
    in_windows = _find_hardware(machine)
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


@cache
def read_devices(machine: Machine) -> tuple[RocmDevice, ...]:
    """Every device of the machine, visible or not."""
    return tuple(
        _device(machine, index, node, facts)
        for index, (node, facts) in enumerate(_gpu_nodes(machine))
    )


def visible_ids(environ: Mapping[str, str], devices: Sequence[RocmDevice]) -> list[int]:
    """The physical ids that the three control variables leave, in their order.

    `ROCR_VISIBLE_DEVICES` chooses first, by number or id; `HIP_VISIBLE_DEVICES` (or, without it,
    `CUDA_VISIBLE_DEVICES`) chooses by number among what is left.
    """
    first = environ.get("ROCR_VISIBLE_DEVICES")
    visible = [device.id for device in devices]
    if first is not None:
        visible = _choose(first, [(device.id, device.uuid) for device in devices])
    second = environ.get("HIP_VISIBLE_DEVICES", environ.get("CUDA_VISIBLE_DEVICES"))
    if second is not None:
        visible = _choose(second, [(index, devices[index].uuid) for index in visible])
    return visible


def usable(machine: Machine, device: RocmDevice) -> bool:
    """Whether this user may use a device's own node."""
    return not device.node or machine.may_use(device.node)


def _choose(setting: str, known: Sequence[tuple[int, str]]) -> list[int]:
    """The ids that a setting names, up to its first entry that means nothing."""
    chosen: list[int] = []
    for entry in (part.strip() for part in setting.split(",")):
        if entry.isdecimal() and int(entry) < len(known):
            chosen.append(known[int(entry)][0])
            continue
        found = [index for index, uuid in known if entry and uuid.lower() == entry.lower()]
        if not found:
            break
        chosen.append(found[0])
    return chosen


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


def _gpu_nodes(machine: Machine) -> Iterator[tuple[str, dict[str, int]]]:
    """The nodes of the kernel's topology that compute; processors are listed beside them."""
    for number in sorted(int(n) for n in machine.names(_TOPOLOGY) if n.isdecimal()):
        node = f"{_TOPOLOGY}/{number}"
        facts = _properties(machine, f"{node}/properties")
        if facts.get("simd_count", 0) > 0:
            yield node, facts


def _properties(machine: Machine, name: str) -> dict[str, int]:
    """A file with a name and a number on each line."""
    pairs = (line.split() for line in (machine.text(name) or "").splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def _device(machine: Machine, index: int, node: str, facts: Mapping[str, int]) -> RocmDevice:
    version = facts.get("gfx_target_version", 0)
    major, minor, step = version // 10000, version // 100 % 100, version % 100
    place = facts.get("location_id", 0)
    pci = (
        f"{facts.get('domain', 0):04x}:{place >> 8 & 0xFF:02x}:{place >> 3 & 0x1F:02x}.{place & 7}"
    )
    architecture = f"gfx{major}{minor:x}{step:x}"
    product = machine.text(f"sys/bus/pci/devices/{pci}/product_name")
    render = facts.get("drm_render_minor", 0)
    return RocmDevice(
        id=index,
        name=product or machine.text(f"{node}/name") or architecture,
        architecture=architecture,
        capability=DeviceCapability(major, minor),
        uuid=f"GPU-{facts['unique_id']:016x}" if facts.get("unique_id") else "",
        memory=_memory(machine, node),
        pci=pci,
        node=f"/dev/dri/renderD{render}" if render else "",
    )


def _memory(machine: Machine, node: str) -> int | None:
    """The bytes of a device's own memory; None for a device that uses the host's."""
    total = 0
    for bank in machine.names(f"{node}/mem_banks"):
        facts = _properties(machine, f"{node}/mem_banks/{bank}/properties")
        # Heap types 1 and 2 are memory of the device, seen by the host or not.
        if facts.get("heap_type") in (1, 2):
            total += facts.get("size_in_bytes", 0)
    return total or None


def _find_hardware(machine: Machine) -> bool:
    """Decline unless this system can reach an AMD device; whether it does so through Windows."""
    if machine.exists("dev/kfd"):
        return False
    libraries = ("opt/rocm/lib/librocdxg.so", "usr/lib/librocdxg.so")
    if machine.in_wsl and machine.exists("dev/dxg") and any(map(machine.exists, libraries)):
        return True
    if any(_gpu_nodes(machine)):
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
    names = ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
    settings = [f"{name}={machine.environ[name]!r}" for name in names if name in machine.environ]
    have = ", ".join(f"{device.id} ({device.uuid or device.name})" for device in devices)
    return Decline(
        "no_visible_devices",
        f"the AMD devices here are {have or 'known to Windows'}, but {' and '.join(settings)} "
        "hides them all",
        "unset the variable, or name devices in it by number or by id",
    )
