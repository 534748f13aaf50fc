"""What was found, filtered, loaded and failed, as data."""

from __future__ import annotations

from mainboard.light_typing import TYPE_CHECKING, NamedTuple
from mainboard.plugins.loading import discovered, plugins_of
from mainboard.plugins.plugin import Plugin, PluginState

if TYPE_CHECKING:
    from typing import Any

__all__ = ["PluginReport", "Report", "report"]


class PluginReport(NamedTuple):
    """One plugin; `also_from` names other distributions that use its name in the same group."""

    group: str
    name: str
    distribution: str
    version: str
    value: str
    state: PluginState
    milliseconds: float
    code: str | None
    error: str | None
    remedy: str | None
    traceback: str | None
    also_from: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything above as plain JSON types."""
        milliseconds, also_from = round(self.milliseconds, 3), list(self.also_from)
        row = self._asdict() | {"milliseconds": milliseconds, "also_from": also_from}
        return row | {"state": str(self.state)}


class Report(NamedTuple):
    """Every plugin of this process, and how discovery and `VLLM_PLUGINS` went."""

    plugins: tuple[PluginReport, ...]
    allowed: tuple[str, ...] | None
    unmatched: tuple[str, ...]
    cache_file: str | None
    cache_note: str
    discovery_milliseconds: float

    def to_dict(self) -> dict[str, Any]:
        """Everything above as plain JSON types."""
        return {
            "plugins": [plugin.to_dict() for plugin in self.plugins],
            "allowed": None if self.allowed is None else list(self.allowed),
            "unmatched": list(self.unmatched),
            "cache_file": self.cache_file,
            "cache_note": self.cache_note,
            "discovery_milliseconds": round(self.discovery_milliseconds, 3),
        }


def report() -> Report:
    """How every installed plugin stands; finds plugins, but loads none."""
    found, allowed = discovered()
    groups = dict.fromkeys(entry.group for entry in found.entries)
    plugins = [plugin for group in groups for plugin in plugins_of(group)]
    return Report(
        tuple(_row(plugin, plugins) for plugin in plugins),
        allowed.names,
        allowed.unmatched(found.entries),
        found.cache_file,
        found.cache_note,
        found.milliseconds,
    )


def _row(plugin: Plugin, plugins: list[Plugin]) -> PluginReport:
    entry = plugin.entry
    failed = plugin.state is PluginState.FAILED
    return PluginReport(
        entry.group,
        entry.name,
        entry.distribution,
        entry.version,
        entry.value,
        plugin.state,
        plugin.milliseconds,
        plugin.code,
        plugin.cause if failed else None,
        plugin.remedy if failed else None,
        plugin.traceback,
        tuple(
            other.entry.distribution
            for other in plugins
            if other.entry[:2] == entry[:2] and other is not plugin
        ),
    )
