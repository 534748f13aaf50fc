"""Whether NVIDIA's devices can be used: one test for each reason, on machines nobody here has.

NVML's answers are those of a stub in C (see conftest.py); its files are recorded or hand-written.
"""

import re
from typing import Any

import pytest

from mainboard.platforms import cuda
from mainboard.platforms.verdict import State

# Record, environment, torch's CUDA, what the stub's start does, code, words.
DECLINES = [
    ("bare-proc", {}, "13.0", "0", "hardware_absent", "no NVIDIA device"),
    ("amd-on-bus-only", {}, "13.0", "0", "hardware_absent", "no NVIDIA device"),
    ("wsl-other-gpu", {}, "13.0", "0", "hardware_absent", "no NVIDIA driver of Windows"),
    ("nvidia-on-bus-only", {}, "13.0", "0", "driver_missing", r"\(0000:01:00.0\).*no device"),
    ("nvidia-two-gpus", {"CUDA_VISIBLE_DEVICES": ""}, "13.0", "0", "no_visible_devices", "''"),
    ("nvidia-two-gpus", {"CUDA_VISIBLE_DEVICES": "-1"}, "13.0", "0", "no_visible_devices", "-1"),
    (
        "nvidia-two-gpus",
        {"CUDA_VISIBLE_DEVICES": "7"},
        "13.0",
        "0",
        "no_visible_devices",
        r"'7', but the devices here are 0 \(GPU-aaaa",
    ),
    ("nvidia-two-gpus", {}, None, "0", "torch_lacks_cuda", r"2\.13\.0\+test is built without"),
    (
        "nvidia-two-gpus",
        {},
        "13.0",
        "9",
        "driver_not_loaded",
        "installed but not loaded .Driver Not Loaded",
    ),
    (
        "nvidia-two-gpus",
        {},
        "13.0",
        "18",
        "driver_mismatch",
        "different versions",
    ),
    (
        "nvidia-two-gpus",
        {},
        "13.0",
        "4",
        "permission_denied",
        "refuses this user",
    ),
    (
        "nvidia-two-gpus",
        {},
        "13.0",
        "exit",
        "driver_error",
        "ended with exit code 3",
    ),
    (
        "nvidia-two-gpus",
        {},
        "13.0",
        "crash",
        "driver_error",
        "ended by SIGSEGV",
    ),
]


@pytest.mark.parametrize(("record", "environ", "built", "on_init", "code", "words"), DECLINES)
def test_decline(
    machines: Any,
    two_devices: Any,
    record: str,
    environ: dict[str, str],
    built: str | None,
    on_init: str,
    code: str,
    words: str,
) -> None:
    """Each thing in the way is declined with its own code and a sentence with the particulars."""
    machines.install_torch(cuda=built)
    machines.install_nvml(two_devices, on_init)
    verdict = cuda.probe(machines.from_record(record, environ=environ))
    assert (State.DECLINED, code) == (verdict.state, verdict.code)
    assert re.search(words, verdict.reason), verdict.reason
    assert verdict.value is None and verdict.milliseconds > 0
    assert verdict.remedy or code == "hardware_absent"


@pytest.mark.parametrize(
    ("runs", "built", "code"),
    [
        (12080, "13.0", "driver_too_old"),
        (13000, "13.2", "available"),
        (13000, "12.8", "available"),
        (0, "13.0", "available"),
    ],
)
def test_driver_and_torch(
    machines: Any, two_devices: Any, runs: int, built: str, code: str
) -> None:
    """A driver of a major version before torch's is too old; a newer or unknown one is not."""
    machines.install_torch(cuda=built)
    machines.install_nvml(two_devices, cuda=runs)
    verdict = cuda.probe(machines.from_record("nvidia-two-gpus"))
    assert code == verdict.code
    if code == "driver_too_old":
        assert "runs CUDA up to 12.8" in verdict.reason and "built for CUDA 13.0" in verdict.reason
        assert "a torch built for CUDA 12" in (verdict.remedy or "")


def test_torch_for_rocm(machines: Any) -> None:
    """A torch built for the other vendor is named as that."""
    machines.install_torch(hip="7.1")
    verdict = cuda.probe(machines.from_record("nvidia-two-gpus"))
    assert "torch_lacks_cuda" == verdict.code
    assert "is built for ROCm 7.1" in verdict.reason


