"""The parts of the conformance kit: checks, requirements, reports."""

# Overrides do what the contract says of them, or should.
# ruff: noqa: D102

import inspect
import json
from collections.abc import Iterator
from typing import Any

import pytest

from mainboard.platforms.cpu import CpuPlatform
from mainboard.platforms.interface import Platform
from mainboard.platforms.verdict import BUILT_IN, Verdict
from mainboard.platforms.verdict import State as Verdicts
from mainboard.testing import (
    Check,
    NotOffered,
    PlatformTests,
    Report,
    Requirements,
    Result,
    State,
    Subject,
    all_checks,
)
from mainboard.testing.check import GROUPS, run
from mainboard.testing.checks.contract import signature_fault
from mainboard.testing.requirements import FEATURES


def subject(**requirements: Any) -> Subject:
    """The CPU's platform with some requirements."""
    verdict = Verdict("cpu", BUILT_IN, Verdicts.ACTIVATED, "always_available", "It is there.")
    return Subject(CpuPlatform(), verdict, Requirements("cpu", **requirements))


def outcome(function: Any, feature: str | None = None, **requirements: Any) -> Result:
    """What a check comes to that has the id of a real one."""
    return run(Check("memory.pinned", "it is so", function, feature), subject(**requirements))


def passes(subject: Subject) -> Iterator[str]:
    """No fault."""
    yield from ()


def fails(subject: Subject) -> Iterator[str]:
    """One fault, then the platform raises."""
    yield "one"
    raise OSError("no licence server")


def lacks(subject: Subject) -> Iterator[str]:
    """Nothing to check."""
    yield from ()
    raise NotOffered("it has none")


def test_outcomes() -> None:
    """A check passes, fails with every fault and what was raised, or is skipped with the reason."""
    assert outcome(passes).state is State.PASSED
    failed = outcome(fails)
    assert failed.state is State.FAILED
    assert failed.faults[0] == "one"
    assert failed.faults[1].startswith("OSError: no licence server (test_kit.py:")
    assert failed.traceback and "no licence server" in failed.traceback
    skipped = outcome(lacks)
    assert (skipped.state, skipped.reason) == (State.SKIPPED, "it has none")


def test_a_promise_turns_a_skip_into_a_fault() -> None:
    """What the requirements promise must be there."""
    failed = outcome(lacks, "pinned", offers={"pinned"})
    assert (failed.state, failed.faults) == (
        State.FAILED,
        ("'pinned' is promised, but it has none",),
    )
    assert outcome(lacks, "pinned", offers={"streams"}).state is State.SKIPPED


def test_known_faults_and_skips() -> None:
    """A known fault does not fail, a stale one does, and a skipped check does not run."""
    known = outcome(fails, known_faults={"memory.pinned": "next release"})
    assert (known.state, known.reason) == (State.KNOWN, "next release")
    stale = outcome(passes, known_faults={"memory.pinned": "next release"})
    assert stale.state is State.FAILED and "take it off the list" in stale.text
    skipped = outcome(fails, skip={"memory.pinned": "no such memory"})
    assert (skipped.state, skipped.text) == (State.SKIPPED, "no such memory")


def test_interruption_passes() -> None:
    """A person who presses ctrl-C ends the run."""

    def interrupts(subject: Subject) -> Iterator[str]:
        yield from ()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        outcome(interrupts)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"offers": {"stream"}}, "did you mean 'streams'"),
        ({"skip": {"memory.pinnd": "x"}}, "did you mean 'memory.pinned'"),
        ({"known_faults": {"everything": "x"}}, "expected registration.answer, "),
    ],
)
def test_requirements_refuse_what_does_not_exist(option: dict[str, Any], message: str) -> None:
    """A misspelt check or feature would otherwise never be looked at."""
    with pytest.raises(ValueError, match=message):
        Requirements("acme", **option)


