"""Whether NVIDIA's devices can be used: one test for each reason, on machines nobody here has.

NVML's answers are those of a stub in C (see conftest.py); its files are recorded or hand-written.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from mainboard.errors import PlatformUnavailableError
from mainboard.platforms import bounded, cuda, nvml_inventory
from mainboard.platforms.bounded import Outcome
from mainboard.platforms.cuda import CudaPlatform, NonNvmlCudaPlatform
from mainboard.platforms.values import DeviceCapability
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


def test_other_errors_of_nvml(machines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that nobody foresaw is shown by its name and its words."""
    machines.install_torch(cuda="13.0")
    outcome = Outcome("error\tNVML_ERROR_UNKNOWN\tUnknown Error\tcuda\nend\n", None, 1.0)
    monkeypatch.setattr(bounded, "ask", lambda *_: outcome)
    verdict = cuda.probe(machines.from_record("nvidia-two-gpus"))
    assert "driver_error" == verdict.code
    assert "NVML_ERROR_UNKNOWN: Unknown Error" in verdict.reason


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


def test_inventory_script_alone() -> None:
    """The script on a machine without NVML says so, in lines that end, and imports next to nothing."""
    options = ["-I", "-S", "-X", "importtime", "-c", bounded.RUN]
    run = [sys.executable, *options, nvml_inventory.__file__, "devices"]
    environ = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
    done = subprocess.run(run, capture_output=True, text=True, check=True, env=environ)
    if nvml_inventory._libcuda():
        pytest.skip("a driver is on this machine")
    assert "error\tNVML_ERROR_LIBRARY_NOT_FOUND\tlibnvidia-ml.so.1: " in done.stdout
    assert "end" == done.stdout.splitlines()[-1]
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "ctypes" in imported and not {"re", "typing", "subprocess", "mainboard"} & imported


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


@pytest.mark.parametrize(
    ("setting", "physical"),
    [
        (None, [0, 1]),
        ("0,1", [0, 1]),
        ("1,0", [1, 0]),
        (" 1 ", [1]),
        ("1,-1,0", [1]),
        ("0,9,1", [0]),
        ("NoDevFiles", []),
        ("", []),
        ("0,0", []),
        ("GPU-bbbb2222-1", [1]),
        ("GPU-bb,0", [1, 0]),
        ("GPU-", []),
        ("GPU-cccc", []),
    ],
)
def test_visible_devices(
    machines: Any, two_devices: Any, on_machine: Any, setting: str | None, physical: list[int]
) -> None:
    """`CUDA_VISIBLE_DEVICES` is read as the driver reads it: numbers, ids, order, first error."""
    machines.install_nvml(two_devices)
    environ = {} if setting is None else {"CUDA_VISIBLE_DEVICES": setting}
    on_machine(machines.from_record("nvidia-two-gpus", environ=environ))
    assert (None if setting is None else physical) == CudaPlatform.visible_physical_ids()
    assert len(physical) == CudaPlatform.device_count()
    if physical:
        names = [two_devices[index]["name"] for index in physical]
        assert names == [CudaPlatform.get_device_name(n) for n in range(len(physical))]
    else:
        assert CudaPlatform.get_device_capability() is None
        assert not CudaPlatform.has_device_capability(0)


@pytest.mark.parametrize(
    ("setting", "uuid"),
    [
        (None, "MIG-5555-a"),
        ("0,1", "MIG-5555-a"),
        ("0", "GPU-aaaa1111-0"),
        ("1", "MIG-5555-a"),
        ("MIG-6666", "MIG-6666-b"),
        ("MIG-6666-b,MIG-5555-a", "MIG-6666-b"),
        ("GPU-bbbb", "MIG-5555-a"),
        ("MIG-GPU-bbbb2222-1/3/0", "MIG-5555-a"),
        ("MIG-7777", None),
    ],
)
def test_slices(
    machines: Any, two_devices: Any, on_machine: Any, setting: str | None, uuid: str | None
) -> None:
    """Of a divided device CUDA shows one slice and nothing beside it; its facts are the slice's."""
    two_devices[1]["mig"] = {0: "MIG-5555-a", 3: "MIG-6666-b"}
    machines.install_nvml(two_devices)
    environ = {} if setting is None else {"CUDA_VISIBLE_DEVICES": setting}
    on_machine(machines.from_record("nvidia-two-gpus", environ=environ))
    assert (0 if uuid is None else 1) == CudaPlatform.device_count()
    if uuid is None:
        return
    assert uuid == CudaPlatform.get_device_uuid()
    if uuid.startswith("MIG"):
        assert 5 << 30 == CudaPlatform.get_device_total_memory()
        assert (5 << 29, 5 << 30) == CudaPlatform.get_device_memory_info()
        assert 14 == CudaPlatform.num_compute_units()
        assert "MIG 1g.5gb" == CudaPlatform.get_device_name()
        assert [1] == CudaPlatform.visible_physical_ids()