def test_no_torch(machines: Any) -> None:
    """A GPU without an installed torch is declined as that."""
    verdict = cuda.probe(machines.from_record("nvidia-two-gpus"))
    assert ("torch_absent", State.DECLINED) == (verdict.code, verdict.state)


@pytest.mark.parametrize("damage", ["missing", "empty"])
def test_torch_that_says_nothing(machines: Any, damage: str) -> None:
    """A torch whose version file is missing or says nothing is not taken for one without CUDA."""
    machines.install_torch(cuda="13.0")
    version = machines.site / "torch" / "version.py"
    version.unlink() if damage == "missing" else version.write_text("")
    verdict = cuda.probe(machines.from_record("nvidia-two-gpus"))
    assert "torch_unreadable" == verdict.code
    assert str(version) in verdict.reason


@pytest.mark.parametrize("denied", [["dev/nvidiactl"], ["dev/nvidia0", "dev/nvidia1"]])
def test_permission(machines: Any, denied: list[str]) -> None:
    """A user who may not use the nodes is told which ones."""
    machines.install_torch(cuda="13.0")
    verdict = cuda.probe(machines.from_record("nvidia-two-gpus", denied=denied))
    assert "permission_denied" == verdict.code
    assert all(f"/{node}" in verdict.reason for node in denied)


def test_one_closed_node_of_two(machines: Any, two_devices: Any) -> None:
    """A device that this user may use is enough."""
    machines.install_torch(cuda="13.0")
    machines.install_nvml(two_devices)
    verdict = cuda.probe(machines.from_record("nvidia-two-gpus", denied=["dev/nvidia0"]))
    assert State.ACTIVATED == verdict.state


def test_activation(machines: Any, two_devices: Any) -> None:
    """Devices that work are activated, with their names and the driver's version."""
    machines.install_torch(cuda="13.0")
    machines.install_nvml(two_devices)
    verdict = cuda.probe(machines.from_record("nvidia-two-gpus"))
    assert (State.ACTIVATED, "available") == (verdict.state, verdict.code)
    assert "mainboard.platforms.cuda.CudaPlatform" == verdict.value
    assert "2 visible: NVIDIA A100, NVIDIA L4; driver 580.65.06" == verdict.reason


def test_activation_on_a_recorded_machine(machines: Any, two_devices: Any) -> None:
    """The files of a machine with one H100 lead to its device; NVML's answer is the stub's."""
    machines.install_torch(cuda="13.0")
    machines.install_nvml([{**two_devices[0], "name": "NVIDIA H100 80GB HBM3"}])
    verdict = cuda.probe(machines.from_record("h100-vm"))
    assert "1 visible: NVIDIA H100 80GB HBM3; driver 580.65.06" == verdict.reason


def test_one_lost_device(machines: Any, two_devices: Any) -> None:
    """A broken device is reported and does not hide the working one."""
    machines.install_torch(cuda="13.0")
    machines.install_nvml([{**two_devices[0], "lost": True}, two_devices[1]])
    verdict = cuda.probe(machines.from_record("nvidia-two-gpus"))
    assert State.ACTIVATED == verdict.state
    assert "1 visible: NVIDIA L4" in verdict.reason
    assert "device 0 does not work: GPU is lost" in verdict.reason


def test_all_devices_lost(machines: Any, two_devices: Any) -> None:
    """Where every device is broken, each is named."""
    machines.install_torch(cuda="13.0")
    machines.install_nvml([{**device, "lost": True} for device in two_devices])
    verdict = cuda.probe(machines.from_record("nvidia-two-gpus"))
    assert "devices_lost" == verdict.code and "Xid" in (verdict.remedy or "")
    assert "device 0 does not work" in verdict.reason and "device 1" in verdict.reason


def test_divided_device_without_slices(machines: Any, two_devices: Any) -> None:
    """A device that is divided into nothing cannot be used, and the verdict says that."""
    machines.install_torch(cuda="13.0")
    machines.install_nvml([{**two_devices[0], "mig": {}}])
    verdict = cuda.probe(machines.from_record("nvidia-two-gpus"))
    assert "no_visible_devices" == verdict.code and "without a slice" in verdict.reason
