"""In a fresh interpreter, asking what is here loads neither torch nor a vendor's library."""

import json
import subprocess
import sys

import pytest

from mainboard.platforms import cpu, cuda_probe, rocm_probe
from mainboard.platforms.verdict import State

HEAVY = ["torch", "numpy", "pynvml", "amdsmi", "logging", "subprocess", "inspect", "asyncio"]

# Each takes from half a millisecond to five; all of them are more than resolving may take.
SLOW = ["typing", "dataclasses", "re", "contextlib", "threading", "pathlib", "logging", "traceback"]


def _modules_after(code: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after running some code."""
    ending = "; import sys; print(*sys.modules, sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", code + ending], check=True, capture_output=True, text=True
    )
    return set(done.stdout.splitlines())


@pytest.mark.multiprocess
@pytest.mark.parametrize("name", ["cuda", "rocm", "cpu"])
def test_probe_loads_nothing_heavy(name: str) -> None:
    """A probe leaves out torch, vendors' libraries and whatever else takes long to import."""
    before = _modules_after("pass")
    loaded = _modules_after(f"from mainboard.platforms import {name}; {name}.probe()")
    assert set() == set(HEAVY) & (loaded - before)
    assert f"mainboard.platforms.{name}" in loaded


@pytest.mark.multiprocess
def test_resolving_loads_nothing_slow() -> None:
    """Choosing the platform of a machine without plugins imports none of the slow modules."""
    forget = f"import sys; [sys.modules.pop(name, None) for name in {SLOW}]; "
    loaded = _modules_after(forget + "from mainboard.platforms import current_platform")
    assert set() == set(SLOW) & loaded
    assert "mainboard.platforms.resolve" in loaded


@pytest.mark.multiprocess
def test_machine_without_gpus_loads_nothing_of_gpus() -> None:
    """Where no GPU is found, the modules that describe GPUs are not imported."""
    if any(probe().code != "hardware_absent" for probe in (cuda_probe.probe, rocm_probe.probe)):
        pytest.skip("a GPU is on this machine")
    loaded = _modules_after("from mainboard.platforms import current_platform")
    names = {"cuda", "cuda_inventory", "cuda_visible", "listed_devices", "rocm", "rocm_devices"}
    assert not {f"mainboard.platforms.{name}" for name in names} & loaded


@pytest.mark.multiprocess
def test_cheap_members_load_no_torch() -> None:
    """Identity, capabilities and the description of the CPU need no torch, and no kernels."""
    code = (
        "from mainboard.platforms.cpu import CpuPlatform as p; p().is_cpu(); p.capabilities(); "
        "p.describe(); p.get_attn_backend_cls(None, None); p.mem_get_info(); repr(p())"
    )
    loaded = _modules_after(code)
    assert "torch" not in loaded
    assert not [name for name in loaded if name.startswith("mainboard.kernels")]


def test_cpu_is_always_available() -> None:
    """The CPU is activated here, with its model and without advice."""
    verdict = cpu.probe()
    assert (State.ACTIVATED, "always_available") == (verdict.state, verdict.code)
    assert "mainboard.platforms.cpu.CpuPlatform" == verdict.value
    assert verdict.remedy is None


def test_cpu_without_torch(machines: object) -> None:
    """The CPU is there even without torch, and the verdict says that torch is not."""
    machine = machines.from_record("graviton3")  # type: ignore[attr-defined]
    verdict = cpu.probe(machine)
    assert State.ACTIVATED == verdict.state
    assert "Neoverse-V1" in verdict.reason and "torch is not installed" in verdict.reason
    assert "install torch" in (verdict.remedy or "")


def test_description_is_json() -> None:
    """Everything that `mainboard env` shows of the CPU is made of JSON types."""
    described = cpu.CpuPlatform.describe()
    assert described == json.loads(json.dumps(described))
    assert "cpu" == described["device_name"]
