"""NVIDIA's libraries as stubs in C that refuse, hang, are late, die or talk nonsense, or are not there."""

import os
import subprocess
import sys
import time
from typing import Any

import pytest

from mainboard.errors import PlatformUnavailableError
from mainboard.platforms import asking_process, bounded, cuda, nvml_inventory
from mainboard.platforms.bounded import Outcome
from mainboard.platforms.cuda import CudaPlatform, NonNvmlCudaPlatform
from mainboard.platforms.verdict import State


def test_error_of_libraries_that_are_not_here(machines: Any, two_devices: Any) -> None:
    """Where neither NVML nor CUDA's library can be loaded, the driver's libraries are missing."""
    if nvml_inventory._libcuda():
        pytest.skip("libcuda is on this machine")
    machines.install_torch(cuda="13.0")
    machines.install_nvml(two_devices, "12")
    verdict = cuda.probe(machines.from_record("nvidia-two-gpus"))
    assert "driver_library_missing" == verdict.code
    assert "docker run --gpus" in (verdict.remedy or "")


DRIVER = """driver\t\t13000
device\t0\tNVIDIA Orin\tGPU-cccc3333-0\t8\t7\t65536\t0000:00:00.0\t
facts\t0\t16\tshared\t167936\t4194304
end
"""


@pytest.mark.parametrize(
    ("record", "answer", "code", "words"),
    [
        (
            "nvidia-two-gpus",
            ("NVML_ERROR_LIBRARY_NOT_FOUND", "x"),
            "nvml_library_missing",
            "library",
        ),
        ("jetson-orin", ("NVML_ERROR_NOT_SUPPORTED", "no"), "nvml_unsupported", "does not serve"),
        ("nvidia-wsl", ("NVML_ERROR_UNKNOWN", "Unknown"), "nvml_unsupported", "does not serve"),
    ],
)
def test_cuda_without_nvml(
    machines: Any,
    on_machine: Any,
    monkeypatch: pytest.MonkeyPatch,
    record: str,
    answer: tuple[str, str],
    code: str,
    words: str,
) -> None:
    """Where CUDA's library is there and only NVML is not, CUDA is asked in a process instead."""
    machines.install_torch(cuda="13.0")
    nvml = "\t".join(["error", *answer, "cuda"]) + "\nend\n"
    monkeypatch.setattr(
        bounded, "ask", lambda path, *_: Outcome(nvml if "nvml" in path else DRIVER, None, 1.0)
    )
    machine = machines.from_record(record)
    verdict = cuda.probe(machine)
    assert (State.ACTIVATED, code) == (verdict.state, verdict.code)
    assert "mainboard.platforms.cuda.NonNvmlCudaPlatform" == verdict.value
    assert words in verdict.reason and "1 visible: NVIDIA Orin" in verdict.reason
    on_machine(machine)
    for platform in (NonNvmlCudaPlatform, CudaPlatform):
        assert "GPU-cccc3333-0" == platform.get_device_uuid()
        assert 16 == platform.num_compute_units()
        assert platform.is_integrated_gpu() and platform.get_device_total_memory() > 1 << 20


