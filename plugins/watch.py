"""Say which plugin is slow while it is slow, and where it stands."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mainboard.plugins.log import get_logger
from mainboard.plugins.turn import entered, running

__all__ = ["SLOW_SECONDS", "watched"]

SLOW_SECONDS = 10.0


@contextmanager
def watched(what: str) -> Iterator[None]:
    """Run somebody's code; warn once, with its stack, when it has taken `SLOW_SECONDS`."""
    if what == running():
        yield
        return
    timer = threading.Timer(SLOW_SECONDS, _warn, (what, threading.get_ident(), SLOW_SECONDS))
    timer.daemon = True
    timer.name = "mainboard-plugin-watch"
    timer.start()
    try:
        with entered(what):
            yield
    finally:
        timer.cancel()
        # A plugin that forks later must not find a second thread that is about to end.
        timer.join()


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
