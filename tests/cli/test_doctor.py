"""`mainboard doctor` on a sound machine and on broken ones."""

import itertools

import pytest

from mainboard.cli.checks import FAMILIES

WRONG_KERNEL = """
import torch
import mainboard.kernels.ops


@torch.library.impl("mainboard::merge_attention_states", "CPU")
def merge(out, out_lse, a, a_lse, b, b_lse):
    out.zero_()
    out_lse.zero_()
"""


@pytest.fixture(scope="module")
def sound(mainboard) -> dict:
    """The report of a sound machine that was told to use its CPU."""
    return mainboard("doctor", "--json", MAINBOARD_PLATFORM="cpu").json


def test_every_family_passes_in_every_dtype(sound) -> None:
    """Each operator family is run in each dtype, and its error is measured and within its bound."""
    tried = {(check["family"], check["dtype"]) for check in sound["checks"]}
    assert tried == set(itertools.product(FAMILIES, ("float32", "float16", "bfloat16")))
    for check in sound["checks"]:
        assert check["passed"], check
        assert check["error"] <= check["bound"] < 0.02
        assert check["device"] == "cpu"
    # A kernel that rounds has an error; an error of zero everywhere would mean that none was run.
    assert any(check["error"] > 0 for check in sound["checks"])


def test_the_four_questions(sound) -> None:
    """Known, compiled in, able to run and active are told apart for platforms and kernels."""
    platforms, libraries, *variants = sound["questions"]
    assert platforms["known"][-3:] == ["cuda", "rocm", "cpu"]
    assert platforms["active"] == ["cpu"]
    assert "cpu" in platforms["available"]
    assert platforms["compiled"][0].startswith("torch ")
    assert set(libraries["compiled"]) <= set(libraries["known"])
    for variant in variants:
        assert set(variant["active"]) <= set(variant["available"]) <= set(variant["compiled"])


def test_every_candidate_has_a_verdict(sound) -> None:
    """Candidates that the choice did not depend on are probed too, and marked."""
    verdicts = {row["name"]: row for row in sound["platforms"]["verdicts"]}
    assert verdicts["cpu"]["decided"]
    assert not verdicts["cuda"]["decided"]
    for row in verdicts.values():
        assert row["state"] != "not probed"
        assert row["code"]
        assert row["reason"]


def test_a_platform_that_does_not_exist(mainboard) -> None:
    """A wrong `MAINBOARD_PLATFORM` is told with what there is, and the exit status is 1."""
    ran = mainboard("doctor", MAINBOARD_PLATFORM="cpuu")
    assert ran.code == 1
    assert "MAINBOARD_PLATFORM=cpuu was asked for" in ran.out
    assert "Did you mean 'cpu'?" in ran.out
    assert "Chosen: none" in ran.out


def test_without_torch(mainboard, without_torch) -> None:
    """Where torch does not import, the report is whole and names the cause."""
    ran = mainboard("doctor", "--json", path=(without_torch,))
    assert ran.code == 1
    report = ran.json
    failed = [step for step in report["preparation"] if step["failure"]]
    assert [step["name"] for step in failed] == ["import torch"]
    assert "libtorch.so: file too short" in failed[0]["failure"]["message"]
    assert report["checks"] == []
    assert any("to import torch failed" in problem for problem in report["problems"])


def test_without_checks_torch_is_not_needed_to_choose(mainboard) -> None:
    """`--no-checks` runs no operator and says so."""
    ran = mainboard("doctor", "--no-checks")
    assert ran.code == 0
    assert "none was tried" in ran.out


def test_a_forced_level(mainboard) -> None:
    """`MAINBOARD_KERNELS=reference` is what the doctor then tries and shows."""
    report = mainboard("doctor", "--json", MAINBOARD_KERNELS="reference").json
    assert report["ok"]
    assert report["questions"][1]["active"] == ["reference"]


