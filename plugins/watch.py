"""Say which plugin is slow while it is slow, and where it stands."""

from __future__ import annotations

import sys

from mainboard.light_typing import TYPE_CHECKING
from mainboard.plugins.log import get_logger
from mainboard.plugins.turn import entered, running

if TYPE_CHECKING:
    from threading import Timer

__all__ = ["SLOW_SECONDS", "watched"]

SLOW_SECONDS = 10.0


class watched(entered):
    """Run somebody's code; warn once, with its stack, when it has taken `SLOW_SECONDS`."""

    _timer: Timer | None = None

    def __enter__(self) -> None:
        if self._what != running():
            self._timer = _start(self._what)
        super().__enter__()

    def __exit__(self, *raised: object) -> None:
        super().__exit__(*raised)
        if self._timer is not None:
            self._timer.cancel()
            # A plugin that forks later must not find a second thread that is about to end.
            self._timer.join()


def _start(what: str) -> Timer:
    import threading

    timer = threading.Timer(SLOW_SECONDS, _warn, (what, threading.get_ident(), SLOW_SECONDS))
    timer.daemon = True
    timer.name = "mainboard-plugin-watch"
    timer.start()
    return timer


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
