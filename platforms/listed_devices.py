"""Platforms whose devices are listed and described without starting one.

A vendor says where its list comes from, and which part of it the environment leaves; what follows
from that is here. An answer is remembered for as long as the control variables are the same, so a
change of them after import is honoured and asking again in a loop costs next to nothing.
"""

from __future__ import annotations

from mainboard.light_typing import TYPE_CHECKING, NamedTuple
from mainboard.platforms import device_ids, machine
from mainboard.platforms.interface import Platform
from mainboard.platforms.values import Capabilities, DeviceCapability, MemoryInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from mainboard.platforms.machine import Machine

__all__ = ["DeviceLink", "ListedDevices"]


class DeviceLink(NamedTuple):
    """How two devices reach each other.

    Args:
        first: a physical id.
        second: a larger one.
        kind: `nvlink`, `xgmi` or `pcie`.
        peer: whether each can read the other's memory.
        across: what is between them on a PCI bus, from `board` to `system`; empty if not known.
    """

    first: int
    second: int
    kind: str
    peer: bool
    across: str = ""


class ListedDevices(Platform):
    """Facts of devices by logical id, from a list of all and a list of the visible ones.

    A vendor's list is of named tuples that have at least `id`, `name`, `uuid`, `capability`,
    `memory` and `pci`.
    """

    @classmethod
    def _machine(cls) -> Machine:
        """The machine whose devices these are."""
        return machine.this_machine()

    @classmethod
    def _state(cls, machine: Machine) -> object:
        """What the visible devices depend on: raw values of control variables; None if unset."""
        raise NotImplementedError

    @classmethod
    def _listed(cls) -> Sequence[Any]:
        """Every device that works, by physical id."""
        raise NotImplementedError

    @classmethod
    def _visible(cls) -> Sequence[Any]:
        """The devices that the environment leaves, in its order; a slice in place of its device."""
        raise NotImplementedError

    @classmethod
    def _remembered(cls, question: str, of: object, answer: Callable[[], Any]) -> Any:
        """The answer to a question that depends on the visible devices alone."""
        here = cls._machine()
        key = (cls, cls._state(here), device_ids.assignment(), question, of)
        try:
            return here.answers[key]
        except KeyError:
            found = here.answers[key] = answer()
            return found

    @classmethod
    def _device(cls, device_id: int) -> Any:
        """The device of a logical id.

        Raises:
            IndexError: there is no such device.
        """
        return cls._remembered("device", device_id, lambda: cls._find(device_id))

    @classmethod
    def _find(cls, device_id: int) -> Any:
        physical = cls.device_id_to_physical_device_id(device_id)
        for device in (*cls._visible(), *cls._listed()):
            if device.id == physical:
                return device
        raise IndexError(
            f"device {device_id} was asked for, which is physical device {physical}; "
            f"the working devices here are {_names(cls._listed())}"
        )

    @classmethod
    def visible_physical_ids(cls) -> list[int] | None:
        """Physical ids in the order of visible ids; None when nothing hides or reorders any."""
        ids = [device.id for device in cls._visible()]
        everything = ids == list(range(len(cls._listed())))
        return None if everything and cls._state(cls._machine()) is None else ids

    @classmethod
    def device_count(cls) -> int:
        """How many devices are visible, without starting one."""
        count: int = cls._remembered("count", None, lambda: len(cls._visible()))
        return count

    @classmethod
    def get_device_capability(cls, device_id: int = 0) -> DeviceCapability | None:
        """The device's generation; None when no device is visible."""
        here = cls._machine()
        key = (cls, cls._state(here), device_ids.assignment(), "capability", device_id)
        try:
            known: DeviceCapability | None = here.answers[key]
        except KeyError:
            known = cls._device(device_id).capability if cls.device_count() else None
            here.answers[key] = known
        return known

    @classmethod
    def has_device_capability(cls, capability: tuple[int, int] | int, device_id: int = 0) -> bool:
        """Whether the device's generation is `capability` or later."""
        here = cls._machine()
        key = (cls, cls._state(here), device_ids.assignment(), capability, device_id)
        try:
            known: bool = here.answers[key]
        except KeyError:
            known = super().has_device_capability(capability, device_id)
            here.answers[key] = known
        return known

    @classmethod
    def capabilities(cls, device_id: int = 0) -> Capabilities:
        """What a device of this generation can do."""
        here = cls._machine()
        key = (cls, cls._state(here), device_ids.assignment(), "capabilities", device_id)
        try:
            known: Capabilities = here.answers[key]
        except KeyError:
            known = here.answers[key] = cls._capabilities(device_id)
        return known

    @classmethod
    def _capabilities(cls, device_id: int) -> Capabilities:
        raise NotImplementedError

    @classmethod
    def get_device_name(cls, device_id: int = 0) -> str:
        """The product name of a device."""
        name: str = cls._device(device_id).name
        return name

    @classmethod
    def get_device_uuid(cls, device_id: int = 0) -> str:
        """The id of a device, as the control variable takes it."""
        uuid: str = cls._device(device_id).uuid
        return uuid

    @classmethod
    def get_device_total_memory(cls, device_id: int = 0) -> int:
        """The bytes of memory that a device, or its slice, has; the host's where it shares them."""
        memory: int | None = cls._device(device_id).memory
        return memory if memory is not None else cls._host_memory().total

    @classmethod
    def is_pin_memory_available(cls) -> bool:
        """Whether page-locked host memory can be had: yes outside WSL."""
        return not cls._machine().in_wsl

    @classmethod
    def _host_memory(cls) -> MemoryInfo:
        from mainboard.platforms.cpu_facts import read_cpu_facts

        return read_cpu_facts(cls._machine()).memory()

    @classmethod
    def get_all_gpu_pci_bus_ids(cls) -> dict[int, str]:
        """The PCI address of every device by its physical id."""
        return {device.id: device.pci for device in cls._listed()}

    @classmethod
    def links(cls) -> tuple[DeviceLink, ...]:
        """How each pair of devices is connected, by physical ids, without starting one."""
        raise NotImplementedError

    @classmethod
    def is_fully_connected(cls, physical_device_ids: Sequence[int]) -> bool:
        """Whether each pair of these devices has a direct link of the vendor's own."""
        direct = {(link.first, link.second) for link in cls.links() if link.kind != "pcie"}
        ids = sorted(set(physical_device_ids))
        pairs = [(a, b) for place, a in enumerate(ids) for b in ids[place + 1 :]]
        return all(pair in direct for pair in pairs)

    @classmethod
    def can_access_peer(cls, first: int, second: int) -> bool:
        """Whether two devices, by physical id, can read each other's memory."""
        pair = tuple(sorted((first, second)))
        return first == second or any(
            link.peer for link in cls.links() if (link.first, link.second) == pair
        )


def _names(devices: Iterable[Any]) -> str:
    return ", ".join(f"{device.id} ({device.name})" for device in devices)
