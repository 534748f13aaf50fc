"""Ask a driver before anything else is done: it answers while the rest is imported and looked at.

Only what the first look at a machine says will be asked anyway is asked ahead. Nobody's answer
changes by it, and nobody waits for one that turns out not to be needed.
"""

from __future__ import annotations

import os
import sys

from mainboard.platforms.machine import this_machine

__all__ = ["asked_ahead"]

# The built-in platforms that ask a driver, and look for a device before.
_ASKING = ("mainboard.platforms.cuda_probe",)

# A platform that is asked for by name is the only one probed.
_BY_NAME = ("MAINBOARD_PLATFORM", "VLLM_TARGET_DEVICE")

# One for each process: an answer is kept.
_first = [None]


class asked_ahead:
    """Have the drivers' answers on their way in this block, and leave what is not taken in it."""

    def __enter__(self) -> None:
        try:
            _first.pop()
        except IndexError:
            return
        if not any(os.environ.get(name) for name in _BY_NAME):
            for name in _ASKING:
                _ask(name)

    def __exit__(self, *raised: object) -> None:
        if bounded := sys.modules.get("mainboard.platforms.bounded"):
            bounded.leave_unasked()


def _ask(name: str) -> None:
    try:
        # What `importlib` takes to import is for later.
        __import__(name, fromlist=["ask_ahead"]).ask_ahead(this_machine())
    except Exception as error:  # noqa: BLE001 - the probe meets it again, and makes it a verdict
        from mainboard.plugins.log import debug

        debug("%s could not ask ahead: %s", name, error)