def test_a_wrong_level(mainboard) -> None:
    """A level that does not exist is told with those that do."""
    ran = mainboard("doctor", MAINBOARD_KERNELS="fastest")
    assert ran.code == 1
    assert "MAINBOARD_KERNELS is 'fastest'; expected one of compiled" in ran.out


def test_a_kernel_that_computes_wrong_values(mainboard, plugin) -> None:
    """A wrong operator fails its check with the error measured, and only its own."""
    ran = mainboard("doctor", "--json", path=(plugin(WRONG_KERNEL),), MAINBOARD_PLATFORM="cpu")
    assert ran.code == 1
    report = ran.json
    wrong = {check["family"] for check in report["checks"] if not check["passed"]}
    assert wrong == {"merge_attention_states"}
    assert all(check["error"] > 0.5 for check in report["checks"] if not check["passed"])
    assert "MAINBOARD_KERNELS=reference" in report["problems"][0]


def test_a_kernel_that_kills_its_process(mainboard, plugin) -> None:
    """A kernel that ends the process is one failed line of a whole report."""
    body = WRONG_KERNEL.replace("out.zero_()", "import os; os.kill(os.getpid(), 11)")
    ran = mainboard("doctor", "--json", path=(plugin(body),), MAINBOARD_PLATFORM="cpu")
    assert ran.code == 1
    *passed, last = ran.json["checks"]
    assert all(check["passed"] for check in passed)
    assert last["name"] == "merge_attention_states in float32"
    assert last["failure"]["type"] == "SIGSEGV"


def test_a_broken_plugin(mainboard, plugin) -> None:
    """A plugin that raises is named with distribution, cause and remedy; operators still run."""
    ran = mainboard("doctor", path=(plugin("raise OSError('no licence server')"),))
    assert ran.code == 1
    assert "acme-plugin 1.5" in ran.out
    assert "OSError: no licence server" in ran.out
    assert "pip uninstall acme-plugin" in ran.out
    assert "PASS" in ran.out
    assert "FAIL" not in ran.out


PLATFORM = """
from vllm.platforms.interface import Platform, PlatformEnum
class AcmePlatform(Platform):
    _enum, device_name, device_type = PlatformEnum.OOT, "acme", "cpu"
    @classmethod
    def get_device_name(cls, device_id=0):
        return "Acme One"
return AcmePlatform
"""


def test_a_platform_of_a_package(mainboard, plugin) -> None:
    """A package's platform is chosen, built-ins are told apart, and operators run on its device."""
    ran = mainboard("doctor", "--json", path=(plugin(PLATFORM, "vllm.platform_plugins"),))
    report = ran.json
    assert ran.code == 0, report["problems"]
    assert report["platforms"]["chosen"]["provider"] == "acme-plugin 1.5"
    assert report["questions"][0]["active"] == ["acme"]
    decided = [row["name"] for row in report["platforms"]["verdicts"] if row["decided"]]
    assert decided == ["acme"]
    (resolved,) = [s for s in report["preparation"] if s["name"] == "resolve the platform"]
    assert resolved["value"]["device_name"] == "Acme One"
    assert all(check["passed"] for check in report["checks"])


def test_a_platform_whose_device_is_not_there(mainboard, plugin) -> None:
    """One cause that keeps every operator from running is told once."""
    body = PLATFORM.replace('"cpu"', '"privateuseone"')
    ran = mainboard("doctor", "--json", path=(plugin(body, "vllm.platform_plugins"),))
    assert ran.code == 1
    (problem,) = ran.json["problems"]
    assert f"and {3 * len(FAMILIES) - 1} more checks failed" in problem
    assert "privateuseone" in problem


@pytest.mark.parametrize("verbose", [True, False])
def test_tracebacks_on_request(mainboard, plugin, verbose: bool) -> None:
    """`--verbose` shows where in a plugin's code it failed."""
    folder = plugin("raise OSError('no licence server')")
    arguments = ["doctor", "--no-checks", *(["--verbose"] if verbose else [])]
    out = mainboard(*arguments, path=(folder,)).out
    assert (f'File "{folder / "acme.py"}", line 2, in register' in out) == verbose