@pytest.mark.parametrize(
    ("error", "code", "remedy"),
    [
        ("CUDA_ERROR_NO_DEVICE", "no_devices_reported", "docker run"),
        ("CUDA_ERROR_SYSTEM_NOT_READY", "fabric_not_ready", "fabric manager"),
        ("CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "driver_mismatch", "restart"),
        ("CUDA_ERROR_OPERATING_SYSTEM", "permission_denied", "/dev/nvidia"),
        ("CUDA_ERROR_UNKNOWN", "driver_error", "kernel's log"),
        ("OSError", "driver_library_missing", "install"),
    ],
)
def test_cuda_that_refuses(
    machines: Any, monkeypatch: pytest.MonkeyPatch, error: str, code: str, remedy: str
) -> None:
    """Without NVML, each error of CUDA's driver is declined with its own code and remedy."""
    machines.install_torch(cuda="13.0")
    nvml, driver = (
        "error\tNVML_ERROR_LIBRARY_NOT_FOUND\tx\tcuda\nend\n",
        f"error\t{error}\tcuInit\nend\n",
    )
    monkeypatch.setattr(
        bounded, "ask", lambda path, *_: Outcome(nvml if "nvml" in path else driver, None, 1.0)
    )
    verdict = cuda.probe(machines.from_record("nvidia-two-gpus"))
    assert (State.DECLINED, code) == (verdict.state, verdict.code)
    assert remedy in (verdict.remedy or "")


def test_other_errors_of_nvml(machines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that nobody foresaw is shown by its name and its words."""
    machines.install_torch(cuda="13.0")
    outcome = Outcome("error\tNVML_ERROR_UNKNOWN\tUnknown Error\tcuda\nend\n", None, 1.0)
    monkeypatch.setattr(bounded, "ask", lambda *_: outcome)
    verdict = cuda.probe(machines.from_record("nvidia-two-gpus"))
    assert "driver_error" == verdict.code
    assert "NVML_ERROR_UNKNOWN: Unknown Error" in verdict.reason


def test_inventory_script_alone() -> None:
    """The script on a machine without NVML says so, in lines that end, and imports next to nothing."""
    options = ["-I", "-S", "-X", "importtime", "-c", asking_process.RUN]
    run = [sys.executable, *options, nvml_inventory.__file__, "devices"]
    environ = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
    done = subprocess.run(run, capture_output=True, text=True, check=True, env=environ)
    if nvml_inventory._libcuda():
        pytest.skip("a driver is on this machine")
    assert "error\tNVML_ERROR_LIBRARY_NOT_FOUND\tlibnvidia-ml.so.1: " in done.stdout
    assert "end" == done.stdout.splitlines()[-1]
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "ctypes" in imported and not {"re", "typing", "subprocess", "mainboard"} & imported


@pytest.mark.parametrize(
    ("init", "more", "code", "words"),
    [
        ("hang", (), "driver_no_answer", "within 0.5 s"),
        ("late", (), "driver_no_answer", "within 0.5 s"),
        ("crash", (), "driver_error", "ended by SIGSEGV"),
        ("exit", (), "driver_error", "exit code 3"),
        ("0", ("garbage",), "driver_error", "cannot be read"),
        ("chatter", (), "available", "2 visible"),
    ],
)
def test_library_that_misbehaves(
    machines: Any,
    two_devices: Any,
    monkeypatch: pytest.MonkeyPatch,
    init: str,
    more: tuple[str, ...],
    code: str,
    words: str,
) -> None:
    """A library that hangs, is late, dies or talks nonsense costs its bound and gets its verdict."""
    monkeypatch.setenv("MAINBOARD_PROBE_TIMEOUT", "0.5" if init in ("hang", "late") else "30")
    machines.install_torch(cuda="13.0")
    machines.install_nvml(two_devices, init, more=more)
    start = time.monotonic()
    verdict = cuda.probe(machines.from_record("nvidia-two-gpus"))
    assert time.monotonic() - start < 20
    assert code == verdict.code
    assert words in verdict.reason, verdict.reason
    if code == "driver_no_answer":
        assert "MAINBOARD_PROBE_TIMEOUT" in (verdict.remedy or "")


def test_library_that_gets_stuck_later(
    machines: Any, two_devices: Any, on_machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library that answers at first and hangs at a later question costs that question its bound."""
    machines.install_torch(cuda="13.0")
    machines.install_nvml(two_devices, more=["stuck"])
    machine = machines.from_record("nvidia-two-gpus")
    assert "available" == cuda.probe(machine).code
    on_machine(machine)
    monkeypatch.setenv("MAINBOARD_PROBE_TIMEOUT", "0.5")
    for _ in range(2):  # what failed is not remembered
        with pytest.raises(PlatformUnavailableError, match=r"no answer within 0\.5 s"):
            CudaPlatform.links()
    monkeypatch.setenv("MAINBOARD_PROBE_TIMEOUT", "30")
    assert (40 << 30, 80 << 30) == CudaPlatform.get_device_memory_info()


def test_late_answer_in_time(
    machines: Any, two_devices: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library that answers after seconds is waited for where the bound allows it."""
    monkeypatch.setenv("MAINBOARD_PROBE_TIMEOUT", "30")
    machines.install_torch(cuda="13.0")
    machines.install_nvml(two_devices, "late")
    verdict = cuda.probe(machines.from_record("nvidia-two-gpus"))
    assert "available" == verdict.code and verdict.milliseconds > 1500


@pytest.mark.parametrize(
    ("behaviour", "code"),
    [
        ("0", "nvml_library_missing"),
        ("hang", "driver_no_answer"),
        ("crash", "driver_error"),
        ("garbage", "driver_error"),
        ("802", "fabric_not_ready"),
        ("803", "driver_mismatch"),
        ("100", "no_devices_reported"),
        ("999", "driver_error"),
    ],
)
def test_driver_library_without_nvml(
    machines: Any, on_machine: Any, monkeypatch: pytest.MonkeyPatch, behaviour: str, code: str
) -> None:
    """Without NVML, CUDA's driver library is asked within the same bound, for all devices."""
    monkeypatch.setenv("MAINBOARD_PROBE_TIMEOUT", "0.5" if behaviour == "hang" else "30")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "9")
    machines.install_torch(cuda="13.0")
    machines.install_nvml(init="12")
    machines.install_stub("cuda", behaviour)
    machine = machines.from_record("nvidia-two-gpus")
    verdict = cuda.probe(machine)
    assert code == verdict.code, verdict.reason
    if code == "nvml_library_missing":
        on_machine(machine)
        assert "Orin" == NonNvmlCudaPlatform.get_device_name()
        assert f"GPU-{'ab' * 4}-abab-abab-abab-{'ab' * 6}" == CudaPlatform.get_device_uuid()
        assert 16 == CudaPlatform.num_compute_units() and CudaPlatform.is_integrated_gpu()
        with pytest.raises(PlatformUnavailableError, match="NVML's library is not here"):
            NonNvmlCudaPlatform()._asked("x", lambda: cuda._ask_nvml(machine, "memory"))


def test_inventory_that_cannot_be_had(machines: Any, on_machine: Any) -> None:
    """Asking a platform object for devices of a driver in trouble is an error with the reason."""
    machines.install_nvml([], "9")
    on_machine(machines.from_record("nvidia-two-gpus"))
    with pytest.raises(PlatformUnavailableError, match=r"not loaded.*modprobe nvidia"):
        CudaPlatform.get_device_name()


def test_no_driver_in_this_process(second_first: Any) -> None:
    """The stub is loaded by a child process only: this one loads no vendor's library."""
    before = set(sys.modules)
    second_first()
    CudaPlatform.get_device_name()
    assert not {"pynvml", "ctypes", "torch"} & (set(sys.modules) - before)
