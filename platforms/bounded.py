"""Ask a native library something, and go on without it when it does not answer.

A driver that is stuck can hold a call for ever, in a state in which not even SIGKILL ends it. So
the question is asked in a short-lived child process, which can be left behind: the interpreter
that asks is never stuck itself, and loads no vendor's library. Where no such child can be
started (Windows, an embedded interpreter) a daemon thread asks instead.
"""

from __future__ import annotations

import os
import sys
import time

from mainboard.light_typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "DEFAULT_SECONDS",
    "RUN",
    "Outcome",
    "ask",
    "ask_ahead",
    "leave_unasked",
    "time_limit",
]

DEFAULT_SECONDS = 10.0
"""A driver that must first start eight devices takes a few seconds."""

_BOUND = "MAINBOARD_PROBE_TIMEOUT"
_LARGEST_ANSWER = 1 << 20

# As a module, a script has its bytecode; from the end of the path, it hides nothing. The endings of
# the interpreter, libraries and drivers are nobody's concern, take time, and may hang.
RUN = """
import os, sys
folder, name = os.path.split(sys.argv[1])
sys.path.append(folder)
print(__import__(name.removesuffix(".py")).main(sys.argv[2:]), flush=True)
os._exit(0)
"""
"""What the child runs: its arguments are the script and those of `main`."""


# What was asked ahead, by script and arguments.
_ahead: dict[tuple[str, ...], _Child] = {}


def _after_fork_in_child() -> None:
    """The answers are the parent's."""
    for child in _ahead.values():
        child.close()
    _ahead.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


class Outcome(NamedTuple):
    """What came of a question.

    Args:
        output: what was printed, or None when there was no answer in time.
        problem: a sentence that says why `output` is missing or incomplete.
        milliseconds: how long it took.
    """

    output: str | None
    problem: str | None
    milliseconds: float


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
        return Outcome(None, f"no child process could be started: {error}", _since(start))
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


def _begin(script: str, arguments: Sequence[str]) -> _Child | None:
    """The process that asks, or None where none can be started."""
    if hasattr(os, "posix_spawn") and _is_python(sys.executable) and os.path.isfile(script):
        return _Child(script, arguments)
    return None


def _is_python(executable: str | None) -> bool:
    """Whether the interpreter is a program that can be started again, not a host of it."""
    return bool(executable) and os.path.basename(executable or "").startswith(("python", "pypy"))


class _Child:
    """A process that asks, and the pipe on which it answers.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, script: str, arguments: Sequence[str]) -> None:
        # -I -S: nothing of the user's environment or site can change or slow the question. Nor
        # can what it has to say about bytecode be read then, so it is passed on.
        keep = ["-B"] if sys.dont_write_bytecode or sys.pycache_prefix else []
        self._output, write_end = os.pipe()
        try:
            self._pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-S", *keep, "-c", RUN, script, *arguments],
                dict(os.environ),
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, write_end, 1),
                    (os.POSIX_SPAWN_DUP2, write_end, 2),
                ],
            )
        except OSError:
            self.close()
            raise
        finally:
            os.close(write_end)

    def outcome(self, start: float, seconds: float) -> Outcome:
        """What it answers until `seconds` after the start."""
        try:
            output, in_time = _read_all(self._output, start + seconds)
        finally:
            self.close()
        pid = self._pid
        problem = _end(pid, start + seconds) if in_time else _abandon(pid, seconds)
        return Outcome(output if in_time else None, problem, _since(start))

    def leave(self) -> None:
        """Kill it."""
        self.close()
        _abandon(self._pid, 0)

    def close(self) -> None:
        """Listen no more."""
        os.close(self._output)


def _read_all(read_end: int, deadline: float) -> tuple[str, bool]:
    """What is printed until the other end closes, and whether it closed in time."""
    import select

    readable = select.poll()
    readable.register(read_end, select.POLLIN)
    printed = b""
    while len(printed) < _LARGEST_ANSWER:
        left = deadline - time.monotonic()
        if left <= 0 or not readable.poll(left * 1e3):
            return printed.decode("utf-8", "replace"), False
        part = os.read(read_end, 65536)
        if not part:
            break
        printed += part
    return printed.decode("utf-8", "replace"), True


def _end(pid: int, deadline: float) -> str | None:
    """Collect a child that has closed its output; a sentence if it ended badly."""
    while True:
        try:
            ended, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:  # the program collects its children itself
            return None
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return None if code == 0 else _bad_ending(code)
        if time.monotonic() > deadline:
            return _abandon(pid, 0)
        time.sleep(0.0005)


def _bad_ending(code: int) -> str:
    if code > 0:
        return f"the process that asked ended with exit code {code}"
    import signal

    names = {number.value: number.name for number in signal.Signals}
    return f"the process that asked was ended by {names.get(-code, f'signal {-code}')}"


def _abandon(pid: int, seconds: float) -> str:
    """Kill a child and leave it: one stuck in its driver would not be collected now."""
    import signal
    import threading

    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:  # collected by the program itself in the meantime
        return f"no answer within {seconds:g} s"
    threading.Thread(target=_collect, args=(pid,), daemon=True, name="mainboard-collect").start()
    return f"no answer within {seconds:g} s (process {pid} was killed)"


def _collect(pid: int) -> None:
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:  # collected by the program itself
        return


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
        return Outcome(None, f"the question failed with {errors[0]}", _since(start))
    if not answers:
        return Outcome(None, f"no answer within {seconds:g} s", _since(start))
    return Outcome(answers[0], None, _since(start))


def _main_of(script: str) -> Callable[[Sequence[str]], str]:
    import runpy

    main: Callable[[Sequence[str]], str] = runpy.run_path(script)["main"]
    return main


def _since(start: float) -> float:
    return (time.monotonic() - start) * 1e3
