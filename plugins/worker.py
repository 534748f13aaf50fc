"""The one call that a worker process makes before it starts work."""

from __future__ import annotations

import os
from importlib import import_module

from mainboard.errors import PlatformConflictError
from mainboard.plugins.loading import load_general_plugins

__all__ = ["PARENT_PLATFORM", "prepare_worker"]

# Set by a process that has chosen its platform; children inherit it, and Ray's workers do when it
# is in their `runtime_env`.
PARENT_PLATFORM = "MAINBOARD_PARENT_PLATFORM"

# Read before this process can choose, and so publish, a platform of its own.
_inherited = os.environ.get(PARENT_PLATFORM)


def _after_fork_in_child() -> None:
    global _inherited
    _inherited = os.environ.get(PARENT_PLATFORM)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def prepare_worker() -> None:
    """Load general plugins, and make sure that this process has its parent's platform.

    Takes no argument, so that it serves as `initializer` of a multiprocessing pool and as Ray's
    `worker_process_setup_hook`.

    Raises:
        PlatformConflictError: when the platform chosen here is not the parent's.
    """
    load_general_plugins()
    expected = _inherited
    if not expected:
        return
    # By name: plugins know no platforms, but a worker should have one thing to call.
    here = import_module("mainboard.platforms.resolve").identity()
    if here != expected:
        raise PlatformConflictError(
            f"This worker (process {os.getpid()}) chose the platform {here}; its parent chose"
            f" {expected}. Give both the same packages, devices and environment, or set"
            " MAINBOARD_PLATFORM for both. `mainboard doctor` in the worker says why it chose so."
        )
