"""Plugins of vLLM's protocol: found, filtered, loaded once, and reported.

`load_general_plugins()` is what a program calls in each of its processes. `prepare_worker()` does
the same in a worker, and checks that it has its parent's platform; `worker_environment()` is what
the parent passes on where workers do not inherit its environment. `report()` says what became of
every installed plugin. Importing this package finds and loads nothing.
"""

# Type checkers take this for true. `typing` itself would be most of what the import costs.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from mainboard.plugins.loading import DEFAULT_PLUGINS_GROUP as DEFAULT_PLUGINS_GROUP
    from mainboard.plugins.loading import PLATFORM_PLUGINS_GROUP as PLATFORM_PLUGINS_GROUP
    from mainboard.plugins.loading import load_general_plugins as load_general_plugins
    from mainboard.plugins.loading import load_plugins_by_group as load_plugins_by_group
    from mainboard.plugins.reporting import PluginReport as PluginReport
    from mainboard.plugins.reporting import Report as Report
    from mainboard.plugins.reporting import report as report
    from mainboard.plugins.worker import prepare_worker as prepare_worker
    from mainboard.plugins.worker import worker_environment as worker_environment

__all__ = [
    "DEFAULT_PLUGINS_GROUP",
    "PLATFORM_PLUGINS_GROUP",
    "PluginReport",
    "Report",
    "load_general_plugins",
    "load_plugins_by_group",
    "prepare_worker",
    "report",
    "worker_environment",
]

# Where each lazy name lives; it becomes a plain attribute when it is first read.
_HOMES = {
    "DEFAULT_PLUGINS_GROUP": "loading",
    "PLATFORM_PLUGINS_GROUP": "loading",
    "PluginReport": "reporting",
    "Report": "reporting",
    "load_general_plugins": "loading",
    "load_plugins_by_group": "loading",
    "prepare_worker": "worker",
    "report": "reporting",
    "worker_environment": "worker",
}


def __getattr__(name: str) -> "Any":
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"mainboard.plugins.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
