"""A word on what is being waited for, once the wait is long."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

__all__ = ["progress_bar", "waiting_for"]

_PATIENCE = 2.0
_BAR = 30


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


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Show on the terminal how far a long piece of work has come, once it has taken two seconds.

    Yields:
        What to call with the stage's name, how much is done, and how much there is. Nothing is
        shown when stderr is no terminal.
    """
    start = time.monotonic()
    longest = 0

    def advance(stage: str, done: int, total: int) -> None:
        nonlocal longest
        spent = time.monotonic() - start
        if sys.stderr is None or not sys.stderr.isatty() or spent < _PATIENCE:
            return
        filled = _BAR * done // max(total, 1)
        text = f"{stage} [{'#' * filled}{'.' * (_BAR - filled)}] {done}/{total}, {spent:.0f} s"
        longest = max(longest, len(text))
        print(f"\r{text:<{longest}}", end="", file=sys.stderr, flush=True)

    try:
        yield advance
    finally:
        if longest:
            print("\r" + " " * longest + "\r", end="", file=sys.stderr, flush=True)
