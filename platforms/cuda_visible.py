"""Which devices `CUDA_VISIBLE_DEVICES` leaves: numbers, ids, slices, order, and what ends a list."""

from __future__ import annotations

from itertools import takewhile

from mainboard.light_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mainboard.platforms.cuda_inventory import CudaDevice, Inventory

__all__ = ["CONTROL", "find_entry", "visibility", "visible_devices"]

CONTROL = "CUDA_VISIBLE_DEVICES"
_IDS = ("GPU-", "MIG-")


def visibility(environ: Mapping[str, str]) -> list[str] | None:
    """The entries of `CUDA_VISIBLE_DEVICES` that can count; None when it is not set.

    As the driver does, reading stops at the first entry that is not of the kind of the first one,
    a number or an id. What follows a number is passed over, and of its 64 bits the last 32 count.
    """
    setting = environ.get(CONTROL)
    if setting is None:
        return None
    parts = setting.split(",")
    numbers = list(takewhile(bool, map(_number, parts)))
    return numbers or list(takewhile(lambda part: part.startswith(_IDS), parts))


def _number(entry: str) -> str:
    """The number that an entry begins with; empty if it begins with something else."""
    # Without `re`, which takes as long to import as everything else here.
    text = entry.lstrip()
    sign = text[:1] if text.startswith(("+", "-")) else ""
    digits = "".join(takewhile("0123456789".__contains__, text[len(sign) :]))
    if not digits:
        return ""
    number = int(sign + digits.lstrip("0")[:20].rjust(1, "0"))
    return str(number % (1 << 32)) if -1 << 63 <= number < 1 << 63 else ""


def find_entry(entry: str, inventory: Inventory) -> int | None:
    """The physical id that one entry means; None for no device, or for several."""
    meant = [device.id for device in inventory.devices for _ in _meant(entry, device)]
    return meant[0] if len(meant) == 1 else None


def visible_devices(entries: Sequence[str] | None, inventory: Inventory) -> list[CudaDevice]:
    """The devices that `CUDA_VISIBLE_DEVICES` leaves, a slice of one as that slice.

    CUDA shows a process one slice at most, and then nothing else. A device that is named twice
    hides everything.
    """
    chosen = list(_chosen(entries, inventory))
    if len(set(chosen)) < len(chosen):
        return []
    slices = [device.as_slice(part) for device, part in chosen if part is not None]
    return slices[:1] or [device for device, _ in chosen if not device.mig]


def _chosen(
    entries: Sequence[str] | None, inventory: Inventory
) -> Iterator[tuple[CudaDevice, str | None]]:
    """Each device that is meant, with the id of its slice if it is divided and has one."""
    if entries is None:
        for device in inventory.devices:
            yield device, _first_slice(device)
        return
    for entry in entries:
        matches = [(device, part) for device in inventory.devices for part in _meant(entry, device)]
        if len(matches) != 1:  # unknown, or an abbreviation of several: nothing after it counts
            return
        yield matches[0]


def _first_slice(device: CudaDevice) -> str | None:
    return device.slices[0].uuid if device.slices else None


def _meant(entry: str, device: CudaDevice) -> list[str | None]:
    """The slices of this device that an entry names; None for all of it; ids may be shortened."""
    if entry.isdecimal():
        return [_first_slice(device)] if int(entry) == device.id else []
    if entry.startswith("MIG-GPU-"):  # the form of drivers before 470: MIG-<device>/<gi>/<ci>
        exact = [part.uuid for part in device.slices if part.uuid == entry]
        named = entry.removeprefix("MIG-").partition("/")[0] == device.uuid
        return [*exact] or ([device.slices[0].uuid] if named and device.slices else [])
    if entry.startswith("MIG-"):
        return [part.uuid for part in device.slices if _names(entry, part.uuid)]
    return [_first_slice(device)] if _names(entry, device.uuid) else []


def _names(entry: str, uuid: str) -> bool:
    """Whether an entry is an id, the beginning of it, or the id with something after it."""
    begins = entry[:4] == uuid[:4] and len(entry) > 4
    text, whole = entry.lower(), uuid.lower()
    return begins and (whole.startswith(text) or text.startswith(whole))
