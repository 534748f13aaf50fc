"""A word on what is being waited for, once the wait is long."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

__all__ = ["waiting_for"]

_PATIENCE = 2.0


@contextmanager
def waiting_for(what: str) -> Iterator[None]:
    """Show on the terminal what takes longer than two seconds, and for how long it has.

    Nothing is shown when stderr is no terminal.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        yield
        return
    done = Event()
    watcher = Thread(target=_show, args=(what, done), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _show(what: str, done: Event) -> None:
    start = time.monotonic()
    if done.wait(_PATIENCE):
        return
    text = ""
    while not done.is_set():
        text = f"{what} ... {time.monotonic() - start:.0f} s"
        print(f"\r{text}", end="", file=sys.stderr, flush=True)
        done.wait(0.5)
    print("\r" + " " * len(text) + "\r", end="", file=sys.stderr, flush=True)
