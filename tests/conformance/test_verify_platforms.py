"""The conformance kit on the CPU, on the fake device, and on a platform full of faults."""

import importlib.util
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mainboard.testing import Requirements, State, all_checks, verify

BROKEN = Path(__file__).parent / "projects/broken_platform/broken_platform/__init__.py"


def planted() -> dict[str, str]:
    """The broken platform's own list of its faults."""
    spec = importlib.util.spec_from_file_location("planted_faults", BROKEN)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, str] = module.FAULTS
    return found


def by_state(report: dict[str, Any], state: str) -> dict[str, str]:
    """The checks that ended so, with what they said."""
    return {
        row["id"]: "\n".join(row["faults"]) or row["reason"] or ""
        for row in report["results"]
        if row["state"] == state
    }


@pytest.mark.multiprocess
def test_the_cpu_conforms() -> None:
    """On the CPU nothing fails, and what is skipped is what a host does not have."""
    seen = []
    # Tensors larger than what the C library may keep of the memory that other tests freed.
    requirements = Requirements("cpu", drawn_cases=4, memory_mib=128, offers={"kernels", "random"})
    report = verify(requirements, (), seen.append)
    failed = {result.id: result.text for result in report.results if result.state is State.FAILED}
    assert failed == {}
    assert report.passed
    assert [result.id for result in seen] == list(all_checks())
    skipped = {result.id for result in report.results if result.state is State.SKIPPED}
    assert {id for id in skipped if id.startswith(("operators", "backends", "contract"))} == set()


@pytest.mark.install
@pytest.mark.multiprocess
def test_the_fake_device_conforms(run: Callable[..., Any], tmp_path: Path) -> None:
    """On the fake device every check passes and none is skipped; the badge says so."""
    badge = tmp_path / "badge.json"
    ran = run("-m", "mainboard", "verify", "fake", "--json", "--badge", str(badge))
    assert ran.code == 0, ran.err
    report = json.loads(ran.out)
    assert by_state(report, "FAIL") | by_state(report, "SKIP") == {}
    assert [row["id"] for row in report["results"]] == list(all_checks())
    count = len(all_checks())
    assert report["summary"].endswith(f": {count} passed")
    assert json.loads(badge.read_text())["message"] == f"{count}/{count} conformant"
    assert report["platform"]["provider"] == "mainboard-fake-device 0.1.0"


def test_no_check_is_without_a_planted_fault() -> None:
    """A check that was never seen to fail might not be able to."""
    assert set(planted()) == set(all_checks())


@pytest.mark.install
@pytest.mark.multiprocess
def test_every_planted_fault_is_named(run: Callable[..., Any]) -> None:
    """The report on the broken platform names each planted fault, and fails nothing else."""
    where = "broken_platform.requirements:REQUIREMENTS"
    ran = run("-m", "mainboard", "verify", "broken", "--requirements", where, "--json")
    assert ran.code == 1, ran.err
    report = json.loads(ran.out)
    failed, expected = by_state(report, "FAIL"), planted()
    assert set(failed) == set(expected)
    unsaid = {id: (text, failed[id]) for id, text in expected.items() if text not in failed[id]}
    assert unsaid == {}
    # One check ended its process; those after it ran in another.
    assert [row["id"] for row in report["results"]] == list(all_checks())
    assert report["badge"]["color"] == "red"


@pytest.mark.install
@pytest.mark.multiprocess
def test_a_report_for_people(run: Callable[..., Any]) -> None:
    """The table has a row for each check with its faults, and the exit status says that one failed."""
    ran = run("-m", "mainboard", "verify", "broken", "--only", "contract.names", "contract.paths",
              "contract.unknown")  # fmt: skip
    assert ran.code == 1
    assert "contract.names    FAIL" in ran.out
    assert "did you mean get_device_total_memory?" in ran.out
    assert ran.out.rstrip().endswith("3 failed")


