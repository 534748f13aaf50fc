"""Answer `import vllm...` for plugins when vLLM itself is not installed.

The finder stands at the end of `sys.meta_path`, so a real vLLM is always found first. The table of
names and the modules made from it are imported when the first `vllm` name is.
"""

from __future__ import annotations

import os
import sys

from mainboard.light_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

__all__ = ["install", "is_real_vllm_loaded"]

_ROOT = "vllm"
# The second is what it is called where nobody has imported `importlib`.
_BOOTSTRAP = ("importlib._bootstrap", "_frozen_importlib")


class _Finder:
    """Find and load what the table has."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The specification of an alias; an error when a name outside the table is imported."""
        root, dot, _ = fullname.partition(".")
        if root != _ROOT or (dot and not _is_ours(sys.modules.get(_ROOT))):
            return None
        from mainboard.plugins import alias_modules

        if _is_import(sys._getframe(1)):
            return alias_modules.make_spec(fullname, self)
        # `importlib.util.find_spec` asks whether there is such a module, which is no error.
        return (
            alias_modules.make_spec(fullname, self) if fullname in alias_modules.ALIASES else None
        )

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """An alias with nothing in it yet."""
        from mainboard.plugins.alias_modules import make_module

        return make_module(spec)

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
    return module is not None and not _is_ours(module)


def _is_ours(module: ModuleType | None) -> bool:
    return getattr(getattr(module, "__spec__", None), "loader", None) is _finder


def _is_import(frame: Any) -> bool:
    """Whether the import system looks for a module in order to load it."""
    while frame is not None and frame.f_globals.get("__name__") in _BOOTSTRAP:
        if frame.f_code.co_name == "_find_and_load_unlocked":
            return True
        frame = frame.f_back
    return False
