"""Know whose code is running, and say so while it is slow, with where it stands."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mainboard.plugins.log import get_logger

__all__ = ["SLOW_SECONDS", "running", "watched"]

SLOW_SECONDS = 10.0

# The thread whose turn it is runs foreign code, and that may run more of it: a stack.
_running: list[str] = []

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_running.clear)


def running() -> str | None:
    """Whose code is running now, for the thread whose turn it is."""
    return _running[-1] if _running else None


@contextmanager
def watched(what: str, timed: bool = True) -> Iterator[None]:
    """Run somebody's code; if `timed`, warn once, with its stack, after `SLOW_SECONDS`."""
    if not timed or what == running():
        with _entered(what):
            yield
        return
    timer = threading.Timer(SLOW_SECONDS, _warn, (what, threading.get_ident(), SLOW_SECONDS))
    timer.daemon = True
    timer.name = "mainboard-plugin-watch"
    timer.start()
    try:
        with _entered(what):
            yield
    finally:
        timer.cancel()
        # A plugin that forks later must not find a second thread that is about to end.
        timer.join()


@contextmanager
def _entered(what: str) -> Iterator[None]:
    _running.append(what)
    try:
        yield
    finally:
        # A child forked in the block has an empty stack when it comes here.
        del _running[-1:]


def _warn(what: str, thread: int, seconds: float) -> None:
    import traceback

    frame = sys._current_frames().get(thread)
    stack = "".join(traceback.format_stack(frame)) if frame else "  (the thread has ended)\n"
    get_logger().warning(
        "%s has been running for %g s and everything waits for it. If it never ends, leave it out:"
        " set VLLM_PLUGINS to the plugins you want. It stands at:\n%s",
        what,
        seconds,
        stack.rstrip(),
    )
