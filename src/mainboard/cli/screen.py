"""Reports on a terminal, in a pipe or in a file.

Colour, and lines broken at the terminal's width, are for terminals only. In a pipe each row is one
line. With rich installed a terminal gets rich's tables.
"""

import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from types import MappingProxyType
from typing import NamedTuple, TextIO

__all__ = ["Mark", "Screen", "mark", "screen_for", "stdout_reserved"]

_ANSI = MappingProxyType({"good": "32", "bad": "31;1", "warn": "33", "dim": "2", "bold": "1"})

# What a word of a report means for the person who reads it.
_MEANING = MappingProxyType(
    {
        "PASS": "good",
        "FAIL": "bad",
        "SKIP": "warn",
        "KNOWN": "warn",
        "activated": "good",
        "called": "good",
        "loaded": "good",
        "yes": "good",
        "failed": "bad",
        "declined": "dim",
        "filtered": "dim",
        "not probed": "dim",
        "no": "dim",
    }
)


class Mark(NamedTuple):
    """A text and what it means: `good`, `bad`, `warn`, `dim`, `bold`, or nothing."""

    text: str
    meaning: str = ""


def mark(word: str) -> Mark:
    """A state, such as `failed`, in the colour that it has everywhere."""
    return Mark(word, _MEANING.get(word, ""))


class Screen:
    """Headings, lines and tables as plain text.

    Args:
        stream: where to write.
        width: where to break lines; never by default.
        colour: whether to write ANSI colours.
    """

    def __init__(self, stream: TextIO, width: int | None = None, colour: bool = False) -> None:
        self.stream = stream
        self.width = width
        self.colour = colour

    def heading(self, text: str) -> None:
        """Begin a section."""
        self._write("\n" + self._paint(Mark(text, "bold")))

    def line(self, text: str | Mark, indent: int = 2) -> None:
        """Write one sentence."""
        for part in self._wrap(_as_mark(text), indent):
            self._write(" " * indent + self._paint(part))

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str | Mark]]) -> None:
        """Write rows, under a header unless that is empty; the last column may be long."""
        cells = [[Mark(name, "dim") for name in header]] if header else []
        cells += [[_as_mark(cell) for cell in row] for row in rows]
        widths = [max(len(cell.text) for cell in column) for column in zip(*cells, strict=True)]
        indent = 2 + sum(widths[:-1]) + 2 * (len(widths) - 1)
        for row in cells:
            first = "  ".join(
                self._paint(cell) + " " * (width - len(cell.text))
                for cell, width in zip(row[:-1], widths[:-1], strict=True)
            )
            last = [self._paint(part) for part in self._wrap(row[-1], indent)]
            text = f"  {first}  {last[0]}" if first else f"  {last[0]}"
            self._write(text.rstrip())
            for more in last[1:]:
                self._write(" " * indent + more)

    def _wrap(self, cell: Mark, indent: int) -> list[Mark]:
        if self.width is None or len(cell.text) <= self.width - indent:
            return [cell]
        # A column too narrow to read is worse than a line that the terminal breaks.
        width = max(self.width - indent, 30)
        parts = textwrap.wrap(cell.text, width, break_long_words=False, break_on_hyphens=False)
        return [Mark(part, cell.meaning) for part in parts]

    def _paint(self, cell: Mark) -> str:
        if not self.colour or not cell.meaning:
            return cell.text
        return f"\x1b[{_ANSI[cell.meaning]}m{cell.text}\x1b[0m"

    def _write(self, text: str) -> None:
        print(text, file=self.stream)


def _as_mark(cell: str | Mark) -> Mark:
    return cell if isinstance(cell, Mark) else Mark(cell)


def screen_for(stream: TextIO | None) -> Screen:
    """The best screen for a stream; a process without stdout has a screen that shows nothing."""
    if stream is None:
        return Screen(open(os.devnull, "w", encoding="utf-8"))
    if not stream.isatty():
        return Screen(stream)
    colour = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    width = shutil.get_terminal_size().columns
    if colour and find_spec("rich") is not None:
        from mainboard.cli.rich_screen import RichScreen

        return RichScreen(stream, width)
    return Screen(stream, width, colour)


@contextmanager
def stdout_reserved() -> Iterator[None]:
    """Send to stderr what others print meanwhile, native code too: stdout is the report's."""
    try:
        saved = os.dup(1)
        os.dup2(2, 1)
    except OSError:  # one of them is closed
        with redirect_stdout(sys.stderr):
            yield
        return
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
