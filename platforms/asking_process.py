"""A short-lived process that asks a native library something, and the pipe on which it answers."""

from __future__ import annotations

import os
import sys
import time

from mainboard.light_typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

__all__ = ["RUN", "AskingProcess", "Outcome", "since"]

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


class AskingProcess:
    """A process that asks, and the pipe on which it answers.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, script: str, arguments: Sequence[str]) -> None:
        start = _fork if _is_young() else _spawn
        self._output, write_end = os.pipe()
        try:
            self.pid = start(script, arguments, write_end)
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
        pid = self.pid
        problem = _end(pid, start + seconds) if in_time else _abandon(pid, seconds)
        return Outcome(output if in_time else None, problem, since(start))

    def leave(self) -> None:
        """Kill it."""
        self.close()
        _abandon(self.pid, 0)

    def close(self) -> None:
        """Listen no more."""
        os.close(self._output)


def _is_young() -> bool:
    """Whether this process can be forked for it: alone, and without any library's state.

    A fork is there before a new interpreter has begun, which is a quarter of all the time that a
    program waits. It is safe where no other thread can hold a lock; and where nobody has loaded
    `ctypes`, nobody has started a native library that the child would find half-way.
    """
    if sys.platform != "linux" or "ctypes" in sys.modules:
        return False
    try:
        return len(os.listdir("/proc/self/task")) == 1
    except OSError:
        return False


def _fork(script: str, arguments: Sequence[str], write_end: int) -> int:
    pid = os.fork()
    if pid == 0:
        _answer(script, arguments, write_end)
    return pid


def _answer(script: str, arguments: Sequence[str], write_end: int) -> NoReturn:
    """What the forked process does, and nothing of what its parent does at its end."""
    status = 1
    try:
        os.dup2(write_end, 1)
        os.dup2(write_end, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        _close_others()
        folder, name = os.path.split(script)
        sys.path.append(folder)
        # Not by `print`: what the parent has written to its own stdout may wait there still.
        _write(__import__(name.removesuffix(".py")).main(arguments))
        status = 0
    except BaseException as error:  # noqa: BLE001 - it is told to the process that asked
        _write(f"{type(error).__name__}: {error}")
    finally:
        os._exit(status)


def _close_others() -> None:
    """Close what the parent has open: a process that is left behind must not keep it so."""
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        try:
            if descriptor > 2:
                os.close(descriptor)
        except OSError:  # by which the folder was read
            continue


def _write(text: str) -> None:
    left = text.encode("utf-8", "surrogateescape")
    while left:
        left = left[os.write(1, left) :]


def _spawn(script: str, arguments: Sequence[str], write_end: int) -> int:
    # -I -S: nothing of the user's environment or site can change or slow the question. Nor can
    # what it has to say about bytecode be read then, so it is passed on.
    keep = ["-B"] if sys.dont_write_bytecode or sys.pycache_prefix else []
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-I", "-S", *keep, "-c", RUN, script, *arguments],
        dict(os.environ),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, write_end, 1),
            (os.POSIX_SPAWN_DUP2, write_end, 2),
        ],
    )


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


def since(start: float) -> float:
    """The milliseconds since then, by `time.monotonic`."""
    return (time.monotonic() - start) * 1e3
