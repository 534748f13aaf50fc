"""One installed plugin in this process: imported once, called once, its failure kept as data."""

from __future__ import annotations

import time
from enum import StrEnum

from mainboard.errors import PluginError
from mainboard.light_typing import TYPE_CHECKING
from mainboard.plugins.entry_points import EntryPoint
from mainboard.plugins.log import get_logger
from mainboard.plugins.turn import turn
from mainboard.plugins.watch import watched

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["Plugin", "PluginState"]


class PluginState(StrEnum):
    """How far a plugin came."""

    FOUND = "found"
    FILTERED = "filtered"
    LOADED = "loaded"
    CALLED = "called"
    FAILED = "failed"


class Plugin:
    """An entry point and what became of it.

    Calling a plugin calls its function the first time and gives the same result ever after.
    """

    def __init__(
        self, entry: EntryPoint, state: PluginState = PluginState.FOUND, target: Any = None
    ) -> None:
        self.entry = entry
        self.state = state if target is None else PluginState.LOADED
        self.milliseconds = 0.0
        self.code: str | None = None
        self.error: BaseException | None = None
        self.traceback: str | None = None
        self.running = False
        self._target = target
        self._result: Any = None

    def __repr__(self) -> str:
        return f"<Plugin {self.entry.label} ({self.entry.value}): {self.state}>"

    @property
    def title(self) -> str:
        """The plugin as messages name it."""
        entry = self.entry
        return f"plugin {entry.name!r} of {entry.provider} ({entry.group}: {entry.value})"

    @property
    def remedy(self) -> str:
        """What to do about a plugin that fails."""
        name = self.entry.distribution
        return (
            f"Update or repair {name}, remove it (pip uninstall {name}), or leave it out by"
            " listing in VLLM_PLUGINS only the plugins you want."
        )

    def load(self) -> Any:
        """Import what the entry point names, once; None when that fails."""
        if self.state is PluginState.FOUND:
            self._target = self._guarded("was imported", self._import, PluginState.LOADED)
        return self._target

    def call(self) -> Any:
        """Load it and call it, once; None when either fails."""
        self.load()
        if self.state is PluginState.LOADED:
            self._result = self._guarded("was called", self._call, PluginState.CALLED)
        return self._result

    def _import(self) -> Any:
        from importlib import import_module

        module, _, attributes = self.entry.value.partition("[")[0].strip().partition(":")
        if not module or ":" in attributes:
            self.code = "malformed_entry_point"
            raise ValueError(
                f"{self.entry.value!r} is not an entry point; expected 'module:function'"
            )
        self.code = "import_failed"
        target: Any = import_module(module.strip())
        self.code = "attribute_missing"
        for name in filter(None, (part.strip() for part in attributes.split("."))):
            target = getattr(target, name)
        self.code = None
        return target

    def _call(self) -> Any:
        if not callable(self._target):
            self.code = "not_callable"
            raise TypeError(f"{self.entry.value} is {self._target!r}, which cannot be called")
        self.code = "plugin_raised"
        result = self._target()
        self.code = None
        return result

    def _guarded(self, verb: str, step: Callable[[], Any], reached: PluginState) -> Any:
        """Run one step; whatever it raises is this plugin's failure and nobody else's.

        Only KeyboardInterrupt passes: it is the user's, and the step can be tried again.
        """
        if self.running:
            raise PluginError(
                f"{self.title} is being loaded, and its own code asked for it again. Do what needs"
                " the loaded plugin after its function has returned."
            )
        start = time.perf_counter()
        self.running = True
        try:
            with watched(self.title):
                result = step()
        except KeyboardInterrupt:
            self.code = None
            raise
        except BaseException as error:  # noqa: BLE001
            if isinstance(error, SystemExit):
                self.code = "plugin_exited"
            self._fail(verb, error)
            return None
        else:
            self.state = reached
            return result
        finally:
            self.running = False
            self.milliseconds += (time.perf_counter() - start) * 1e3

    def _fail(self, verb: str, error: BaseException) -> None:
        from traceback import format_exception

        self.state, self.error = PluginState.FAILED, error
        self.traceback = "".join(format_exception(error))
        get_logger().warning(
            "%s failed when it %s: %s. It is not used; everything else goes on. %s\n%s",
            self.title,
            verb,
            self.cause,
            self.remedy,
            self.traceback.rstrip(),
        )

    @property
    def cause(self) -> str:
        """The exception as one phrase: its type and message."""
        if self.error is None:
            return ""
        text = str(self.error)
        return type(self.error).__name__ + (f": {text}" if text else "")

    def __call__(self) -> Any:
        """Call the plugin as its host would; a failure is raised, now and every time."""
        with turn():
            result = self.call()
        if self.state is PluginState.FAILED:
            raise PluginError(f"{self.title} failed: {self.cause}. {self.remedy}") from self.error
        return result
