"""vLLM's logger: `init_logger`, its `*_once` methods and its logging configuration.

Imported only when a plugin asks for it, and configures the logger `vllm` alone.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import MethodType
from typing import Any

from mainboard.plugins.vllm_names.logging_utils import NewLineFormatter

__all__ = ["DEFAULT_LOGGING_CONFIG", "init_logger", "logger", "suppress_logging"]

_FORMAT = "%(levelname)s %(asctime)s [%(filename)s:%(lineno)d] %(message)s"
_DATE_FORMAT = "%m-%d %H:%M:%S"

# A plain dictionary that plugins edit in place and hand to `logging.config` themselves. It writes
# to stderr unless VLLM_LOGGING_STREAM says otherwise; vLLM writes to stdout, which here belongs to
# the program that loads the plugins.
DEFAULT_LOGGING_CONFIG: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "vllm": {
            "class": "mainboard.plugins.vllm_names.logging_utils.NewLineFormatter",
            "datefmt": _DATE_FORMAT,
            "format": os.environ.get("VLLM_LOGGING_PREFIX", "") + _FORMAT,
        },
        "vllm_color": {
            "class": "mainboard.plugins.vllm_names.logging_utils.ColoredFormatter",
            "datefmt": _DATE_FORMAT,
            "format": os.environ.get("VLLM_LOGGING_PREFIX", "") + _FORMAT,
        },
    },
    "handlers": {
        "vllm": {
            "class": "logging.StreamHandler",
            "formatter": "vllm",
            "level": os.environ.get("VLLM_LOGGING_LEVEL", "INFO").upper(),
            "stream": os.environ.get("VLLM_LOGGING_STREAM", "ext://sys.stderr"),
        }
    },
    "loggers": {"vllm": {"handlers": ["vllm"], "level": "DEBUG", "propagate": False}},
}


def _use_color() -> bool:
    """Whether text is coloured; `VLLM_LOGGING_COLOR`, `NO_COLOR` and `FORCE_COLOR` decide first."""
    wanted = os.environ.get("VLLM_LOGGING_COLOR", "auto")
    if os.environ.get("NO_COLOR", "0") != "0" or wanted == "0":
        return False
    forced = wanted == "1" or os.environ.get("FORCE_COLOR", "0") != "0"
    return forced or sys.stderr.isatty()


class _VllmLogger(logging.Logger):
    """What `init_logger` returns, for annotations: a logger with four more methods."""

    def debug_once(self, message: object, *args: object, **options: Any) -> None:
        """Log at debug level unless the same was logged before."""
        _log_once(self, logging.DEBUG, message, args, options)

    def info_once(self, message: object, *args: object, **options: Any) -> None:
        """Log at info level unless the same was logged before."""
        _log_once(self, logging.INFO, message, args, options)

    def warning_once(self, message: object, *args: object, **options: Any) -> None:
        """Log a warning unless the same was logged before."""
        _log_once(self, logging.WARNING, message, args, options)

    def error_once(self, message: object, *args: object, **options: Any) -> None:
        """Log an error unless the same was logged before."""
        _log_once(self, logging.ERROR, message, args, options)


_seen: set[tuple[str, int, str]] = set()


def _log_once(
    target: logging.Logger,
    level: int,
    message: object,
    args: tuple[object, ...],
    options: dict[str, Any],
) -> None:
    # vLLM's argument that restricts a message to some ranks; there is no engine, so no rank, here.
    options.pop("scope", None)
    key = (target.name, level, str(message) % args if args else str(message))
    if key not in _seen:
        _seen.add(key)
        # Three frames up is the caller: this function and the method stand between.
        target.log(level, message, *args, **{"stacklevel": 3, **options})


def init_logger(name: str) -> _VllmLogger:
    """The logger of this name, with `debug_once`, `info_once`, `warning_once`, `error_once`."""
    target: Any = logging.getLogger(name)
    for method in ("debug_once", "info_once", "warning_once", "error_once"):
        # Not hasattr(): Transformers gives every logger methods of these names, which take less.
        if method not in vars(target):
            setattr(target, method, MethodType(getattr(_VllmLogger, method), target))
    result: _VllmLogger = target
    return result


@contextmanager
def suppress_logging(level: int = logging.INFO) -> Iterator[None]:
    """A scope in which no logger at all logs this level or below."""
    before = logging.root.manager.disable
    logging.disable(level)
    try:
        yield
    finally:
        logging.disable(before)


@cache
def _configure() -> None:
    """Give the logger `vllm` its handler, unless the program already has, or forbids it."""
    if os.environ.get("VLLM_CONFIGURE_LOGGING", "1") == "0" or logging.getLogger("vllm").handlers:
        return
    # What `dictConfig` would make of the dictionary above; its module costs more than this one.
    text, to = DEFAULT_LOGGING_CONFIG["formatters"]["vllm"], DEFAULT_LOGGING_CONFIG["handlers"]
    stream = sys.stdout if to["vllm"]["stream"] == "ext://sys.stdout" else sys.stderr
    handler = logging.StreamHandler(stream)
    handler.set_name("vllm")
    handler.setLevel(to["vllm"]["level"])
    handler.setFormatter(NewLineFormatter(text["format"], text["datefmt"]))
    target = logging.getLogger("vllm")
    target.addHandler(handler)
    target.setLevel(DEFAULT_LOGGING_CONFIG["loggers"]["vllm"]["level"])
    target.propagate = False


_configure()
logger = init_logger("vllm.logger")
