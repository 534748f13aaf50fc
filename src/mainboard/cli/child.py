"""Run risky steps in a process of their own, and learn from its death which step killed it.

A compiled kernel or a driver can end its process or never answer. What runs here is a module with
a generator `steps()` of (name, function) pairs, to which each function's `Attempt` is sent back.
The child writes a line before and after every step; the parent reads them.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from importlib import import_module
from typing import IO, Any, NamedTuple

from mainboard.cli.attempt import Attempt, attempt, quiet
from mainboard.cli.progress import waiting_for

__all__ = ["START", "Step", "Steps", "run_steps"]

START = "start the process"
"""The name of the step that a child which dies before its first step was in."""

Steps = Generator[tuple[str, Callable[[], Any]], Attempt, None]
"""What a module for a child process offers as `steps()`."""

_LIMIT_S = 240.0


class Step(NamedTuple):
    """One step of a child process: its name, and its value or else how it failed."""

    name: str
    value: Any
    failure: dict[str, str] | None


def run_steps(
    module: str, what: str, limit_s: float = _LIMIT_S, arguments: Sequence[str] = ()
) -> list[Step]:
    """Run every step of a module in a fresh process.

    Args:
        module: the module whose `steps()` to run.
        what: what the user is waiting for.
        limit_s: the child is killed after this many seconds.
        arguments: what `steps` is called with.
    """
    # -P and this path: the child finds the same packages, wherever the parent was started.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-P", "-X", "faulthandler", "-m", __name__, module, *arguments]
    with (
        waiting_for(what),
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env=environment
        ) as child,
    ):
        timer = threading.Timer(limit_s, child.kill)
        timer.daemon = True
        timer.start()
        assert child.stdout is not None
        steps, running = _read(child.stdout)
        child.wait()
        in_time = timer.is_alive()
        timer.cancel()
    if child.returncode != 0 or running is not None:
        end = _end(child.returncode, limit_s if not in_time else None)
        steps.append(Step(running or START, None, end))
    return steps


def _read(lines: IO[str]) -> tuple[list[Step], str | None]:
    """The steps that ended, and the one that did not."""
    steps: list[Step] = []
    running = None
    for line in lines:
        message = json.loads(line)
        if "begins" in message:
            running = message["begins"]
        else:
            steps.append(Step(**message))
            running = None
    return steps, running


def _end(code: int, limit_s: float | None) -> dict[str, str]:
    """How a process ended that should have gone on."""
    if limit_s is not None:
        kind, message = "TimeoutError", f"no answer within {limit_s:.0f} s; the process was killed"
    elif code < 0:
        kind = signal.Signals(-code).name
        message = f"the process was ended by {kind}; its stack is on stderr"
    else:
        kind, message = "ChildProcessError", f"the process ended with status {code}; see stderr"
    return {"type": kind, "message": message, "traceback": ""}


def _main(module: str, *arguments: str) -> None:
    from mainboard.cli.screen import stdout_reserved

    # What is wrong with platforms and plugins the parent has logged before.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as channel, stdout_reserved(), quiet():
        for message in _messages(module, arguments):
            print(json.dumps(message), file=channel, flush=True)


def _messages(module: str, arguments: Sequence[str]) -> Iterator[dict[str, Any]]:
    steps: Steps = import_module(module).steps(*arguments)
    try:
        name, function = next(steps)
        while True:
            yield {"begins": name}
            result = attempt(function)
            yield Step(name, result.value, result.failure)._asdict()
            name, function = steps.send(result)
    except StopIteration:
        return


if __name__ == "__main__":
    _main(*sys.argv[1:])
