"""Guarded probes: on a broken machine, what goes wrong is a part of the report."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

__all__ = ["Attempt", "attempt", "failure", "quiet"]


class Attempt(NamedTuple):
    """What a probe returned, or else how it failed, as plain JSON types."""

    value: Any
    failure: dict[str, str] | None

    @property
    def cause(self) -> str:
        """The failure as one phrase; empty when there is none."""
        return "" if self.failure is None else f"{self.failure['type']}: {self.failure['message']}"


def attempt(probe: Callable[[], Any]) -> Attempt:
    """Call the probe; whatever it raises is its answer. Only KeyboardInterrupt passes."""
    try:
        return Attempt(probe(), None)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - SystemExit too: a package may try to exit
        return Attempt(None, failure(error))


def failure(error: BaseException) -> dict[str, str]:
    """An exception as its type, its message with those of its causes, and its traceback."""
    from traceback import format_exception

    messages = [str(error)]
    cause = error.__cause__
    while cause is not None:
        messages.append(f"{type(cause).__name__}: {cause}")
        cause = cause.__cause__
    return {
        "type": type(error).__name__,
        "message": "; because of ".join(messages),
        "traceback": "".join(format_exception(error)),
    }


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Mainboard's warnings from being logged a second time."""
    import logging

    logger = logging.getLogger("mainboard")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
