"""The same reports through rich, when it is installed."""

from collections.abc import Sequence
from types import MappingProxyType
from typing import TextIO

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mainboard.cli.screen import Mark, Screen

__all__ = ["RichScreen"]

_STYLES = MappingProxyType(
    {"good": "green", "bad": "bold red", "warn": "yellow", "dim": "dim", "bold": "bold", "": ""}
)


class RichScreen(Screen):
    """A terminal with tables whose every column can be broken."""

    def __init__(self, stream: TextIO, width: int) -> None:
        super().__init__(stream, width, colour=True)
        self._console = Console(file=stream, width=width, highlight=False)

    def heading(self, text: str) -> None:
        """Begin a section."""
        self._console.print()
        self._console.print(Text(text, style="bold"))

    def line(self, text: str | Mark, indent: int = 2) -> None:
        """Write one sentence."""
        self._console.print(Padding(_as_text(text), (0, 0, 0, indent), expand=False))

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str | Mark]]) -> None:
        """Write rows, under a header unless that is empty; long cells are broken."""
        table = Table(box=None, show_header=bool(header), header_style="dim", padding=(0, 2, 0, 0))
        for name in header:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*map(_as_text, row))
        self._console.print(Padding(table, (0, 0, 0, 2), expand=False))


def _as_text(cell: str | Mark) -> Text:
    """As text, so that brackets in a message are not taken for markup."""
    return Text(cell) if isinstance(cell, str) else Text(cell.text, style=_STYLES[cell.meaning])
