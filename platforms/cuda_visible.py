"""Which devices `CUDA_VISIBLE_DEVICES` leaves: numbers, ids, slices, order, and what ends a list."""

from __future__ import annotations

from itertools import takewhile

from mainboard.light_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mainboard.platforms.cuda_inventory import CudaDevice, Inventory

__all__ = ["CONTROL", "find_entry", "visibility", "visible_devices"]

CONTROL = "CUDA_VISIBLE_DEVICES"


_HEXADECIMAL = "0123456789abcdefABCDEF"


def visibility(environ: Mapping[str, str]) -> list[str] | None:
    """The entries of `CUDA_VISIBLE_DEVICES` that count; None when it is not set.

    As the driver does, reading stops at the first entry that is not of the kind of the first one,
    a number or an id, and a repeated entry hides everything.
    """
    setting = environ.get(CONTROL)
    if setting is None:
        return None
    read = _number if _number(setting) else _id
    entries = list(takewhile(bool, map(read, setting.split(","))))
    return entries if len(set(entries)) == len(entries) else []


# As far as the driver reads an entry: what follows a number or an id is passed over. Without `re`,
# which takes as long to import as everything else here.


def _number(text: str) -> str:
    """The number that a text begins with, or nothing."""
    digits = "".join(takewhile("0123456789".__contains__, text.lstrip().removeprefix("+")))
    return digits and (digits.lstrip("0") or "0")


def _id(text: str) -> str:
    """The id of a device or a slice that a text begins with, or nothing."""
    text = text.lstrip()
    kind = next((kind for kind in ("GPU-", "MIG-GPU-", "MIG-") if text.startswith(kind)), None)
    if kind is None or text[len(kind) : len(kind) + 1] not in set(_HEXADECIMAL):
        return ""
    return kind + "".join(takewhile((_HEXADECIMAL + "/-").__contains__, text[len(kind) :]))


def find_entry(entry: str, inventory: Inventory) -> int | None:
    """The physical id that one entry means; None for no device, or for several."""
    meant = [device.id for device in inventory.devices for _ in _meant(entry, device)]
    return meant[0] if len(meant) == 1 else None


def visible_devices(entries: Sequence[str] | None, inventory: Inventory) -> list[CudaDevice]:
    """The devices that `CUDA_VISIBLE_DEVICES` leaves, a slice of one as that slice.

    CUDA shows a process one slice at most, and then nothing else. A device that is meant twice, by
    two abbreviations of its id, hides everything as a repeated entry does.
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
        return [part.uuid for part in device.slices if part.uuid.startswith(entry)]
    return [_first_slice(device)] if device.uuid.startswith(entry) else []
