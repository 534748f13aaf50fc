"""Plugins of vLLM's protocol: found, filtered, loaded once, and reported.

`load_general_plugins()` is what a program calls in each of its processes; `prepare_worker()` does
the same in a worker and checks that it has its parent's platform; `report()` says what became of
every installed plugin.
"""

from mainboard.plugins.loading import (
    DEFAULT_PLUGINS_GROUP,
    PLATFORM_PLUGINS_GROUP,
    load_general_plugins,
    load_plugins_by_group,
)
from mainboard.plugins.reporting import PluginReport, Report, report
from mainboard.plugins.worker import prepare_worker

__all__ = [
    "DEFAULT_PLUGINS_GROUP",
    "PLATFORM_PLUGINS_GROUP",
    "PluginReport",
    "Report",
    "load_general_plugins",
    "load_plugins_by_group",
    "prepare_worker",
    "report",
]
