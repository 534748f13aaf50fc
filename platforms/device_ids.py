"""Which device a number means: three spaces of ids and the ways between them.

A *physical* id numbers the devices of the machine as its driver does. A *visible* id numbers
those that the platform's control variable (`CUDA_VISIBLE_DEVICES`, say) leaves, in its order; it
is what torch calls `cuda:0`. A *logical* id numbers the devices given to this worker: the same
as the visible id until a launcher assigns physical devices explicitly.
"""

from __future__ import annotations

import os

from mainboard.light_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "DeviceIds",
    "get_assigned_physical_gpu_ids",
    "set_assigned_physical_gpu_ids",
]

_assigned: tuple[int, ...] | None = None


def set_assigned_physical_gpu_ids(ids: Sequence[int] | None) -> None:
    """Give this process its devices by physical id; None takes the assignment back."""
    global _assigned
    _assigned = None if ids is None else tuple(ids)
    waiting = [DeviceIds]
    while waiting:
        cls = waiting.pop()
        cls.forget_answers()
        waiting += cls.__subclasses__()


def get_assigned_physical_gpu_ids() -> list[int] | None:
    """The physical ids given to this process, or None when nobody gave any."""
    return None if _assigned is None else list(_assigned)


class DeviceIds:
    """The conversions; a platform overrides how it reads its own control variable."""

    device_name: str
    device_control_env_var: str

    @classmethod
    def forget_answers(cls) -> None:
        """Called when devices are assigned; a platform that remembers facts of them forgets them."""

    @classmethod
    def device_control_id_to_physical_device_id(cls, device_id: str) -> int:
        """One entry of the control variable as a physical id.

        Raises:
            ValueError: the entry is no number, and this platform knows no other kind.
        """
        try:
            return int(device_id)
        except ValueError:
            raise ValueError(
                f"{cls.device_control_env_var} has the entry {device_id!r}, which is not a "
                f"number; platform {cls.device_name!r} accepts device numbers only"
            ) from None

    @classmethod
    def visible_physical_ids(cls) -> list[int] | None:
        """Physical ids in the order of visible ids; None when nothing restricts them.

        Optional; the default reads the control variable as a comma-separated list.
        """
        return cls._from_control_variable()

    @classmethod
    def _from_control_variable(cls) -> list[int] | None:
        setting = os.environ.get(cls.device_control_env_var)
        if setting is None:
            return None
        entries = [entry.strip() for entry in setting.split(",")]
        return [cls.device_control_id_to_physical_device_id(entry) for entry in entries if entry]

    @classmethod
    def visible_device_id_to_physical_device_id(cls, device_id: int) -> int:
        """The physical id of what torch calls device `device_id`.

        Raises:
            IndexError: the control variable leaves fewer devices than that.
        """
        visible = cls.visible_physical_ids()
        if visible is None:
            return device_id
        return _nth(visible, device_id, f"visible through {cls.device_control_env_var}")

    @classmethod
    def device_id_to_physical_device_id(cls, device_id: int) -> int:
        """The physical id of logical device `device_id`.

        Raises:
            IndexError: fewer devices are assigned to this process, or visible to it.
        """
        if _assigned is not None:
            return _nth(_assigned, device_id, "assigned to this process")
        return cls.visible_device_id_to_physical_device_id(device_id)

    @classmethod
    def logical_device_id_to_visible_device_id(cls, device_id: int) -> int:
        """What torch calls logical device `device_id`.

        Raises:
            IndexError: there is no such logical device.
            ValueError: its physical device is assigned to this process but hidden from it.
        """
        physical = cls.device_id_to_physical_device_id(device_id)
        visible = cls.visible_physical_ids()
        if visible is None:
            return physical
        if physical not in visible:
            raise ValueError(
                f"logical device {device_id} is physical device {physical}, which "
                f"{cls.device_control_env_var}={os.environ.get(cls.device_control_env_var)!r} "
                f"hides (visible: {visible}); add it there or assign another"
            )
        return visible.index(physical)


def _nth(ids: Sequence[int], position: int, meaning: str) -> int:
    """`ids[position]`, counted from zero only, or an IndexError that shows the whole list."""
    if not 0 <= position < len(ids):
        raise IndexError(
            f"device {position} was asked for, but {len(ids)} are {meaning}: {list(ids)}"
        )
    return ids[position]
