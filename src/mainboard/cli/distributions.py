"""Installed distributions, by the standard library alone: what is installed, found and loaded."""

import os
import sys
from importlib.metadata import Distribution, entry_points
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any

__all__ = ["packages", "plugins"]

# Distributions that bear on a platform or its kernels, and the module that each installs.
_RELEVANT = MappingProxyType(
    {
        "mainboard": "mainboard",
        "torch": "torch",
        "triton": "triton",
        "vllm": "vllm",
        "transformers": "transformers",
        "kernels": "kernels",
        "flash-attn": "flash_attn",
        "nvidia-ml-py": "pynvml",
        "amdsmi": "amdsmi",
        "ray": "ray",
        "numpy": "numpy",
        "importlib-metadata": "importlib_metadata",
        "packaging": "packaging",
        "rich": "rich",
    }
)

_GROUPS = ("vllm.general_plugins", "vllm.platform_plugins")


def packages() -> list[dict[str, Any]]:
    """The relevant distributions that are installed, or whose module can be imported."""
    rows = (_package(name, module) for name, module in _RELEVANT.items())
    return [row for row in rows if row["installed"] or row["found_at"]]


def plugins() -> list[dict[str, Any]]:
    """The entry points of the plugin groups, as the standard library lists them."""
    return [
        {
            "group": group,
            "name": entry.name,
            "value": entry.value,
            "distribution": entry.dist.name if entry.dist else None,
            "version": entry.dist.version if entry.dist else None,
        }
        for group in _GROUPS
        for entry in entry_points(group=group)
    ]


def _package(name: str, module: str) -> dict[str, Any]:
    copies = list(Distribution.discover(name=name))
    found_at, problem = _found_at(module)
    row: dict[str, Any] = {
        "distribution": name,
        "installed": copies[0].version if copies else None,
        "loaded": _loaded_version(module),
        "found_at": found_at,
    }
    return row | {"note": problem or _note(copies, module, row)}


def _found_at(module: str) -> tuple[str | None, str]:
    """The folder or file that an import would take, without importing it."""
    try:
        spec = find_spec(module)
    except (ImportError, ValueError, AttributeError) as error:
        return None, f"looking for module {module!r} fails: {type(error).__name__}: {error}"
    if spec is None:
        return None, ""
    if spec.submodule_search_locations:
        return next(iter(spec.submodule_search_locations)), ""
    return spec.origin, ""


def _loaded_version(module: str) -> str | None:
    loaded = sys.modules.get(module)
    return None if loaded is None else str(getattr(loaded, "__version__", "unknown"))


def _note(copies: list[Distribution], module: str, row: dict[str, Any]) -> str:
    """What is odd about a package; empty when nothing is."""
    found_at, installed, loaded = row["found_at"], row["installed"], row["loaded"]
    if not copies:
        return "can be imported, but no distribution of that name is installed"
    if found_at is None:
        return f"is installed, but module {module!r} is not found"
    if loaded not in (None, "unknown", installed):
        return f"{loaded} is loaded, but {installed} is installed"
    home = os.path.realpath(str(copies[0].locate_file("")))
    if not _editable(copies[0]) and not os.path.realpath(found_at).startswith(home + os.sep):
        return f"is installed in {home}, but an import takes another copy"
    if len({str(copy.locate_file("")) for copy in copies}) > 1:
        return f"is installed {len(copies)} times: {', '.join(copy.version for copy in copies)}"
    return ""


def _editable(distribution: Distribution) -> bool:
    return '"editable": true' in (distribution.read_text("direct_url.json") or "")