def test_every_check_is_one_test() -> None:
    """Each check has an id in its group, a summary, and a test of that name with a docstring."""
    known = all_checks()
    assert len(known) > 50
    assert {id.partition(".")[0] for id in known} == set(GROUPS)
    for id, one in known.items():
        assert one.id == id and one.summary and inspect.getdoc(one.function)
        test = getattr(PlatformTests, f"test_{id.replace('.', '_')}")
        assert test.__doc__[1:] == f"{one.summary[1:]}."
    tests = {name for name in dir(PlatformTests) if name.startswith("test_")}
    assert len(tests) == len(known)


def test_every_feature_belongs_to_a_check() -> None:
    """A feature that no check looks at could be promised and never be missed."""
    assert {one.feature for one in all_checks().values()} - {None} == set(FEATURES)


def result(state: State) -> Result:
    """A result that ended so."""
    return Result("memory.total", "it is so", state, 1.25)


@pytest.mark.parametrize(
    ("states", "passed", "message", "colour"),
    [
        ([State.PASSED, State.SKIPPED], True, "1/1 conformant", "brightgreen"),
        ([State.PASSED, State.KNOWN], True, "1/2 conformant", "yellow"),
        ([State.PASSED, State.FAILED], False, "1/2 conformant", "red"),
        ([State.SKIPPED], False, "0/0 conformant", "red"),
        ([], False, "0/0 conformant", "red"),
    ],
)
def test_badges(states: list[State], passed: bool, message: str, colour: str) -> None:
    """Skips count for nothing; without a check that passed nothing conforms."""
    platform = {"label": "acme", "provider": "acme 1.0"}
    report = Report(platform, tuple(result(state) for state in states))
    badge = report.badge()
    assert (report.passed, badge["message"], badge["color"]) == (passed, message, colour)
    data = json.loads(json.dumps(report.to_dict()))
    assert data["summary"].startswith("acme (acme 1.0) with mainboard ")


class Vendor(Platform):
    """Overrides in forms that packages have written."""

    @classmethod
    def get_device_name(cls, device: int = 0) -> str:  # type: ignore[override]
        return ""

    @classmethod
    def get_device_uuid(cls) -> str:  # type: ignore[override]
        return ""

    @classmethod
    def get_device_capability(cls, device_id: int = 0, extra: int = 1) -> None:
        return None

    @classmethod
    def set_device(cls, *args: Any, **kwargs: Any) -> None:
        return None

    @classmethod
    def get_attn_backend_cls(  # type: ignore[override]
        cls, selected_backend: Any, attn_selector_config: Any
    ) -> str:
        return ""

    current_stream = staticmethod(lambda device=None: None)  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("get_device_name", "get_device_name(device=0) cannot be called as"),
        ("get_device_uuid", "get_device_uuid() cannot be called as get_device_uuid(device_id)"),
        ("get_device_capability", None),
        ("set_device", None),
        ("get_attn_backend_cls", "too many positional arguments"),
        ("current_stream", None),
        ("device_name", None),
        ("supported_dtypes", None),
        ("get_max_output_tokens", None),
    ],
)
def test_signatures(name: str, fault: str | None) -> None:
    """An override must take what callers pass; more, or everything, is welcome."""
    found = signature_fault(name, Vendor)
    assert found is None if fault is None else fault in (found or "")


def test_what_the_platform_does_not_offer() -> None:
    """Asking turns the contract's refusals into skips, and other errors into faults."""
    with pytest.raises(NotOffered, match="get_device_uuid"):
        subject().ask("get_device_uuid")
    with pytest.raises(NotOffered, match="synchronise"):
        subject().ask("synchronise")
    with pytest.raises(TypeError):
        subject().ask("device_count", 1, 2)
    assert subject().ask("device_count") == 1


def test_a_new_interpreter_that_fails() -> None:
    """What kills a child is its answer."""
    found = subject().fresh("no_such_function")
    assert "no function 'no_such_function'" in found["error"]
    assert "KeyError" in subject().fresh("register", "nobody/nothing")["error"]
