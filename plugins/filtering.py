"""`VLLM_PLUGINS`: which of the installed plugins may run."""

from __future__ import annotations

import os

from mainboard.light_typing import TYPE_CHECKING, NamedTuple
from mainboard.plugins.entry_points import EntryPoint, normalize

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Allowed", "allowed_from_environment"]


class Allowed(NamedTuple):
    """The names that may run; None allows every plugin."""

    names: tuple[str, ...] | None

    def __contains__(self, entry: object) -> bool:
        """Whether this entry point may run."""
        if self.names is None:
            return True
        return isinstance(entry, EntryPoint) and any(matches(name, entry) for name in self.names)

    def unmatched(self, entries: Iterable[EntryPoint]) -> tuple[str, ...]:
        """The names that no entry point answers to."""
        known = tuple(entries)
        return tuple(
            name for name in self.names or () if not any(matches(name, entry) for entry in known)
        )


def matches(name: str, entry: EntryPoint) -> bool:
    """Whether `name` or `distribution/name` means this entry point."""
    distribution, slash, plugin = name.rpartition("/")
    if not slash:
        return name == entry.name
    return plugin == entry.name and normalize(distribution) == normalize(entry.distribution)


def allowed_from_environment() -> Allowed:
    """`VLLM_PLUGINS`: unset is all, a comma-separated list is only those, empty is none."""
    text = os.environ.get("VLLM_PLUGINS")
    if text is None:
        return Allowed(None)
    return Allowed(tuple(filter(None, (name.strip() for name in text.split(",")))))
