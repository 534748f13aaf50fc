"""Platforms whose devices are listed and described without starting one.

A vendor says where its list comes from, and which part of it the environment leaves; what follows
from that is here. An answer is remembered for as long as the control variables are the same
(`answers.py`), so a change of them after import is honoured and asking again in a loop costs next to
nothing.
"""

from __future__ import annotations

from mainboard.light_typing import TYPE_CHECKING, NamedTuple
from mainboard.platforms import machine
from mainboard.platforms.answers import Table, watch
from mainboard.platforms.interface import Platform
from mainboard.platforms.values import Capabilities, DeviceCapability, MemoryInfo

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any, ClassVar, Protocol

    from mainboard.platforms.machine import Machine

    class _Now(Protocol):
        """A function that is found on a class, and is not made a method of it."""

        def __call__(self) -> _Answers: ...


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


class _Answers:
    """What is known of a class's devices while its control variables have one value each.

    By logical id, but for `at_least`, by capability, and `facts`, by the method that finds each.
    `generation` is the first device's, once it was asked for; empty if there is none.
    """

    __slots__ = (
        *("able", "at_least", "capability", "device", "facts", "generation", "name"),
        *("physical", "units"),
    )
    generation: tuple[int, ...]

    def __init__(self, cls: type[ListedDevices]) -> None:
        self.physical: Table[int, int] = Table(cls._physical_id)
        self.device: Table[int, Any] = Table(cls._find)
        self.name: Table[int, str] = Table(cls._read_name)
        self.capability: Table[int, DeviceCapability | None] = Table(cls._read_capability)
        self.at_least: Table[int, bool] = Table(cls._is_at_least)
        self.able: Table[int, Capabilities] = Table(cls._capabilities)
        self.units: Table[int, int] = Table(cls._read_compute_units)
        self.facts: Table[str, Any] = Table(lambda name: getattr(cls, name)())


class ListedDevices(Platform):
    """Facts of devices by logical id, from a list of all and a list of the visible ones.

    A vendor's list is of named tuples that have at least `id`, `name`, `uuid`, `capability`,
    `memory` and `pci`.
    """

    _controls: ClassVar[tuple[bytes, ...]] = ()
    """The control variables, as the system names them."""

    # A plain function, which is found sooner on a class than a method.
    _now: ClassVar[_Now]

    def __init_subclass__(cls, **named: Any) -> None:
        super().__init_subclass__(**named)
        cls.forget_answers()

    @classmethod
    def forget_answers(cls) -> None:
        """Forget what is remembered of this class's devices, and look at its machine again."""

        def install(now: _Now) -> None:
            cls._now = now

        watch(cls._machine().raw_environ, cls._controls, lambda: _Answers(cls), install)

    @classmethod
    def _machine(cls) -> Machine:
        """The machine whose devices these are."""
        return machine.this_machine()

    @classmethod
    def _listed(cls) -> Sequence[Any]:
        """Every device that works, by physical id."""
        raise NotImplementedError

    @classmethod
    def _visible(cls) -> Sequence[Any]:
        """The devices that the environment leaves, in its order; a slice in place of its device."""
        raise NotImplementedError

    @classmethod
    def _device(cls, device_id: int) -> Any:
        """The device of a logical id.

        Raises:
            IndexError: there is no such device.
        """
        return cls._now().device[device_id]

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
    def device_id_to_physical_device_id(cls, device_id: int) -> int:
        """The physical id of logical device `device_id`.

        Raises:
            IndexError: fewer devices are assigned to this process, or visible to it.
        """
        return cls._now().physical[device_id]

    @classmethod
    def _physical_id(cls, device_id: int) -> int:
        return super().device_id_to_physical_device_id(device_id)

    @classmethod
    def visible_physical_ids(cls) -> list[int] | None:
        """Physical ids in the order of visible ids; None when nothing hides or reorders any."""
        ids: list[int] | None = cls._now().facts["_visible_ids"]
        return None if ids is None else [*ids]

    @classmethod
    def _visible_ids(cls) -> list[int] | None:
        ids = [device.id for device in cls._visible()]
        everything = ids == list(range(len(cls._listed())))
        read = cls._machine().raw_environ.get
        return None if everything and not any(map(read, cls._controls)) else ids

    @classmethod
    def device_count(cls) -> int:
        """How many devices are visible, without starting one."""
        count: int = cls._now().facts["_count"]
        return count

    @classmethod
    def _count(cls) -> int:
        return len(cls._visible())

    @classmethod
    def get_device_capability(cls, device_id: int = 0) -> DeviceCapability | None:
        """The device's generation; None when no device is visible."""
        return cls._now().capability[device_id]

    @classmethod
    def _read_capability(cls, device_id: int) -> DeviceCapability | None:
        return cls._device(device_id).capability if cls.device_count() else None

    @classmethod
    def has_device_capability(cls, capability: tuple[int, int] | int, device_id: int = 0) -> bool:
        """Whether the device's generation is `capability` or later."""
        if device_id:
            return super().has_device_capability(capability, device_id)
        if isinstance(capability, int):
            return cls._now().at_least[capability]
        # Comparing takes less time than looking a pair up.
        now = cls._now()
        try:
            return now.generation >= capability
        except AttributeError:
            now.generation = tuple(cls.get_device_capability() or ())
            return now.generation >= capability

    @classmethod
    def _is_at_least(cls, capability: int) -> bool:
        return super().has_device_capability(capability)

    @classmethod
    def capabilities(cls, device_id: int = 0) -> Capabilities:
        """What a device of this generation can do."""
        return cls._now().able[device_id]

    @classmethod
    def _capabilities(cls, device_id: int) -> Capabilities:
        raise NotImplementedError

    @classmethod
    def supports_fp8(cls) -> bool:
        """Whether the device computes with 8-bit floats."""
        yes: bool = cls._now().facts["_has_fp8"]
        return yes

    @classmethod
    def _has_fp8(cls) -> bool:
        return super().supports_fp8()

    @classmethod
    def is_fp8_fnuz(cls) -> bool:
        """Whether those are of the kind without infinities and negative zero."""
        yes: bool = cls._now().facts["_has_fnuz"]
        return yes

    @classmethod
    def _has_fnuz(cls) -> bool:
        return super().is_fp8_fnuz()

    @classmethod
    def get_device_name(cls, device_id: int = 0) -> str:
        """The product name of a device."""
        return cls._now().name[device_id]

    @classmethod
    def _read_name(cls, device_id: int) -> str:
        return str(cls._device(device_id).name)

    @classmethod
    def num_compute_units(cls, device_id: int = 0) -> int:
        """How many units of a device, or of its slice, compute at the same time."""
        return cls._now().units[device_id]

    @classmethod
    def _read_compute_units(cls, device_id: int) -> int:
        raise NotImplementedError

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
    def get_device_communicator_cls(cls) -> str:
        """Path of the class that runs collective operations over `torch.distributed`."""
        return "mainboard.platforms.communicator.DeviceCommunicator"

    @classmethod
    def is_pin_memory_available(cls) -> bool:
        """Whether page-locked host memory can be had: yes outside WSL."""
        yes: bool = cls._now().facts["_can_pin"]
        return yes

    @classmethod
    def _can_pin(cls) -> bool:
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
        known: tuple[DeviceLink, ...] = cls._now().facts["_read_links"]
        return known

    @classmethod
    def _read_links(cls) -> tuple[DeviceLink, ...]:
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