@pytest.mark.install
def test_a_platform_that_cannot_be_opened(run: Callable[..., Any]) -> None:
    """A plugin that asks for the platform while it is asked to offer one is reported, not hung on."""
    ran = run("-m", "mainboard", "verify", "reentrant", "--only", "contract")
    assert ran.code == 1
    assert "Nothing could be checked" in ran.out
    assert "while platforms are being resolved" in ran.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cpu", "--only", "contracts"), "no check or group is called 'contracts'"),
        (("cpu", "--requirements", "json:dumps"), "expected a mainboard.testing.Requirements"),
        (("zpu",), "no platform has that name. Did you mean 'cpu'?"),
    ],
)
def test_wrong_arguments(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    """A name that means nothing gives exit status 1 and says what there is."""
    import subprocess

    ran = subprocess.run(
        [sys.executable, "-P", "-m", "mainboard", "verify", *arguments],
        capture_output=True, check=False, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert ran.returncode == 1
    assert message in ran.stdout


VENDOR_TESTS = """
from mainboard.testing import ContractTests, MemoryTests, Requirements, StreamTests


class TestFake(ContractTests, MemoryTests, StreamTests):
    requirements = Requirements(
        "fake", offers={"streams", "memory"}, skip={"memory.pinned": "nobody needs it"}
    )


class TestBroken(ContractTests):
    requirements = Requirements(
        "broken",
        known_faults={
            "contract.names": "the name is kept for another host",
            "contract.memory_info": "will be fixed in 0.0.2",
        },
    )

    def test_contract_unknown(self, subject):
        assert subject.platform.no_such_capability is None


class TestCurrent(ContractTests):
    def test_contract_identity(self, subject):
        assert subject.platform.device_type == "fake"
"""


@pytest.mark.install
@pytest.mark.multiprocess
def test_a_vendors_test_classes(run: Callable[..., Any], tmp_path: Path) -> None:
    """A vendor's classes run in pytest, with skips, known faults and tests of their own."""
    (tmp_path / "test_vendor.py").write_text(VENDOR_TESTS)
    plugin = ("-p", "mainboard.testing.pytest_plugin", "--mainboard-platform", "fake")
    ran = run(
        "-m", "pytest", "-q", "-rA", *plugin, str(tmp_path), PYTEST_DISABLE_PLUGIN_AUTOLOAD="1"
    )
    outcomes: dict[str, set[str]] = {}
    for state, name in re.findall(r"^([A-Z]+) \S*test_vendor\.py::(\S+)", ran.out, re.MULTILINE):
        outcomes.setdefault(state, set()).add(name)
    passed, failed = outcomes["PASSED"], outcomes["FAILED"]
    assert {"TestFake::test_memory_limit", "TestFake::test_streams_order"} <= passed
    assert {"TestBroken::test_contract_unknown", "TestCurrent::test_contract_identity"} <= passed
    assert outcomes["XFAIL"] == {
        "TestBroken::test_contract_names",
        "TestBroken::test_contract_memory_info",
    }
    assert "nobody needs it" in ran.out
    assert "TestBroken::test_contract_paths" in failed
    assert not [name for name in failed if not name.startswith("TestBroken::")]
    assert "broken_platform.graphs.Missing" in ran.out


def test_the_pytest_plugin_imports_nothing_heavy(run: Callable[..., Any]) -> None:
    """Every pytest run where Mainboard is installed imports the plugin: it must cost nothing."""
    program = (
        "import sys; before = set(sys.modules); import mainboard.testing.pytest_plugin;"
        "print(*sorted(set(sys.modules) - before))"
    )
    loaded = run("-c", program).out.split()
    ours = {name for name in loaded if name.partition(".")[0] == "mainboard"}
    assert ours == {"mainboard", "mainboard.testing", "mainboard.testing.pytest_plugin"}
    assert not {"torch", "dataclasses", "inspect", "importlib.metadata"} & set(loaded)
