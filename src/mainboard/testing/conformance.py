"""The checks as pytest classes, from which a vendor derives its own.

::

    from mainboard.testing import PlatformTests, Requirements


    class TestAcme(PlatformTests):
        requirements = Requirements("acme", offers={"streams", "kernels"})

Each check is one test, `test_<group>_<name>`; overriding it replaces it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from mainboard.testing.check import Check, State, all_checks, run
from mainboard.testing.requirements import Requirements
from mainboard.testing.subject import open_subject

if TYPE_CHECKING:
    from mainboard.testing.subject import Subject

__all__ = [
    "AttentionBackendTests",
    "ContractTests",
    "DeviceTests",
    "MemoryTests",
    "OperatorTests",
    "PlatformTests",
    "ProcessTests",
    "RegistrationTests",
    "StreamTests",
]


class _Group:
    """One group of checks as tests."""

    requirements: ClassVar[Requirements] = Requirements()

    @pytest.fixture(scope="class")
    @classmethod
    def subject(cls, request: pytest.FixtureRequest) -> Iterator[Subject]:
        """The platform of `requirements`, made the current one for these tests."""
        requirements: Requirements = request.cls.requirements
        name = request.config.getoption("--mainboard-platform", None)
        if name and not requirements.platform:
            from dataclasses import replace

            requirements = replace(requirements, platform=name)
        with open_subject(requirements) as subject:
            yield subject

    def __init_subclass__(cls, group: str = "", **kwargs: Any) -> None:
        """Give a class of this module the tests of its group."""
        super().__init_subclass__(**kwargs)
        for id, one in all_checks().items():
            if group and id.startswith(f"{group}."):
                setattr(cls, f"test_{id.replace('.', '_')}", _test_of(one))


def _test_of(one: Check) -> Callable[..., None]:
    def test(self: _Group, subject: Subject) -> None:
        result = run(one, subject)
        if result.state is State.SKIPPED:
            pytest.skip(result.text)
        if result.state is State.KNOWN:
            pytest.xfail(result.text)
        if result.state is State.FAILED:
            text = f"{one.id}: {one.summary}\n" + "\n".join(f"- {each}" for each in result.faults)
            pytest.fail(f"{text}\n{result.traceback or ''}".rstrip(), pytrace=False)

    test.__name__ = f"test_{one.id.replace('.', '_')}"
    test.__doc__ = f"{one.summary[0].upper()}{one.summary[1:]}."
    return test


class RegistrationTests(_Group, group="registration"):
    """The plugin's function: what it answers, how often, how fast, and what else it does."""


class ContractTests(_Group, group="contract"):
    """The class: its members, what they take, and what kind of answer they give."""


class DeviceTests(_Group, group="devices"):
    """The devices: their facts, their numbers, and what moves to them and back."""


class MemoryTests(_Group, group="memory"):
    """Device memory: what is counted, what is limited, and what comes back."""


class StreamTests(_Group, group="streams"):
    """Streams and events: which is current, what waits for what, and how long it took."""


class ProcessTests(_Group, group="processes"):
    """Other processes and threads: forked, spawned, and in this one."""


class OperatorTests(_Group, group="operators"):
    """The operators on the device, against the float64 reference on the host."""


class AttentionBackendTests(_Group, group="backends"):
    """Attention backends: the choice, the reasons, and that what is accepted runs."""


class PlatformTests(
    RegistrationTests,
    ContractTests,
    DeviceTests,
    MemoryTests,
    StreamTests,
    ProcessTests,
    OperatorTests,
    AttentionBackendTests,
):
    """Every check."""
