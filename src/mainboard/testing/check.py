"""One thing that a platform must do, and what came of it.

A check is a generator over the faults that it finds, one sentence each. What a platform does not
offer is no fault unless its requirements promise it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import StrEnum
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from mainboard.testing.subject import Subject

__all__ = ["GROUPS", "Check", "NotOffered", "Result", "State", "all_checks", "check", "run"]

GROUPS = (
    "registration",
    "contract",
    "devices",
    "memory",
    "streams",
    "processes",
    "operators",
    "backends",
)
"""The groups of checks in their order, each a module of `mainboard.testing.checks`."""


class State(StrEnum):
    """What came of a check."""

    PASSED = "PASS"
    FAILED = "FAIL"
    SKIPPED = "SKIP"
    KNOWN = "KNOWN"


class NotOffered(Exception):
    """The platform has nothing to check here; the message says what it lacks."""


class Check(NamedTuple):
    """One check: what it is called, what must be so, and the function that looks.

    Args:
        id: `group.name`.
        summary: what must be so, as one phrase.
        function: yields a sentence for each fault; raises `NotOffered` where there is nothing.
        feature: the feature of `Requirements.offers` that makes `NotOffered` a fault.
    """

    id: str
    summary: str
    function: Callable[[Subject], Iterable[str]]
    feature: str | None = None


class Result(NamedTuple):
    """What came of one check.

    Args:
        id: the check's.
        summary: the check's.
        state: passed, failed, skipped, or failed as the requirements know.
        milliseconds: how long it took.
        faults: a sentence each.
        reason: why it was skipped, or why its faults are known.
        traceback: where a check or the platform raised.
    """

    id: str
    summary: str
    state: State
    milliseconds: float
    faults: tuple[str, ...] = ()
    reason: str | None = None
    traceback: str | None = None

    @property
    def text(self) -> str:
        """The faults, one a line, or the reason."""
        return "\n".join(self.faults) or self.reason or ""

    def to_dict(self) -> dict[str, Any]:
        """Everything above as plain JSON types."""
        return {
            **self._asdict(),
            "state": str(self.state),
            "milliseconds": round(self.milliseconds, 1),
            "faults": list(self.faults),
        }


_CHECKS: dict[str, Check] = {}

Function = Callable[["Subject"], Iterator[str]]


def check(id: str, summary: str, feature: str | None = None) -> Callable[[Function], Function]:
    """Make a function a check."""

    def add(function: Function) -> Function:
        _CHECKS[id] = Check(id, summary, function, feature)
        return function

    return add


def all_checks() -> Mapping[str, Check]:
    """Every check by its id, in order."""
    for group in GROUPS:
        import_module(f"mainboard.testing.checks.{group}")
    order = {group: place for place, group in enumerate(GROUPS)}
    return dict(sorted(_CHECKS.items(), key=lambda item: order[item[0].partition(".")[0]]))


def run(one: Check, subject: Subject) -> Result:
    """Run a check; what it or the platform raises is a fault. Only KeyboardInterrupt passes."""
    requirements = subject.requirements
    if one.id in requirements.skip:
        return Result(one.id, one.summary, State.SKIPPED, 0.0, reason=requirements.skip[one.id])
    start = time.perf_counter()
    faults, missing, traceback = _look(one, subject)
    if missing is not None and one.feature in requirements.offers and one.feature is not None:
        faults.append(f"{one.feature!r} is promised, but {missing}")
    milliseconds = (time.perf_counter() - start) * 1e3
    result = Result(one.id, one.summary, State.PASSED, milliseconds, tuple(faults))
    if one.id in requirements.known_faults:
        known = requirements.known_faults[one.id]
        if faults or missing is not None:
            return result._replace(state=State.KNOWN, reason=known, traceback=traceback)
        stale = f"it passes, but known_faults lists it ({known}); take it off the list"
        return result._replace(state=State.FAILED, faults=(stale,))
    if faults:
        return result._replace(state=State.FAILED, traceback=traceback)
    if missing is not None:
        return result._replace(state=State.SKIPPED, reason=missing)
    return result


def _look(one: Check, subject: Subject) -> tuple[list[str], str | None, str | None]:
    """A check's faults, what the platform does not offer, and where something raised."""
    faults: list[str] = []
    try:
        faults += one.function(subject)
    except NotOffered as error:
        return faults, str(error), None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - the platform is foreign code
        from traceback import extract_tb, format_exception

        last = extract_tb(error.__traceback__)[-1]
        where = f"{last.filename.rpartition('/')[2]}:{last.lineno}"
        faults.append(f"{type(error).__name__}: {error} ({where})")
        return faults, None, "".join(format_exception(error))
    return faults, None, None
