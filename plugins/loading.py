"""Load each group of plugins once per process, one plugin at a time."""

from __future__ import annotations

import os

from mainboard.errors import PluginError
from mainboard.light_typing import TYPE_CHECKING
from mainboard.plugins import alias
from mainboard.plugins.discovery import GROUP_PREFIX, Discovery, discover, discover_group
from mainboard.plugins.filtering import Allowed, allowed_from_environment
from mainboard.plugins.log import get_logger
from mainboard.plugins.plugin import Plugin, PluginState
from mainboard.plugins.turn import running, turn

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = [
    "DEFAULT_PLUGINS_GROUP",
    "PLATFORM_PLUGINS_GROUP",
    "discovered",
    "is_discovered",
    "load_general_plugins",
    "load_plugins_by_group",
    "plugins_of",
    "reset",
]

DEFAULT_PLUGINS_GROUP = "vllm.general_plugins"
PLATFORM_PLUGINS_GROUP = "vllm.platform_plugins"

# These groups hold functions that are called for what they do, so they are called once; other
# groups of the protocol hold classes and factories.
_CALLED_ONCE = (DEFAULT_PLUGINS_GROUP, PLATFORM_PLUGINS_GROUP)


class _Process:
    """What one process knows about its plugins."""

    def __init__(self, discovery: Discovery | None = None) -> None:
        self.discovery = discovery
        self.allowed = Allowed(None)
        self.groups: dict[str, tuple[Plugin, ...]] = {}
        self.general_done = False


_process = _Process()


def reset() -> None:
    """Forget every plugin and what it answered, as a new process would (for tests)."""
    global _process
    _process = _Process()


def _after_fork_in_child() -> None:
    """Start afresh: every process loads its own plugins."""
    global _process
    _process = _Process(_process.discovery)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def discovered() -> tuple[Discovery, Allowed]:
    """What is installed and what of it may run, as this process first saw it."""
    with turn():
        process = _process
        if not process.groups:
            alias.install()
            process.discovery = found = process.discovery or discover()
            process.allowed = allowed_from_environment()
            groups = dict.fromkeys((*_CALLED_ONCE, *(entry.group for entry in found.entries)))
            process.groups = {group: _admit(group, found, process.allowed) for group in groups}
            _warn_of_unmatched(found, process.allowed)
        assert process.discovery is not None
        return process.discovery, process.allowed


def is_discovered() -> bool:
    """Whether this process has found its plugins, and so has read `VLLM_PLUGINS`."""
    return bool(_process.groups)


def plugins_of(group: str) -> tuple[Plugin, ...]:
    """Every plugin of the group in the order in which it is called, filtered ones too."""
    with turn():
        found, allowed = discovered()
        if group not in _process.groups:
            entries = () if group.startswith(GROUP_PREFIX) else discover_group(group)
            _process.groups[group] = _admit(group, found._replace(entries=entries), allowed)
        return _process.groups[group]


def _admit(group: str, found: Discovery, allowed: Allowed) -> tuple[Plugin, ...]:
    return tuple(
        Plugin(entry, PluginState.FOUND if entry in allowed else PluginState.FILTERED)
        for entry in found.entries
        if entry.group == group
    )


def _warn_of_unmatched(found: Discovery, allowed: Allowed) -> None:
    for name in allowed.unmatched(found.entries):
        offered = ", ".join(entry.label for entry in found.entries) or "none"
        get_logger().warning(
            "VLLM_PLUGINS lists %r, which no installed distribution provides. Installed plugins:"
            " %s. Correct the name or install its distribution.",
            name,
            offered,
        )


def load_plugins_by_group(group: str) -> dict[str, Callable[[], Any]]:
    """Import every allowed plugin of a group; a broken one is logged and left out.

    General and platform plugins come as callables that run the plugin's function the first time
    and remember its result; plugins of other groups come as they are.

    Returns:
        The plugins by name. When two distributions use one name, the second (and any further) is
        under `distribution/name`.
    """
    plugins: dict[str, Callable[[], Any]] = {}
    with turn():
        for plugin in plugins_of(group):
            if plugin.state is PluginState.FILTERED:
                continue
            target = plugin.load()
            if plugin.state is PluginState.FAILED:
                continue
            name = plugin.entry.name if plugin.entry.name not in plugins else plugin.entry.label
            plugins[name] = plugin if group in _CALLED_ONCE else target
    return plugins


def load_general_plugins() -> None:
    """Load and call every allowed general plugin, once in this process.

    Raises:
        PluginError: when a plugin calls this itself.
    """
    if _process.general_done:
        return
    with turn():
        process = _process
        if process.general_done:
            return
        if caller := running():
            raise PluginError(
                f"load_general_plugins() was called by {caller}, while plugins are being loaded."
                " Leave the call out: the host makes it, in every process."
            )
        for plugin in plugins_of(DEFAULT_PLUGINS_GROUP):
            plugin.call()
        process.general_done = True
