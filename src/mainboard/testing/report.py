"""What came of every check of a platform, for people, programs and badges."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from mainboard import __version__
from mainboard.testing.check import Check, Result, State, all_checks, run
from mainboard.testing.requirements import Requirements
from mainboard.testing.subject import open_subject

if TYPE_CHECKING:
    from mainboard.testing.subject import Subject

__all__ = ["Report", "chosen_checks", "describe", "verify"]


class Report(NamedTuple):
    """The results of one platform.

    Args:
        platform: what it is, as `describe` says.
        results: one for each check, in order.
    """

    platform: dict[str, Any]
    results: tuple[Result, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed, and at least one passed."""
        states = [result.state for result in self.results]
        return State.FAILED not in states and State.PASSED in states

    def count(self, state: State) -> int:
        """How many checks ended so."""
        return sum(result.state is state for result in self.results)

    def summary(self) -> str:
        """One line."""
        counts = {
            "passed": self.count(State.PASSED),
            "failed": self.count(State.FAILED),
            "known faults": self.count(State.KNOWN),
            "skipped": self.count(State.SKIPPED),
        }
        said = ", ".join(f"{number} {word}" for word, number in counts.items() if number)
        label, provider = self.platform.get("label", "?"), self.platform.get("provider", "?")
        return f"{label} ({provider}) with mainboard {__version__}: {said or 'no checks'}"

    def badge(self) -> dict[str, Any]:
        """The summary in the form of shields.io's endpoint badge."""
        passed, failed = self.count(State.PASSED), self.count(State.FAILED)
        known = self.count(State.KNOWN)
        colour = "red" if failed or not passed else "yellow" if known else "brightgreen"
        return {
            "schemaVersion": 1,
            "label": f"mainboard {__version__}",
            "message": f"{passed}/{passed + failed + known} conformant",
            "color": colour,
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything above as plain JSON types."""
        return {
            "mainboard": __version__,
            "platform": self.platform,
            "passed": self.passed,
            "summary": self.summary(),
            "badge": self.badge(),
            "results": [result.to_dict() for result in self.results],
        }


def describe(subject: Subject) -> dict[str, Any]:
    """What platform it is that was checked."""
    from mainboard.platforms.foreign_calls import drift
    from mainboard.platforms.interface import PLATFORM_API_VERSION

    cls = type(subject.platform)
    return {
        "label": subject.label,
        "provider": subject.verdict.provider,
        "class": f"{cls.__module__}.{cls.__qualname__}",
        "device_type": subject.platform.device_type,
        "dispatch_key": subject.platform.dispatch_key,
        "devices": subject.device_count,
        "contract": ".".join(map(str, PLATFORM_API_VERSION)),
        "retired": [each.detail for each in drift(subject.platform) if each.kind == "retired"],
    }


def chosen_checks(only: Iterable[str] = ()) -> list[Check]:
    """The checks whose id, or whose group, is named; all by default.

    Raises:
        ValueError: a name means no check.
    """
    wanted = tuple(only)
    known = all_checks()
    for name in wanted:
        if name not in known and not any(id.startswith(f"{name}.") for id in known):
            raise ValueError(f"no check or group is called {name!r}; checks are {', '.join(known)}")
    return [
        one
        for id, one in known.items()
        if not wanted or id in wanted or id.partition(".")[0] in wanted
    ]


def verify(
    requirements: Requirements | str = "",
    only: Iterable[str] = (),
    on_result: Callable[[Result], None] | None = None,
) -> Report:
    """Run the checks on a platform, in this process and in those that they start.

    Args:
        requirements: what is demanded of the platform, or its name.
        only: ids or groups of checks; all by default.
        on_result: called with each result when it is there.

    Raises:
        PlatformError: the platform cannot be used here.
        ValueError: `only` names no check.
    """
    if isinstance(requirements, str):
        requirements = Requirements(requirements)
    chosen = chosen_checks(only)
    results = []
    with open_subject(requirements) as subject:
        for one in chosen:
            results.append(run(one, subject))
            if on_result is not None:
                on_result(results[-1])
        return Report(describe(subject), tuple(results))
