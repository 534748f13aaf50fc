"""What AMD's devices are, from the files in which their driver describes them.

The amdgpu driver lists every compute device under `/sys/class/kfd`, so no library of AMD's is
loaded, and nothing that could hang is called. A device that is divided (CPX and other modes) is
listed once for each part.
"""

from __future__ import annotations

from functools import cache

from mainboard.light_typing import TYPE_CHECKING, NamedTuple
from mainboard.platforms.machine import Machine
from mainboard.platforms.values import DeviceCapability

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

__all__ = ["CONTROLS", "RocmDevice", "RocmLink", "read_devices", "read_links", "visible_ids"]

CONTROLS = ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")

_TOPOLOGY = "sys/class/kfd/kfd/topology/nodes"
_XGMI = 11  # the kernel's number of that kind of link


class RocmDevice(NamedTuple):
    """One device, or one part of a divided device, by its place in the kernel's list.

    Args:
        id: its place among the devices that the kernel lists.
        name: the product's name, or the architecture where the kernel knows no name.
        architecture: such as `gfx942`.
        capability: the first two numbers of the architecture.
        uuid: as `ROCR_VISIBLE_DEVICES` takes it; empty if the device has none.
        memory: bytes of its own memory; None if it uses the host's.
        pci: its PCI address.
        node: its device node.
        compute_units: how many compute.
        partition: its place among the parts of a divided device.
        compute_mode: how the device is divided, such as `SPX` or `CPX`; empty if it cannot be.
        memory_mode: how its memory is divided, such as `NPS1`; empty likewise.
    """

    id: int
    name: str
    architecture: str
    capability: DeviceCapability
    uuid: str
    memory: int | None
    pci: str
    node: str
    compute_units: int = 0
    partition: int = 0
    compute_mode: str = ""
    memory_mode: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON types."""
        return {**self._asdict(), "capability": self.capability.as_version_str()}


class RocmLink(NamedTuple):
    """A link from one device to another, as the kernel lists it."""

    first: int
    second: int
    xgmi: bool


@cache
def read_devices(machine: Machine) -> tuple[RocmDevice, ...]:
    """Every device of the machine, visible or not."""
    return tuple(
        _device(machine, index, node, facts)
        for index, (node, facts) in enumerate(_gpu_nodes(machine))
    )


@cache
def read_links(machine: Machine) -> tuple[RocmLink, ...]:
    """Every link between two devices, from each of them to the other."""
    nodes = [node for node, _ in _gpu_nodes(machine)]
    places = {int(node.rpartition("/")[2]): index for index, node in enumerate(nodes)}
    return tuple(link for node in nodes for link in _links(machine, node, places))


def visible_ids(environ: Mapping[str, str], devices: Sequence[RocmDevice]) -> list[int]:
    """The physical ids that the three control variables leave, in their order.

    `ROCR_VISIBLE_DEVICES` chooses first; `HIP_VISIBLE_DEVICES` (or, without it,
    `CUDA_VISIBLE_DEVICES`) chooses among what is left. Two libraries read them, each in its way.
    """
    visible = [device.id for device in devices]
    first = environ.get("ROCR_VISIBLE_DEVICES")
    if first is not None:
        visible = _chosen_first(first, [device.uuid.lower() for device in devices])
    second = environ.get("HIP_VISIBLE_DEVICES", environ.get("CUDA_VISIBLE_DEVICES"))
    if second is not None:
        visible = _chosen_then(second, [(index, devices[index].uuid) for index in visible])
    return visible


def _chosen_first(setting: str, uuids: Sequence[str]) -> list[int]:
    """Numbers, and ids that may be shortened, in either case.

    The first entry that means no device, several, or one for the second time, ends the list.
    """
    chosen: list[int] = []
    for entry in (part.strip().lower() for part in setting.split(",")):
        if entry.startswith("gpu-"):
            meant = [index for index, uuid in enumerate(uuids) if uuid.startswith(entry)]
            if entry == "gpu-" or len(meant) != 1:
                break
            (number,) = meant
        else:
            try:
                number = int(entry, 0)
            except ValueError:
                break
        if not 0 <= number < len(uuids) or number in chosen:
            break
        chosen.append(number)
    return chosen


def _chosen_then(setting: str, known: Sequence[tuple[int, str]]) -> list[int]:
    """Numbers as they are written plainly, and parts of ids.

    An entry that means no device ends the list, and one for the second time is passed over.
    """
    chosen: list[int] = []
    for entry in setting.split(","):
        places = [
            place for place, (_, uuid) in enumerate(known) if "GPU-" in entry and entry in uuid
        ]
        number = str(places[0]) if places else entry
        if number not in map(str, range(len(known))):
            break
        index, _ = known[int(number)]
        if index not in chosen:
            chosen.append(index)
    return chosen


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


def _links(machine: Machine, node: str, places: Mapping[int, int]) -> Iterator[RocmLink]:
    """The links that leave a node for another device; those to processors are listed beside them.

    Newer kernels list ways through other devices or the host apart.
    """
    for kind in ("io_links", "p2p_links"):
        for number in machine.names(f"{node}/{kind}"):
            facts = _properties(machine, f"{node}/{kind}/{number}/properties")
            first, second = (places.get(facts.get(end, -1)) for end in ("node_from", "node_to"))
            if first is not None and second is not None and first != second:
                yield RocmLink(first, second, kind == "io_links" and facts.get("type") == _XGMI)


def _device(machine: Machine, index: int, node: str, facts: Mapping[str, int]) -> RocmDevice:
    version = facts.get("gfx_target_version", 0)
    major, minor, step = version // 10000, version // 100 % 100, version % 100
    architecture = f"gfx{major}{minor:x}{step:x}"
    pci, partition = _place(machine, facts)
    files = f"sys/bus/pci/devices/{pci}"
    render = facts.get("drm_render_minor", 0)
    per_unit = facts.get("simd_per_cu", 0) or (4 if major == 9 else 2)
    return RocmDevice(
        id=index,
        name=machine.text(f"{files}/product_name") or machine.text(f"{node}/name") or architecture,
        architecture=architecture,
        capability=DeviceCapability(major, minor),
        uuid=f"GPU-{facts['unique_id']:016x}" if facts.get("unique_id") else "",
        memory=_memory(machine, node),
        pci=pci,
        node=f"/dev/dri/renderD{render}" if render else "",
        compute_units=facts.get("simd_count", 0) // per_unit,
        partition=partition,
        compute_mode=machine.text(f"{files}/current_compute_partition") or "",
        memory_mode=machine.text(f"{files}/current_memory_partition") or "",
    )


def _place(machine: Machine, facts: Mapping[str, int]) -> tuple[str, int]:
    """A device's PCI address, and which part of that device it is.

    Kernels write the part above the address; for a short time they wrote it in the place of the
    function, which then is one that no file describes.
    """
    place, domain = facts.get("location_id", 0), facts.get("domain", 0)
    device = f"{domain:04x}:{place >> 8 & 0xFF:02x}:{place >> 3 & 0x1F:02x}"
    function, part = place & 7, place >> 28
    described = machine.exists(f"sys/bus/pci/devices/{device}.{function}")
    if function and not described and machine.exists(f"sys/bus/pci/devices/{device}.0"):
        return f"{device}.0", function
    return f"{device}.{function}", part


def _memory(machine: Machine, node: str) -> int | None:
    """The bytes of a device's own memory; None for a device that uses the host's."""
    total = 0
    for bank in machine.names(f"{node}/mem_banks"):
        facts = _properties(machine, f"{node}/mem_banks/{bank}/properties")
        # Heap types 1 and 2 are memory of the device, seen by the host or not.
        if facts.get("heap_type") in (1, 2):
            total += facts.get("size_in_bytes", 0)
    return total or None
