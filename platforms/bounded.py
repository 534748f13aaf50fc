"""Ask a native library something, and go on without it when it does not answer.

A driver that is stuck can hold a call for ever, in a state in which not even SIGKILL ends it. So
the question is asked in a short-lived child process, which can be left behind: the interpreter
that asks is never stuck itself, and loads no vendor's library. The child is a fork while this
process has no other thread and no native library, and a new interpreter afterwards. Where no such
child can be started (Windows, an embedded interpreter) a daemon thread asks instead.
"""

from __future__ import annotations

import os
import sys
import time

from mainboard.light_typing import TYPE_CHECKING
from mainboard.platforms.asking_process import AskingProcess, Outcome, since

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "DEFAULT_SECONDS",
    "Outcome",
    "ask",
    "ask_ahead",
    "leave_unasked",
    "time_limit",
]

DEFAULT_SECONDS = 10.0
"""A driver that must first start eight devices takes a few seconds."""

_BOUND = "MAINBOARD_PROBE_TIMEOUT"

# What was asked ahead, by script and arguments.
_ahead: dict[tuple[str, ...], AskingProcess] = {}


def _after_fork_in_child() -> None:
    """The answers are the parent's."""
    for child in _ahead.values():
        child.close()
    _ahead.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def time_limit() -> float:
    """The seconds to wait for a driver: `MAINBOARD_PROBE_TIMEOUT`, or the default."""
    setting = os.environ.get(_BOUND, "")
    try:
        seconds = float(setting) if setting else DEFAULT_SECONDS
    except ValueError:
        raise ValueError(f"{_BOUND} is {setting!r}, but must be a number of seconds") from None
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{_BOUND} is {setting!r}, but must be more than 0 and finite")
    return seconds


def ask(script: str, arguments: Sequence[str], seconds: float) -> Outcome:
    """Run `script`, a Python file with a function `main(arguments) -> str`, for a bounded time."""
    start = time.monotonic()
    try:
        child = _ahead.pop((script, *arguments), None) or _begin(script, arguments)
    except OSError as error:
        return Outcome(None, f"no child process could be started: {error}", since(start))
    if child is None:
        return _ask_thread(script, arguments, seconds)
    return child.outcome(start, seconds)


def ask_ahead(script: str, arguments: Sequence[str]) -> None:
    """Start asking in a child process, where that can be done, what `ask` is about to be asked."""
    try:
        child = _begin(script, arguments)
    except OSError:  # `ask` will say so
        return
    if child is not None:
        _ahead[script, *arguments] = child


def leave_unasked() -> None:
    """Give up what was asked ahead and then not wanted."""
    for question in tuple(_ahead):
        # Another thread may do the same.
        if child := _ahead.pop(question, None):
            child.leave()


def _begin(script: str, arguments: Sequence[str]) -> AskingProcess | None:
    """The process that asks, or None where none can be started."""
    if hasattr(os, "posix_spawn") and _is_python(sys.executable) and os.path.isfile(script):
        return AskingProcess(script, arguments)
    return None


def _is_python(executable: str | None) -> bool:
    """Whether the interpreter is a program that can be started again, not a host of it."""
    return bool(executable) and os.path.basename(executable or "").startswith(("python", "pypy"))


def _ask_thread(script: str, arguments: Sequence[str], seconds: float) -> Outcome:
    import threading

    start = time.monotonic()
    answers: list[str] = []
    errors: list[str] = []

    def work() -> None:
        try:
            answers.append(_main_of(script)(arguments))
        except BaseException as error:  # noqa: BLE001 - it is told to the thread that asked
            errors.append(f"{type(error).__name__}: {error}")

    thread = threading.Thread(target=work, daemon=True, name="mainboard-ask")
    thread.start()
    thread.join(seconds)
    if errors:
        return Outcome(None, f"the question failed with {errors[0]}", since(start))
    if not answers:
        return Outcome(None, f"no answer within {seconds:g} s", since(start))
    return Outcome(answers[0], None, since(start))


def _main_of(script: str) -> Callable[[Sequence[str]], str]:
    import runpy

    main: Callable[[Sequence[str]], str] = runpy.run_path(script)["main"]
    return main
