"""A device that differs from the CPU and needs no hardware, for tests of platforms.

Its memory cannot be read by the host, it has a limit, work runs in streams of its own, and tensors
of it and of the host do not compute together. `FAKE_DEVICES` says how many are plugged in; without
it there are none, and installing the package changes nothing.
"""

from __future__ import annotations

import os

__all__ = ["autoload", "plugged", "register", "visible"]


def plugged() -> int:
    """How many devices the machine has."""
    return int(os.environ.get("FAKE_DEVICES") or 0)


def visible() -> list[int]:
    """The physical ids of those that `FAKE_VISIBLE_DEVICES` leaves, in its order."""
    setting = os.environ.get("FAKE_VISIBLE_DEVICES")
    if setting is None:
        return list(range(plugged()))
    return [int(entry) for entry in setting.split(",") if entry.strip()]


def register() -> str | None:
    """Name the platform's class when a device is plugged in, for `vllm.platform_plugins`."""
    return "fake_device.platform.FakePlatform" if visible() else None


def autoload() -> None:
    """Add the device to torch when one is plugged in, at the end of `import torch`."""
    if plugged():
        from fake_device import device

        device.install()
