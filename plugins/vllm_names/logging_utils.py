"""The formatters that vLLM's logging configuration names."""

import logging
from typing import Any

__all__ = ["ColoredFormatter", "NewLineFormatter"]

_RESET = "\033[0m"
_GREY = "\033[90m"
_COLORS = {"DEBUG": "\033[37m", "INFO": "\033[32m", "WARNING": "\033[33m", "ERROR": "\033[31m"}


class NewLineFormatter(logging.Formatter):
    """Repeat the line's prefix before every further line of a message."""

    def __init__(
        self, fmt: Any = None, datefmt: Any = None, style: Any = "%", log_level: str = "INFO"
    ) -> None:
        super().__init__(fmt, datefmt, style)

    def format(self, record: logging.LogRecord) -> str:
        """The record as text, one prefix a line."""
        # vLLM's own format asks for these two.
        fields = vars(record)
        fields.setdefault("fileinfo", record.filename if "filename" in fields else record.name)
        fields.setdefault("vllm_process_name", record.processName)
        text = super().format(record)
        prefix, found, _ = text.partition(record.message) if record.message else ("", "", "")
        return text.replace("\n", "\n" + prefix) if found else text


class ColoredFormatter(NewLineFormatter):
    """The same with the level in its colour and the time in grey."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as coloured text; the record itself stays as it is."""
        painted = logging.makeLogRecord(record.__dict__)
        color = _COLORS.get(record.levelname, _COLORS["ERROR"])
        painted.levelname = f"{color}{record.levelname}{_RESET}"
        return super().format(painted)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """The time, in grey."""
        return f"{_GREY}{super().formatTime(record, datefmt)}{_RESET}"