def test_divided_device_without_slices(machines: Any, two_devices: Any) -> None:
    """A device that is divided into nothing cannot be used, and the verdict says that."""
    machines.install_torch(cuda="13.0")
    machines.install_nvml([{**two_devices[0], "mig": {}}])
    verdict = cuda.probe(machines.from_record("nvidia-two-gpus"))
    assert "no_visible_devices" == verdict.code and "without a slice" in verdict.reason


@pytest.fixture
def second_first(machines: Any, two_devices: Any, on_machine: Any) -> Callable[..., None]:
    """A machine of the stub's two devices, the second of which is visible as the first."""

    def install(**second: Any) -> None:
        machines.install_nvml([two_devices[0], {**two_devices[1], **second}])
        environ = {"CUDA_VISIBLE_DEVICES": "1,0"}
        on_machine(machines.from_record("nvidia-two-gpus", environ=environ))

    return install


def test_facts_of_a_device(second_first: Any) -> None:
    """What NVML says of a physical device is given by its visible id."""
    second_first()
    assert "GPU-bbbb2222-1" == CudaPlatform.get_device_uuid()
    assert DeviceCapability(8, 9) == CudaPlatform.get_device_capability()
    assert 24 << 30 == CudaPlatform.get_device_total_memory()
    assert {0: "00000000:00:00.0", 1: "00000000:01:00.0"} == CudaPlatform.get_all_gpu_pci_bus_ids()
    assert 1 == CudaPlatform.device_control_id_to_physical_device_id("GPU-bbbb")


def test_links(machines: Any, on_machine: Any, two_devices: Any) -> None:
    """NVLink, access as peers, and what is between two devices on the bus are told by pairs."""
    third = {**two_devices[0], "uuid": "GPU-cccc3333-2"}
    machines.install_nvml([*two_devices, third], more=["nvlink 0 2"])
    on_machine(machines.from_record("nvidia-two-gpus"))
    kinds = {(link.first, link.second): link.kind for link in CudaPlatform.links()}
    assert {(0, 1): "pcie", (0, 2): "nvlink", (1, 2): "pcie"} == kinds
    assert {"system"} == {link.across for link in CudaPlatform.links()}
    assert CudaPlatform.is_fully_connected([0, 2]) and CudaPlatform.is_fully_connected([1])
    assert not CudaPlatform.is_fully_connected([0, 1, 2])
    assert CudaPlatform.can_access_peer(1, 0) and CudaPlatform.can_access_peer(1, 1)


def test_capabilities_of_a_device(second_first: Any) -> None:
    """Dtypes, 8-bit floats and the architecture follow from the generation."""
    second_first()
    new, old = CudaPlatform.capabilities(0), CudaPlatform.capabilities(1)
    assert (("float8_e4m3fn", "float8_e5m2"), ()) == (new.fp8_formats, old.fp8_formats)
    assert ({"sm_89"}, {"sm_80"}) == (new.isa_features, old.isa_features)
    assert CudaPlatform.supports_fp8() and not CudaPlatform.is_integrated_gpu()


def test_dtypes_of_an_old_device(second_first: Any) -> None:
    """A device before 8.0 has no bfloat16."""
    second_first(capability=(7, 5))
    assert ("float16", "float32") == CudaPlatform.capabilities().dtypes


def test_device_that_shares_memory(second_first: Any) -> None:
    """A device without memory of its own has the host's."""
    second_first(memory=None)
    assert CudaPlatform.is_integrated_gpu()
    assert CudaPlatform.get_device_total_memory() > 0


def test_unequal_devices_are_warned_of(second_first: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Different devices without an order by address make numbers ambiguous."""
    second_first()
    CudaPlatform.log_warnings()
    assert "NVIDIA A100, NVIDIA L4" in caplog.text and "CUDA_DEVICE_ORDER=PCI_BUS_ID" in caplog.text


def test_unknown_devices(second_first: Any) -> None:
    """A device that is not there is an error that lists those that are."""
    second_first()
    with pytest.raises(IndexError, match=r"device 2 was asked for, but 2 are visible"):
        CudaPlatform.get_device_name(2)
    with pytest.raises(ValueError, match=r"'GPU-zzz' means no single device; .*GPU-aaaa1111-0"):
        CudaPlatform.device_control_id_to_physical_device_id("GPU-zzz")


def test_description_is_json(second_first: Any) -> None:
    """Everything that `mainboard env` shows of the devices is made of JSON types."""
    second_first()
    described = CudaPlatform.describe()
    assert described == json.loads(json.dumps(described))
    assert [1, 0] == described["cuda"]["visible"]


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
