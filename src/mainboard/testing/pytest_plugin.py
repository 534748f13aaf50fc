"""What the package adds to pytest wherever it is installed: one option, and a line in the header.

Imported at the start of every pytest run, so it imports nothing itself.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import pytest

__all__ = ["pytest_addoption", "pytest_report_header"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--mainboard-platform`."""
    group = parser.getgroup("mainboard", "conformance of platforms")
    group.addoption(
        "--mainboard-platform",
        metavar="NAME",
        default=None,
        help="the platform for conformance tests whose Requirements name none",
    )


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say which platform was asked for."""
    name = config.getoption("--mainboard-platform")
    return (
        f"mainboard: conformance tests without a platform of their own run on {name}"
        if name
        else None
    )
