"""The candidates for `current_platform`: built-in platforms, and platforms of plugins.

Each is asked at most once per resolution and always answers with a verdict.
"""

from __future__ import annotations

import sys
import time
import types
from functools import partial
from importlib import import_module

from mainboard.light_typing import TYPE_CHECKING
from mainboard.platforms.verdict import BUILT_IN, State, Verdict
from mainboard.plugins.alias import is_real_vllm_loaded
from mainboard.plugins.entry_points import EntryPoint
from mainboard.plugins.loading import PLATFORM_PLUGINS_GROUP, plugins_of
from mainboard.plugins.log import get_logger
from mainboard.plugins.plugin import Plugin, PluginState
from mainboard.plugins.turn import entered
from mainboard.plugins.watch import watched

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

__all__ = [
    "BUILT_INS",
    "BuiltInCandidate",
    "Candidate",
    "PluginCandidate",
    "builtin_platform_plugins",
    "candidates",
]

# Where each one's `probe()` is, in order of preference. The class is imported when it is chosen.
BUILT_INS: Mapping[str, str] = types.MappingProxyType(
    {
        "cuda": "mainboard.platforms.cuda_probe",
        "rocm": "mainboard.platforms.rocm_probe",
        "cpu": "mainboard.platforms.cpu",
    }
)


class Fault(Exception):
    """Why an answer is not a usable platform; `code` is the verdict's."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Candidate:
    """Something that may become `current_platform`."""

    _watch: type[entered] = watched
    remedy = "This is a fault of Mainboard: please report it with the output of `mainboard doctor`."

    def __init__(self, name: str, provider: str, title: str) -> None:
        self.title = title
        self.error: BaseException | None = None
        self._class: type[Any] | None = None
        self.verdict = Verdict(
            name, provider, State.NOT_PROBED, "not_needed", "The choice did not depend on it."
        )

    def probe(self) -> None:
        """Ask the candidate, and check that what it answers is a platform."""
        if self.verdict.state is not State.NOT_PROBED:
            return
        start = time.perf_counter()
        answer = self._guarded("probe_failed", "failed when it was probed", self._ask)
        self.verdict = answer or self.verdict
        if self.verdict.state is State.ACTIVATED:
            self._guarded("class_import_failed", "could not be imported", self._check)
        milliseconds = (time.perf_counter() - start) * 1e3
        self.verdict = self.verdict._replace(milliseconds=milliseconds)

    def build(self) -> Any:
        """The platform object, or None when its constructor fails."""
        assert self._class is not None
        return self._guarded("constructor_failed", "raised when it was constructed", self._class)

    def _ask(self) -> Verdict:
        raise NotImplementedError

    def _check(self) -> None:
        self._class = check_class(self._class or self.verdict.value)

    def _guarded(self, code: str, what: str, step: Callable[[], Any]) -> Any:
        """Run a step that may run foreign code; what it raises becomes the verdict."""
        try:
            with self._watch(self.title):
                return step()
        except KeyboardInterrupt:
            raise
        except Fault as fault:
            self._fail(fault.code, str(fault), fault.__cause__)
        except BaseException as error:  # noqa: BLE001
            value = f" ({self.verdict.value})" if self.verdict.value else ""
            reason = f"{self.title}{value} {what}: {type(error).__name__}: {error}."
            self._fail(code, reason, error)
        return None

    def _fail(self, code: str, reason: str, error: BaseException | None) -> None:
        from traceback import format_exception

        self.error = error
        traceback = "".join(format_exception(error)) if error else None
        self.verdict = self.verdict._replace(
            state=State.FAILED, code=code, reason=reason, remedy=self.remedy, traceback=traceback
        )
        if traceback:
            get_logger().warning("%s\n%s", reason, traceback.rstrip())


class BuiltInCandidate(Candidate):
    """A platform of Mainboard's own; its module's `probe()` answers."""

    # Built-in probes bound their own slow calls.
    _watch = entered

    def __init__(self, name: str) -> None:
        super().__init__(name, BUILT_IN, f"built-in platform {name!r}")

    def _ask(self) -> Verdict:
        verdict: Verdict = import_module(BUILT_INS[self.verdict.name]).probe()
        return verdict


class PluginCandidate(Candidate):
    """A platform of an installed distribution; the plugin's function answers."""

    def __init__(self, plugin: Plugin) -> None:
        super().__init__(plugin.entry.name, plugin.entry.provider, plugin.title)
        self.plugin = plugin
        self.remedy = plugin.remedy
        if plugin.state is PluginState.FILTERED:
            self.verdict = self.verdict._replace(
                state=State.FILTERED,
                code="left_out_by_vllm_plugins",
                reason="VLLM_PLUGINS is set and does not list it.",
                remedy=f"Add {plugin.entry.label} to VLLM_PLUGINS.",
            )

    def _ask(self) -> Verdict:
        plugin, verdict = self.plugin, self.verdict
        value = plugin.call()
        if plugin.state is PluginState.FAILED:
            self.error = plugin.error
            return verdict._replace(
                state=State.FAILED,
                code=plugin.code or "plugin_raised",
                reason=f"{plugin.title} failed: {plugin.cause}.",
                remedy=plugin.remedy,
                traceback=plugin.traceback,
            )
        if value is None:
            reason = "Its function returned None: it does not serve this machine."
            return verdict._replace(state=State.DECLINED, code="plugin_declined", reason=reason)
        if not isinstance(value, (str, type)):
            raise Fault(
                "value_not_a_class",
                f"{plugin.title} returned {value!r}; expected None, 'package.module.Class' or a"
                " class.",
            )
        reason = "Its function named a platform class."
        path = value if isinstance(value, str) else f"{value.__module__}.{value.__qualname__}"
        self._class = value if isinstance(value, type) else None
        return verdict._replace(state=State.ACTIVATED, code="usable", reason=reason, value=path)

    def _check(self) -> None:
        try:
            super()._check()
        except Fault as fault:
            reason = f"{self.title} returned {self.verdict.value!r}: {fault}"
            raise Fault(fault.code, reason) from fault.__cause__


