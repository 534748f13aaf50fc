"""What `mainboard verify` does in a process of its own: open the platform, then every check."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mainboard.cli.child import Steps

if TYPE_CHECKING:
    from mainboard.testing import Requirements

__all__ = ["LIST", "OPEN", "steps"]

LIST = "find the checks"
"""The step whose value is the list of checks, each with its summary."""

OPEN = "open the platform"
"""The step whose value says what platform it is."""


def steps(platform: str, requirements: str, *only: str) -> Steps:
    """Every check, as a step whose value is its result.

    Args:
        platform: the platform's name, or empty for the current one.
        requirements: where its `Requirements` are, as `module:NAME`, or empty.
        only: ids or groups of checks.
    """
    from mainboard.testing import check
    from mainboard.testing.report import chosen_checks, describe
    from mainboard.testing.subject import open_subject

    listed = yield LIST, lambda: [[one.id, one.summary] for one in chosen_checks(only)]
    if listed.failure:
        return
    subject: Any = None
    with ExitStack() as stack:

        def enter() -> dict[str, Any]:
            nonlocal subject
            subject = stack.enter_context(open_subject(_requirements(platform, requirements)))
            return describe(subject)

        opened = yield OPEN, enter
        if opened.failure:
            return
        for one in chosen_checks(only):
            yield one.id, partial(lambda one: check.run(one, subject).to_dict(), one)


def _requirements(platform: str, place: str) -> Requirements:
    from dataclasses import replace

    from mainboard.testing import Requirements

    if not place:
        return Requirements(platform)
    module, _, name = place.partition(":")
    found = getattr(import_module(module), name or "REQUIREMENTS")
    if not isinstance(found, Requirements):
        raise TypeError(
            f"{place} is a {type(found).__name__}; expected a mainboard.testing.Requirements"
        )
    return replace(found, platform=platform or found.platform)
