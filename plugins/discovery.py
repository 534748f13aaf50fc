"""Which plugins are installed: entry points of every distribution on `sys.path`."""

from __future__ import annotations

import os
import sys
import time

from mainboard.light_typing import TYPE_CHECKING, NamedTuple
from mainboard.plugins.cache import Cache, Findings
from mainboard.plugins.cache import directory as cache_directory
from mainboard.plugins.entry_points import EntryPoint, entries_of, normalize, scan
from mainboard.plugins.foreign import foreign_finders, from_archive, from_finders

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["GROUP_PREFIX", "Discovery", "discover", "discover_group", "find"]

GROUP_PREFIX = "vllm."


class Discovery(NamedTuple):
    """The installed plugins, in a stable order, and how they were found."""

    entries: tuple[EntryPoint, ...]
    cache_file: str | None
    cache_note: str
    milliseconds: float


def discover() -> Discovery:
    """Find the entry points of every group of the protocol, from the cache if it still holds."""
    start = time.perf_counter()
    paths = _search_path()
    # What another kind of finder knows has no directory whose change could be seen.
    cache = Cache(None if foreign_finders() else cache_directory(), paths)
    findings = cache.load()
    if findings is None:
        findings = find(paths, _in_protocol, GROUP_PREFIX.encode())
        cache.store(findings)
    entries = _in_order(findings.entries)
    milliseconds = (time.perf_counter() - start) * 1e3
    return Discovery(entries, cache.file, cache.note, milliseconds)


def discover_group(group: str) -> tuple[EntryPoint, ...]:
    """Find the entry points of one group, whatever its name; never from the cache."""
    findings = find(_search_path(), lambda name: name == group, group.encode())
    return _in_order(findings.entries)


def find(paths: Sequence[str], wanted: Callable[[str], bool], hint: bytes) -> Findings:
    """Look into every path; a distribution hides its namesakes further down, as in an import."""
    hidden: set[str] = set()
    entries: list[EntryPoint] = []
    watched: list[str] = []
    for path in paths:
        if os.path.isfile(path):
            _merge(from_archive(path, wanted), hidden, entries)
            continue
        here = scan(path)
        for name in here.keys() - hidden:
            metadata = here[name]
            found = entries_of(metadata, wanted, hint)
            entries += found
            # A development install rewrites its .egg-info in place; an edit of a file that holds
            # plugins does not touch the directory above either.
            if found or metadata.endswith(".egg-info"):
                watched += [metadata, os.path.join(metadata, "entry_points.txt")]
        hidden.update(here)
    if foreign_finders():
        _merge(from_finders(wanted), hidden, entries)
    return Findings(tuple(entries), tuple(watched))


def _merge(
    found: Iterable[tuple[str, list[EntryPoint]]], hidden: set[str], entries: list[EntryPoint]
) -> None:
    for name, rows in found:
        if name not in hidden:
            hidden.add(name)
            entries += rows


def _search_path() -> list[str]:
    """`sys.path` as absolute paths, each once; like an import, passing over what is no string."""
    return list(dict.fromkeys(os.path.abspath(path) for path in sys.path if isinstance(path, str)))


def _in_protocol(group: str) -> bool:
    return group.startswith(GROUP_PREFIX)


def _in_order(entries: Iterable[EntryPoint]) -> tuple[EntryPoint, ...]:
    """By distribution and name, so that every machine and every run has the same order."""
    return tuple(sorted(entries, key=lambda entry: (normalize(entry.distribution), *entry)))
