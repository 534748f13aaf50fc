"""Answer `import vllm...` for plugins when vLLM itself is not installed.

The finder stands at the end of `sys.meta_path`, so a real vLLM is always found first.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from types import ModuleType

from mainboard.light_typing import TYPE_CHECKING
from mainboard.plugins import alias_table
from mainboard.plugins.alias_table import ALIASES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from typing import Any

__all__ = ["AliasModule", "install", "is_real_vllm_loaded"]

_ROOT = "vllm"


class AliasModule(ModuleType):
    """A `vllm` module whose reads, writes and deletions go where the table says."""

    def __getattr__(self, name: str) -> Any:
        """Read a name that the import system did not put here itself."""
        alias = ALIASES[self.__name__]
        if name in alias.names:
            return _resolve(alias.names[name])
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
            setattr(import_module(alias.target), name, value)

    def __delattr__(self, name: str) -> None:
        """Delete what `__setattr__` wrote."""
        alias = ALIASES[self.__name__]
        if name in alias.writes:
            _resolve(alias.writes[name])(None)
        elif alias.target is None or name in vars(self):
            super().__delattr__(name)
        else:
            delattr(import_module(alias.target), name)

    def __dir__(self) -> list[str]:
        """The names of the module behind and of this one."""
        alias = ALIASES[self.__name__]
        behind = dir(import_module(alias.target)) if alias.target else []
        return sorted({*super().__dir__(), *alias.names, *behind})


class _Finder:
    """Find and load what the table has."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The specification of an alias; an error for a `vllm` name that is not in the table."""
        root, dot, _ = fullname.partition(".")
        if root != _ROOT or (dot and not isinstance(sys.modules.get(_ROOT), AliasModule)):
            return None
        if fullname not in ALIASES:
            # Without a name in the error: `from vllm import x` passes over one that names `x` and
            # says only "cannot import name".
            raise ModuleNotFoundError(_explain(fullname), path=alias_table.__file__)
        from importlib.machinery import ModuleSpec

        # Not a subclass of `importlib.abc.Loader`, whose module would be imported for it.
        loader: Any = self
        return ModuleSpec(fullname, loader, origin=alias_table.__file__, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """An alias with nothing in it yet."""
        module = AliasModule(spec.name, ALIASES[spec.name].reason)
        module.__file__ = alias_table.__file__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run: the module behind is imported when a name of it is read."""


_finder = _Finder()


def install() -> None:
    """Put the finder at the end of `sys.meta_path`, once; `MAINBOARD_VLLM_ALIAS=0` leaves it out.

    A module that was imported as vLLM before stays what it is.
    """
    if os.environ.get("MAINBOARD_VLLM_ALIAS") != "0" and _finder not in sys.meta_path:
        sys.meta_path.append(_finder)


def is_real_vllm_loaded() -> bool:
    """Whether `vllm` is imported and is not ours."""
    module = sys.modules.get(_ROOT)
    return module is not None and not isinstance(module, AliasModule)


def _is_dunder(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _resolve(place: str) -> Any:
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute)


def _explain(name: str) -> str:
    return (
        f"{name} was asked for, but vLLM is not installed and Mainboard's stand-in for it does not"
        f" have that name. Install vLLM, or add the name to {alias_table.__file__} and report it"
        " to Mainboard."
    )
