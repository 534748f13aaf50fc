"""The modules that stand for vLLM's: what is read, written and deleted goes where the table says."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType

from mainboard.light_typing import TYPE_CHECKING
from mainboard.plugins import alias_table
from mainboard.plugins.alias_table import ABSENT, ALIASES
from mainboard.plugins.log import get_logger
from mainboard.plugins.turn import running

if TYPE_CHECKING:
    from typing import Any

__all__ = ["ALIASES", "AliasModule", "make_module", "make_spec"]

_MACHINERY = ("importlib", "_frozen_importlib", "mainboard.plugins.alias")

_told: set[str] = set()


class AliasModule(ModuleType):
    """A `vllm` module whose reads, writes and deletions go where the table says."""

    def __getattr__(self, name: str) -> Any:
        """Read a name that the import system did not put here itself."""
        alias = ALIASES[self.__name__]
        if name in alias.retired:
            _tell(f"{self.__name__}.{name}", alias.retired[name])
        if name in alias.names:
            return _resolve(alias.names[name])
        if f"{self.__name__}.{name}" in ALIASES:
            return import_module(f"{self.__name__}.{name}")
        if name == "__all__":
            behind = import_module(alias.target).__all__ if alias.target else ()
            return sorted({*alias.names, *behind} - {*alias.retired})
        if alias.target is not None and not _is_dunder(name):
            try:
                return getattr(import_module(alias.target), name)
            except AttributeError as error:
                raise AttributeError(_explain(f"{self.__name__}.{name}")) from error
        raise AttributeError(_explain(f"{self.__name__}.{name}"))

    def __setattr__(self, name: str, value: Any) -> None:
        """Write to the module behind; submodules and import attributes stay here."""
        alias = ALIASES[self.__name__]
        if name in alias.writes:
            _resolve(alias.writes[name])(value)
        elif alias.target is None or _is_dunder(name) or isinstance(value, AliasModule):
            super().__setattr__(name, value)
        else:
            setattr(*_home(alias, name), value)

    def __delattr__(self, name: str) -> None:
        """Delete what `__setattr__` wrote."""
        alias = ALIASES[self.__name__]
        if name in alias.writes:
            _resolve(alias.writes[name])(None)
        elif alias.target is None or name in vars(self):
            super().__delattr__(name)
        else:
            delattr(*_home(alias, name))

    def __dir__(self) -> list[str]:
        """The names of the module behind and of this one; retired ones are not shown."""
        alias = ALIASES[self.__name__]
        behind = dir(import_module(alias.target)) if alias.target else []
        return sorted({*super().__dir__(), *alias.names, *behind} - {*alias.retired})


def make_spec(name: str, loader: Any) -> ModuleSpec:
    """The specification of an alias.

    Raises:
        ModuleNotFoundError: the table has no such module.
    """
    if name not in ALIASES:
        # Without a name in the error: `from vllm import x` passes over one that names `x` and
        # says only "cannot import name".
        raise ModuleNotFoundError(_explain(name), path=alias_table.__file__)
    spec = ModuleSpec(name, loader, origin=alias_table.__file__, is_package=True)
    # Code that looks for files beside vLLM's finds a path, and no other finder finds a module
    # there: the folder does not exist.
    folder = os.path.join(os.path.dirname(alias_table.__file__), *name.split("."))
    spec.submodule_search_locations = [folder]
    # Known beforehand: to find out, the import system asks for each folder whether it is in a zip.
    sys.path_importer_cache[folder] = None
    return spec


def make_module(spec: ModuleSpec) -> AliasModule:
    """An alias with nothing in it yet."""
    alias = ALIASES[spec.name]
    if alias.moved:
        _tell(spec.name, alias.moved)
    module = AliasModule(spec.name, alias.reason)
    module.__file__ = alias_table.__file__
    return module


def _is_dunder(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _resolve(place: str) -> Any:
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute)


def _home(alias: alias_table.Alias, name: str) -> tuple[ModuleType, str]:
    """The module and the name there to which a name is written."""
    module, _, attribute = alias.names.get(name, f"{alias.target}:{name}").partition(":")
    return import_module(module), attribute


def _tell(name: str, instead: str) -> None:
    """Say once that a name is retired, by whom it was used, and what to use."""
    if name in _told:
        return
    _told.add(name)
    get_logger().warning(
        "%s was used by %s. vLLM %s no longer has it; Mainboard still does. Use %s.",
        name,
        running() or _user(),
        _resolve(ALIASES["vllm"].names["__version__"]).partition("+")[0],
        instead,
    )


def _user() -> str:
    """The code that reads a name or imports a module, where no plugin is being loaded."""
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").startswith(_MACHINERY):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame else "some code"


def _explain(name: str) -> str:
    for absent, what in ABSENT.items():
        if f"{name}.".startswith(f"{absent}."):
            return (
                f"{name} was asked for, but vLLM is not installed and Mainboard's stand-in for it"
                f" does not have that name, on purpose: it is {what}. Install vLLM to have it."
            )
    return (
        f"{name} was asked for, but vLLM is not installed and Mainboard's stand-in for it does not"
        f" have that name. Install vLLM, or add the name to {alias_table.__file__} and report it"
        " to Mainboard."
    )
