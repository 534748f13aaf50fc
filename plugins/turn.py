"""Whose turn it is: one thread of a process at a time loads plugins or chooses a platform.

One lock for every group and for the choice: a plugin of one group may ask for the other, and two
locks taken in two orders would be a deadlock.
"""

from __future__ import annotations

import os
from _thread import RLock

__all__ = ["entered", "running", "turn"]

_lock = RLock()
# Foreign code may lead to more foreign code, so a stack; of the thread that has the turn.
_running: list[str] = []


def _after_fork_in_child() -> None:
    """The thread that had the turn may not exist in a child."""
    global _lock
    _lock = RLock()
    _running.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def turn() -> RLock:
    """Wait for the turn and have it in a `with` block; blocks of one thread may nest."""
    return _lock


class entered:
    """Say whose code runs in this block."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        _running.append(self._what)

    def __exit__(self, *raised: object) -> None:
        # A child forked in the block has an empty stack when it comes here.
        del _running[-1:]


def running() -> str | None:
    """Whose code is running, if any is, in the thread that has the turn."""
    return _running[-1] if _running else None
