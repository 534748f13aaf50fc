"""Checks of the devices: their facts, their numbers, and what moves to them and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from mainboard.testing.check import NotOffered, check
from mainboard.testing.subject import Subject

__all__: list[str] = []

_UNSET = "VLLM_DEVICE_CONTROL_ENV_VAR_PLACEHOLDER"


@check("devices.count", "as many devices are there as are required")
def count(subject: Subject) -> Iterator[str]:
    """device_count() is what torch says as well."""
    import torch

    wanted = subject.requirements.devices
    if subject.device_count < wanted:
        yield f"{subject.device_count} devices are visible; the requirements say {wanted}"
    module: Any = getattr(torch, subject.platform.device_type, None)
    if hasattr(module, "device_count") and module.device_count() != subject.device_count:
        yield f"device_count() is {subject.device_count}; torch's is {module.device_count()}"


@check("devices.facts", "every device has a name and a size")
def facts(subject: Subject) -> Iterator[str]:
    """Both are asked for before anything runs on a device."""
    for device in range(subject.device_count):
        name = subject.ask("get_device_name", device)
        if not isinstance(name, str) or not name.strip():
            yield f"get_device_name({device}) is {name!r}"
        size = subject.ask("get_device_total_memory", device)
        if not isinstance(size, int) or isinstance(size, bool) or size <= 0:
            yield f"get_device_total_memory({device}) is {size!r}; expected bytes"


@check("devices.uuid", "no two devices have one id", feature="uuid")
def uuid(subject: Subject) -> Iterator[str]:
    """An id names a device wherever it is plugged in."""
    ids = [subject.ask("get_device_uuid", device) for device in range(subject.device_count)]
    if not all(isinstance(each, str) and each for each in ids) or len(set(ids)) < len(ids):
        yield f"get_device_uuid() gives {ids}"


@check("devices.range", "a device that is not there is an error")
def out_of_range(subject: Subject) -> Iterator[str]:
    """A number past the last device has no facts and takes no tensor."""
    import torch

    subject.elsewhere("the host is one device whatever its number")
    missing = subject.device_count
    for name in ("get_device_name", "get_device_total_memory"):
        with suppress(Exception):  # whichever error the platform has for it
            value = subject.ask(name, missing)
            yield f"{name}({missing}) answers {value!r}, though there are {missing} devices"
    try:
        torch.empty(1, device=f"{subject.platform.device_type}:{missing}")
    except (RuntimeError, IndexError, ValueError):
        return
    yield f"a tensor can be made on device {missing}, though there are {missing} devices"


@check("devices.current", "set_device() chooses where new work goes")
def current(subject: Subject) -> Iterator[str]:
    """For every device; the one that was current is restored."""
    import torch

    before = subject.ask("current_device")
    try:
        for number in range(subject.device_count):
            subject.ask("set_device", torch.device(subject.platform.device_type, number))
            if subject.ask("current_device") != number:
                yield f"after set_device({number}) current_device() is {subject.ask('current_device')}"
            made = torch.empty(1, device=subject.platform.device_type).device
            if not subject.on_host and made.index != number:
                yield f"after set_device({number}) a new tensor is on {made}"
    finally:
        subject.ask("set_device", torch.device(subject.platform.device_type, before))


@check("devices.spaces", "logical, visible and physical ids lead into one another")
def spaces(subject: Subject) -> Iterator[str]:
    """An id past the end is an IndexError; an assignment to this process is followed."""
    from mainboard.platforms.device_ids import (
        get_assigned_physical_gpu_ids,
        set_assigned_physical_gpu_ids,
    )

    platform, before = subject.platform, get_assigned_physical_gpu_ids()
    physical = [
        platform.visible_device_id_to_physical_device_id(i) for i in range(subject.device_count)
    ]
    if len(set(physical)) < len(physical):
        yield f"two visible devices are one physical device: {physical}"
    try:
        set_assigned_physical_gpu_ids(physical[::-1])
        for logical, number in enumerate(physical[::-1]):
            if platform.device_id_to_physical_device_id(logical) != number:
                yield f"logical device {logical} is not the physical device {number} given to it"
            visible = platform.logical_device_id_to_visible_device_id(logical)
            if platform.visible_device_id_to_physical_device_id(visible) != number:
                yield f"logical device {logical} leads to visible device {visible}, another one"
        try:
            platform.device_id_to_physical_device_id(len(physical))
            yield f"logical device {len(physical)} has a physical id, though nobody gave it one"
        except IndexError:
            pass
    finally:
        set_assigned_physical_gpu_ids(before)


@check("devices.control", "the control variable chooses devices and their order", feature="ids")
def control(subject: Subject) -> Iterator[str]:
    """In new processes: the last device alone, all in reverse, and none."""
    subject.elsewhere("the host is one device")
    variable = subject.platform.device_control_env_var
    if not variable or variable == _UNSET:
        raise NotOffered("device_control_env_var is not set: nothing chooses visible devices")
    everything = subject.fresh("inventory")
    if "error" in everything:
        yield f"in a new process: {everything['error']}"
        return
    physical = everything["physical"]
    for chosen in dict.fromkeys([tuple(physical[-1:]), tuple(physical[::-1])]):
        setting = ",".join(map(str, chosen))
        seen = subject.fresh("inventory", environment={variable: setting})
        yield from _differences(f"{variable}={setting}", seen, everything, chosen)
    hidden = subject.fresh("inventory", environment={variable: ""})
    if hidden.get("count"):
        yield f"{variable} is empty, and {hidden['count']} devices are visible"


def _differences(
    setting: str, seen: dict[str, Any], everything: dict[str, Any], chosen: tuple[int, ...]
) -> Iterator[str]:
    """What is wrong with the devices that a setting leaves."""
    if "error" in seen or "declined" in seen:
        yield f"{setting}: {seen.get('error') or seen['declined']}"
        return
    if seen["count"] != len(chosen):
        yield f"{setting}: {seen['count']} devices are visible"
        return
    if seen["physical"] != list(chosen):
        yield f"{setting}: the visible devices are the physical ones {seen['physical']}"
    whole = dict(zip(everything["physical"], everything["facts"], strict=True))
    for number, found in zip(chosen, seen["facts"], strict=True):
        if found != whole[number]:
            yield f"{setting}: physical device {number} has other facts: {found}"
    if not seen["works"]:
        yield f"{setting}: a computation on the first device gives a wrong result"


@check("devices.copies", "what goes to the device comes back bit for bit")
def copies(subject: Subject) -> Iterator[str]:
    """Every dtype, views with gaps, no elements, no dimensions; among devices too."""
    import torch

    wanted = [*subject.platform.supported_dtypes, torch.uint8, torch.int32, torch.int64, torch.bool]
    formats = [getattr(torch, name) for name in subject.platform.capabilities().fp8_formats]
    for dtype in [*wanted, *formats]:
        host = torch.arange(-60, 60).reshape(8, 15).to(torch.float32).to(dtype)
        for what, x in (
            ("a tensor", host),
            ("a transposed view", host.t()),
            ("a view with gaps", host[::2, 3:9]),
            ("a tensor without elements", host[:0]),
            ("a number", host[0, 0]),
        ):
            there = x.to(subject.device)
            back = there.cpu()
            if there.device.type != subject.device.type:
                yield f"{dtype}: {what} moved to {subject.device} is on {there.device}"
            if back.shape != x.shape or not _same_bits(back, x):
                yield f"{dtype}: {what} comes back changed"
    for number in range(1, subject.device_count):
        there = (
            torch.arange(99).to(f"{subject.device.type}:0").to(f"{subject.device.type}:{number}")
        )
        if there.device.index != number or not torch.equal(there.cpu(), torch.arange(99)):
            yield f"a copy from device 0 to device {number} arrives as {there.device}, changed"


def _same_bits(a: Any, b: Any) -> bool:
    import torch

    return torch.equal(a.contiguous().view(-1).view(torch.uint8),
                       b.contiguous().view(-1).view(torch.uint8))  # fmt: skip


@check("devices.mixed", "tensors of two devices do not compute together")
def mixed(subject: Subject) -> Iterator[str]:
    """The host's memory and the device's are not one, nor those of two devices."""
    import torch

    subject.elsewhere("there is no other device than the host")
    here, there = torch.ones(4), torch.ones(4).to(subject.device)
    pairs = {"the host and the device": (there, here)}
    if subject.device_count > 1:
        kind = subject.device.type
        pairs["two devices"] = (torch.ones(4).to(f"{kind}:0"), torch.ones(4).to(f"{kind}:1"))
    for which, (a, b) in pairs.items():
        try:
            _ = a + b
        except RuntimeError:
            continue
        yield f"tensors of {which} are added without an error"


@check("devices.compute", "what the device computes is what the host computes")
def compute(subject: Subject) -> Iterator[str]:
    """The few operations that every program needs."""
    import torch

    torch.manual_seed(5)
    a, b = torch.randn(7, 9), torch.randn(9, 5)
    x, y = a.to(subject.device), b.to(subject.device)
    for what, found, expected in (
        ("addition", x + 1, a + 1),
        ("a matrix product", x @ y, a @ b),
        ("a sum", x.sum(0), a.sum(0)),
        ("a softmax", x.softmax(-1), a.softmax(-1)),
        ("indexing", x[:, 2:5], a[:, 2:5]),
    ):
        error = (found.cpu() - expected).abs().max().item()
        if not error <= 1e-4 * subject.requirements.tolerance:
            yield f"{what} is off by {error:.2g}"


@check("devices.random", "one seed gives the same numbers again", feature="random")
def random(subject: Subject) -> Iterator[str]:
    """manual_seed_all() reaches the generator that makes tensors on the device."""
    import torch

    draws = []
    for seed in (7, 7, 8):
        subject.ask("manual_seed_all", seed)
        draws.append(torch.rand(257, device=subject.device).cpu())
    if not torch.equal(draws[0], draws[1]):
        yield "the same seed gives other numbers"
    if torch.equal(draws[0], draws[2]):
        yield "another seed gives the same numbers"
    if not 0.0 <= draws[0].min() <= draws[0].max() < 1.0 or draws[0].unique().numel() < 200:
        yield "torch.rand gives numbers that are not between 0 and 1, or always the same"
