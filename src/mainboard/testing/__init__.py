"""The conformance kit: what a platform must do, as tests that its vendor runs.

A vendor derives a test class from `PlatformTests` and says in a `Requirements` object what the
platform promises; `mainboard verify NAME` runs the same checks without pytest. Importing this
package imports neither torch nor pytest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mainboard.testing.check import Check as Check
    from mainboard.testing.check import NotOffered as NotOffered
    from mainboard.testing.check import Result as Result
    from mainboard.testing.check import State as State
    from mainboard.testing.check import all_checks as all_checks
    from mainboard.testing.conformance import AttentionBackendTests as AttentionBackendTests
    from mainboard.testing.conformance import ContractTests as ContractTests
    from mainboard.testing.conformance import DeviceTests as DeviceTests
    from mainboard.testing.conformance import MemoryTests as MemoryTests
    from mainboard.testing.conformance import OperatorTests as OperatorTests
    from mainboard.testing.conformance import PlatformTests as PlatformTests
    from mainboard.testing.conformance import ProcessTests as ProcessTests
    from mainboard.testing.conformance import RegistrationTests as RegistrationTests
    from mainboard.testing.conformance import StreamTests as StreamTests
    from mainboard.testing.report import Report as Report
    from mainboard.testing.report import verify as verify
    from mainboard.testing.requirements import Requirements as Requirements
    from mainboard.testing.subject import Subject as Subject
    from mainboard.testing.subject import open_subject as open_subject

_HOMES = {
    "Check": "check",
    "NotOffered": "check",
    "Result": "check",
    "State": "check",
    "all_checks": "check",
    "AttentionBackendTests": "conformance",
    "ContractTests": "conformance",
    "DeviceTests": "conformance",
    "MemoryTests": "conformance",
    "OperatorTests": "conformance",
    "PlatformTests": "conformance",
    "ProcessTests": "conformance",
    "RegistrationTests": "conformance",
    "StreamTests": "conformance",
    "Report": "report",
    "verify": "report",
    "Requirements": "requirements",
    "Subject": "subject",
    "open_subject": "subject",
}

__all__ = [
    "AttentionBackendTests",
    "Check",
    "ContractTests",
    "DeviceTests",
    "MemoryTests",
    "NotOffered",
    "OperatorTests",
    "PlatformTests",
    "ProcessTests",
    "RegistrationTests",
    "Report",
    "Requirements",
    "Result",
    "State",
    "StreamTests",
    "Subject",
    "all_checks",
    "open_subject",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
