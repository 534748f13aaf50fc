"""What this program runs on: `mainboard.platforms.current_platform`.

It is resolved when it is first read, once per process, and is then a plain attribute.
`selection()` returns the decision with every candidate's verdict, `explain()` prints it, and
`use_platform(name)` is a scope with another platform. Importing this package resolves nothing and
imports neither torch nor any plugin.
"""

# Type checkers take this for true. `typing` itself would be most of what the import costs.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from mainboard.platforms.candidates import (
        builtin_platform_plugins as builtin_platform_plugins,
    )
    from mainboard.platforms.decision import Selection as Selection
    from mainboard.platforms.interface import CpuArchEnum as CpuArchEnum
    from mainboard.platforms.interface import DeviceCapability as DeviceCapability
    from mainboard.platforms.interface import Platform as Platform
    from mainboard.platforms.interface import PlatformEnum as PlatformEnum
    from mainboard.platforms.interface import UnspecifiedPlatform as UnspecifiedPlatform
    from mainboard.platforms.resolve import (
        resolve_current_platform_cls_qualname as resolve_current_platform_cls_qualname,
    )
    from mainboard.platforms.resolve import resolve_obj_by_qualname as resolve_obj_by_qualname
    from mainboard.platforms.resolve import selection as selection
    from mainboard.platforms.resolve import survey as survey
    from mainboard.platforms.resolve import use_platform as use_platform
    from mainboard.platforms.verdict import State as State
    from mainboard.platforms.verdict import Verdict as Verdict

    current_platform: Platform

__all__ = [
    "CpuArchEnum",
    "DeviceCapability",
    "Platform",
    "PlatformEnum",
    "Selection",
    "State",
    "UnspecifiedPlatform",
    "Verdict",
    "builtin_platform_plugins",
    "current_platform",
    "explain",
    "resolve_current_platform_cls_qualname",
    "resolve_obj_by_qualname",
    "selection",
    "survey",
    "use_platform",
]

# Where each lazy name lives; it becomes a plain attribute when it is first read.
_HOMES = {
    "CpuArchEnum": "interface",
    "DeviceCapability": "interface",
    "Platform": "interface",
    "PlatformEnum": "interface",
    "UnspecifiedPlatform": "interface",
    "Selection": "decision",
    "State": "verdict",
    "Verdict": "verdict",
    "builtin_platform_plugins": "candidates",
    "resolve_current_platform_cls_qualname": "resolve",
    "resolve_obj_by_qualname": "resolve",
    "selection": "resolve",
    "survey": "resolve",
    "use_platform": "resolve",
}


def __getattr__(name: str) -> "Any":
    # An AttributeError from here would turn into "cannot import name" and lose its cause; what
    # keeps a platform from being chosen is a PlatformError, which passes.
    if name == "current_platform":
        from mainboard.platforms.ahead import asked_ahead

        with asked_ahead():
            from mainboard.platforms.resolve import current

            return current()
    from importlib import import_module

    if name == "_current_platform":
        # vLLM's name for the platform as far as it is resolved; writing it goes through the alias.
        return globals().get("current_platform")
    if name == "load_plugins_by_group":
        # Not kept: hosts replace it here to stand in for installed plugins (see resolve).
        return import_module("mainboard.plugins").load_plugins_by_group
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"mainboard.platforms.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def explain() -> None:
    """Print which platform is used, by which rule, and every candidate's reason."""
    from mainboard.platforms.resolve import selection

    print(selection().explain_text())
