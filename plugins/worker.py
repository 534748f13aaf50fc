"""What a worker process does before it starts work, and what its parent gives it for that."""

from __future__ import annotations

import os
from importlib import import_module

from mainboard.errors import PlatformConflictError, PlatformError, PluginError
from mainboard.light_typing import TYPE_CHECKING
from mainboard.plugins.loading import is_discovered, load_general_plugins

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

__all__ = ["PARENT_PLATFORM", "prepare_worker", "worker_environment"]

# Set by a process that has chosen its platform; children inherit it.
PARENT_PLATFORM = "MAINBOARD_PARENT_PLATFORM"

# What else decides which plugins a process loads and which platform it chooses.
_SETTINGS = ("MAINBOARD_PLATFORM", "VLLM_PLUGINS", "VLLM_TARGET_DEVICE", "MAINBOARD_VLLM_ALIAS")

# Read before this process can choose, and so publish, a platform of its own.
_inherited = os.environ.get(PARENT_PLATFORM)


def _after_fork_in_child() -> None:
    global _inherited
    _inherited = os.environ.get(PARENT_PLATFORM)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def worker_environment() -> dict[str, str]:
    """The variables by which a worker makes this process's choice again and checks that it did.

    A child process inherits them. Where a worker does not, pass them on: to Ray as `env_vars` of
    its `runtime_env`, to a fork server that was running before as the argument of `prepare_worker`.

    Raises:
        PlatformError: when this process can choose no platform.
    """
    _resolve().current()
    return {name: os.environ[name] for name in (PARENT_PLATFORM, *_SETTINGS) if name in os.environ}


def prepare_worker(environment: Mapping[str, str] | None = None) -> None:
    """Load general plugins, and make sure that this process has its parent's platform.

    It can be called without an argument, so it serves as `initializer` of a pool of processes and
    as Ray's `worker_process_setup_hook`.

    Args:
        environment: the parent's `worker_environment()`, for a worker that did not inherit it.

    Raises:
        PlatformConflictError: when the platform chosen here is not the parent's.
        PluginError: when this process has found its plugins by settings of its own before.
    """
    expected = _inherited
    if environment is not None:
        _take_over(environment)
        expected = environment.get(PARENT_PLATFORM)
    load_general_plugins()
    if expected:
        _compare(expected)


def _take_over(environment: Mapping[str, str]) -> None:
    """Make the parent's settings those of this process, before anything has read them."""
    given = [name for name in _SETTINGS if name in environment]
    new = [name for name in given if environment[name] != os.environ.get(name)]
    if new and is_discovered():
        raise PluginError(
            f"prepare_worker() was given its parent's {', '.join(new)}, but this worker (process"
            f" {os.getpid()}) has found its plugins by its own. Call prepare_worker() before what"
            " loads plugins or asks for the platform."
        )
    os.environ.update(environment)


def _compare(expected: str) -> None:
    resolve = _resolve()
    remedy = (
        " Give both the same packages, devices and environment, or set MAINBOARD_PLATFORM for both."
        " `mainboard doctor` in the worker says why it chose so."
    )
    try:
        here = resolve.identity()
    except PlatformError as error:
        raise PlatformConflictError(
            f"This worker (process {os.getpid()}) can choose no platform; its parent chose"
            f" {expected}.{remedy} {error}"
        ) from error
    if here != expected:
        raise PlatformConflictError(
            f"This worker (process {os.getpid()}) chose the platform {here}; its parent chose"
            f" {expected}. {_why_not(expected, resolve.selection().verdicts)}{remedy}"
        )


def _why_not(expected: str, verdicts: tuple[Any, ...]) -> str:
    """What became, in this process, of the platform that the parent chose."""
    label = expected.partition(" (")[0]
    for verdict in verdicts:
        if verdict.label == label:
            return f"Here {label} is {verdict.state} ({verdict.code}): {verdict.reason}"
    return f"Here no installed package offers {label}."


def _resolve() -> Any:
    # By name: plugins know no platforms, but a worker should have one thing to call.
    return import_module("mainboard.platforms.resolve")
