"""Entry points that are not plain directories on `sys.path`: zip files and other finders.

The only module that uses importlib-metadata, which costs more to import than a whole discovery.
"""

from __future__ import annotations

import sys

from mainboard.light_typing import TYPE_CHECKING
from mainboard.plugins.entry_points import EntryPoint, normalize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

__all__ = ["foreign_finders", "from_archive", "from_finders"]

_KNOWN_MODULES = ("_frozen_importlib_external", "importlib_metadata")


def foreign_finders() -> list[Any]:
    """The finders on `sys.meta_path` that know distributions of their own (frozen programs do)."""
    return [
        finder
        for finder in sys.meta_path
        if hasattr(finder, "find_distributions")
        and getattr(finder, "__module__", "").partition(".")[0] not in _KNOWN_MODULES
    ]


def from_archive(
    path: str, wanted: Callable[[str], bool]
) -> Iterator[tuple[str, list[EntryPoint]]]:
    """(normalised name, wanted entry points) of every distribution in a zip file."""
    from importlib_metadata import Distribution

    for distribution in Distribution.discover(path=[path]):
        yield _entries(distribution, wanted)


def from_finders(wanted: Callable[[str], bool]) -> Iterator[tuple[str, list[EntryPoint]]]:
    """The same for every distribution that a foreign finder knows."""
    from importlib_metadata import DistributionFinder

    context: Any = DistributionFinder.Context
    for finder in foreign_finders():
        for distribution in finder.find_distributions(context()):
            yield _entries(distribution, wanted)


def _entries(distribution: Any, wanted: Callable[[str], bool]) -> tuple[str, list[EntryPoint]]:
    name = distribution.metadata["Name"] or ""
    rows = [(entry.group, entry.name, entry.value) for entry in distribution.entry_points]
    kept = [EntryPoint(*row, name, distribution.version) for row in rows if wanted(row[0])]
    return normalize(name), kept