def candidates(replacement: Mapping[str, Callable[[], Any]] | None = None) -> list[Candidate]:
    """Every candidate in order of preference.

    Args:
        replacement: functions by name that stand for the installed platform plugins.
    """
    if replacement is None:
        plugins = list(plugins_of(PLATFORM_PLUGINS_GROUP))
    else:
        plugins = [_replaced(name, function) for name, function in replacement.items()]
    foreign = [PluginCandidate(plugin) for plugin in plugins]
    return [*foreign, *map(BuiltInCandidate, BUILT_INS)]


def _replaced(name: str, function: Callable[[], Any]) -> Plugin:
    value = f"{getattr(function, '__module__', '?')}:{getattr(function, '__qualname__', '?')}"
    entry = EntryPoint(PLATFORM_PLUGINS_GROUP, name, value, "(unknown)", "distribution")
    return Plugin(entry, target=function)


def check_class(value: Any) -> type[Any]:
    """The platform class that a path names, or the class itself once it is known to be one."""
    found = import_class(value) if isinstance(value, str) else value
    if not isinstance(found, type):
        raise Fault("not_a_class", f"that is {found!r}, not a class.")
    from mainboard.platforms.interface import Platform

    bases: list[type[Any]] = [Platform]
    # A class written for vLLM derives from vLLM's own base when that is installed.
    if is_real_vllm_loaded() and (interface := sys.modules.get("vllm.platforms.interface")):
        bases.append(interface.Platform)
    if not issubclass(found, tuple(bases)):
        mro = ", ".join(f"{base.__module__}.{base.__qualname__}" for base in found.__mro__[1:])
        raise Fault(
            "not_a_platform",
            "that class does not derive from vllm.platforms.interface.Platform (here"
            f" mainboard.platforms.Platform); its bases are {mro}.",
        )
    return found


def import_class(path: str) -> Any:
    """What `package.module.Class` or `package.module:Class` names."""
    module, _, name = path.partition(":") if ":" in path else path.rpartition(".")
    parts = [*module.split("."), *name.split(".")]
    if not all(part.isidentifier() for part in parts):
        raise Fault("path_malformed", "that is not of the form 'package.module.Class'.")
    try:
        found: Any = import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise Fault("module_missing", f"there is no module {error.name!r}.") from error
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise Fault("class_missing", _missing(found, part)) from error
    return found


def _missing(owner: Any, name: str) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, [other for other in dir(owner) if other[0] != "_"], n=3)
    hint = f"; it has {', '.join(close)}" if close else ""
    return f"{getattr(owner, '__name__', owner)!r} has no {name!r}{hint}."


def _qualname_if_usable(name: str) -> str | None:
    verdict: Verdict = import_module(BUILT_INS[name]).probe()
    return verdict.value if verdict.state is State.ACTIVATED else None


builtin_platform_plugins: dict[str, Callable[[], str | None]] = {
    name: partial(_qualname_if_usable, name) for name in BUILT_INS
}
"""The built-in platforms as functions of the plugin protocol, as vLLM offers its own."""
