"""How a built-in platform answers whether it can be used here."""

from __future__ import annotations

import time

from mainboard.light_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from mainboard.platforms.verdict import Verdict

__all__ = ["Activation", "Decline", "answer"]


class Decline(Exception):
    """The platform cannot be used here, and this is why.

    Args:
        code: a stable identifier of the reason.
        reason: the same as a sentence.
        remedy: what to do about it, if anything can be done.
        trace: the traceback of the error behind it, if there was one.
    """

    def __init__(
        self, code: str, reason: str, remedy: str | None = None, trace: str | None = None
    ) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.remedy = remedy
        self.trace = trace


class Activation:
    """The platform can be used here.

    Args:
        value: where its class is.
        code: a stable identifier of how it was found.
        reason: the same as a sentence.
        remedy: what would make it better, if anything would.
    """

    def __init__(self, value: str, code: str, reason: str, remedy: str | None = None) -> None:
        self.value = value
        self.code = code
        self.reason = reason
        self.remedy = remedy


def answer(name: str, examine: Callable[[], Activation]) -> Verdict:
    """Run a platform's checks, and say with the time they took how they ended.

    An error that no check expected is not turned into an answer; it reaches the caller.
    """
    from mainboard.platforms.verdict import BUILT_IN, State, Verdict

    start = time.perf_counter()
    try:
        found = examine()
    except Decline as no:
        return Verdict(
            name,
            BUILT_IN,
            State.DECLINED,
            no.code,
            no.reason,
            milliseconds=(time.perf_counter() - start) * 1e3,
            remedy=no.remedy,
            traceback=no.trace,
        )
    return Verdict(
        name,
        BUILT_IN,
        State.ACTIVATED,
        found.code,
        found.reason,
        milliseconds=(time.perf_counter() - start) * 1e3,
        value=found.value,
        remedy=found.remedy,
    )
