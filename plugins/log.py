"""The library's logger, imported only when there is something to say.

Mainboard configures no logging. A program that configures none either still sees warnings: the
standard library prints them to stderr when nobody handles them. A `NullHandler` would silence the
very message that says why a plugin was not used.
"""

from __future__ import annotations

import sys

from mainboard.light_typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging

__all__ = ["debug", "get_logger"]


def get_logger() -> logging.Logger:
    """The logger `mainboard`."""
    import logging

    return logging.getLogger("mainboard")


def debug(message: str, *args: object) -> None:
    """Log at debug level, unless nobody imported `logging` and so nobody can be listening."""
    if "logging" in sys.modules:
        get_logger().debug(message, *args)
