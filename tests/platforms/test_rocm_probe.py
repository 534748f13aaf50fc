"""Whether AMD's devices can be used: one test for each reason, on machines nobody here has."""

import json
import re
from collections.abc import Sequence
from typing import Any

import pytest

from mainboard.platforms import rocm
from mainboard.platforms.rocm import RocmPlatform
from mainboard.platforms.values import DeviceCapability
from mainboard.platforms.verdict import State

# Record, environment, torch's HIP, denied nodes, code, words.
DECLINES = [
    ("bare-proc", {}, "7.1", [], "hardware_absent", "no AMD device"),
    ("nvidia-on-bus-only", {}, "7.1", [], "hardware_absent", "no AMD device"),
    ("wsl-other-gpu", {}, "7.1", [], "hardware_absent", "no AMD device"),
    ("amd-on-bus-only", {}, "7.1", [], "driver_missing", r"\(0000:03:00.0\)"),
    ("mi300x-no-device-node", {}, "7.1", [], "device_node_missing", "/dev/kfd is not here"),
    ("amd-kfd-without-gpu", {}, "7.1", [], "no_devices_reported", "lists no device"),
    ("mi300x-two", {"HIP_VISIBLE_DEVICES": ""}, "7.1", [], "no_visible_devices", "HIP_VISIBLE"),
    ("mi300x-two", {"CUDA_VISIBLE_DEVICES": "-1"}, "7.1", [], "no_visible_devices", "'-1'"),
    ("mi300x-two", {"ROCR_VISIBLE_DEVICES": "9"}, "7.1", [], "no_visible_devices", "GPU-8af2d5e1c"),
    ("mi300x-two", {}, None, [], "torch_lacks_rocm", "2.13.0.test is built without ROCm"),
    ("mi300x-two", {}, "7.1", ["dev/kfd"], "permission_denied", "/dev/kfd$"),
    (
        "mi300x-two",
        {},
        "7.1",
        ["dev/dri/renderD128", "dev/dri/renderD129"],
        "permission_denied",
        "renderD128, /dev/dri/renderD129",
    ),
    (
        "mi300x-two",
        {"HIP_VISIBLE_DEVICES": "1"},
        "7.1",
        ["dev/dri/renderD129"],
        "permission_denied",
        "may not read and write /dev/dri/renderD129$",
    ),
    ("amd-wsl", {"HIP_VISIBLE_DEVICES": ""}, "7.1", [], "no_visible_devices", "known to Windows"),
    ("amd-wsl", {}, None, [], "torch_lacks_rocm", "without ROCm"),
]


@pytest.mark.parametrize(("record", "environ", "built", "denied", "code", "words"), DECLINES)
def test_decline(
    machines: Any,
    record: str,
    environ: dict[str, str],
    built: str | None,
    denied: list[str],
    code: str,
    words: str,
) -> None:
    """Each thing in the way is declined with its own code and a sentence with the particulars."""
    machines.install_torch(hip=built)
    verdict = rocm.probe(machines.from_record(record, environ=environ, denied=denied))
    assert (State.DECLINED, code) == (verdict.state, verdict.code)
    assert re.search(words, verdict.reason), verdict.reason
    assert verdict.value is None
    assert verdict.remedy or code == "hardware_absent"


def test_torch_for_cuda(machines: Any) -> None:
    """A torch built for the other vendor is named as that."""
    machines.install_torch(cuda="13.0")
    verdict = rocm.probe(machines.from_record("mi300x-two"))
    assert "torch_lacks_rocm" == verdict.code and "is built for CUDA 13.0" in verdict.reason


def test_no_torch(machines: Any) -> None:
    """A GPU without an installed torch is declined as that."""
    assert "torch_absent" == rocm.probe(machines.from_record("mi300x-two")).code


@pytest.mark.parametrize(
    ("record", "code", "reason"),
    [
        ("mi300x-two", "available", r"2 visible: AMD Instinct MI300X OAM \(gfx942\)"),
        ("amd-apu", "available", r"1 visible: gfx1151 \(gfx1151\)"),
        ("amd-wsl", "available_in_wsl", "found an AMD device of Windows"),
    ],
)
def test_activation(machines: Any, record: str, code: str, reason: str) -> None:
    """Devices that work are activated, with their names and architectures."""
    machines.install_torch(hip="7.1")
    verdict = rocm.probe(machines.from_record(record))
    assert (State.ACTIVATED, code) == (verdict.state, verdict.code)
    assert "mainboard.platforms.rocm.RocmPlatform" == verdict.value
    assert re.match(reason, verdict.reason), verdict.reason


@pytest.mark.parametrize(
    ("environ", "physical"),
    [
        ({}, [0, 1]),
        ({"HIP_VISIBLE_DEVICES": "1,0"}, [1, 0]),
        ({"CUDA_VISIBLE_DEVICES": "1"}, [1]),
        ({"HIP_VISIBLE_DEVICES": "0", "CUDA_VISIBLE_DEVICES": "1"}, [0]),
        ({"ROCR_VISIBLE_DEVICES": "1"}, [1]),
        ({"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "0"}, [1]),
        ({"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "1"}, []),
        ({"ROCR_VISIBLE_DEVICES": "GPU-8AF2D5E1C0FFEE02,0"}, [1, 0]),
        ({"ROCR_VISIBLE_DEVICES": " 0x1 , gpu-8af2d5e1c0ffee01 "}, [1, 0]),
        ({"ROCR_VISIBLE_DEVICES": "GPU-8af2d5e1c0ffee02,1,0"}, [1]),
        ({"ROCR_VISIBLE_DEVICES": "GPU-8af2"}, []),
        ({"ROCR_VISIBLE_DEVICES": "GPU-"}, []),
        ({"ROCR_VISIBLE_DEVICES": "1,0,1"}, [1, 0]),
        ({"ROCR_VISIBLE_DEVICES": "1,-1,0"}, [1]),
        ({"ROCR_VISIBLE_DEVICES": "1,0", "HIP_VISIBLE_DEVICES": "0,1"}, [1, 0]),
        ({"ROCR_VISIBLE_DEVICES": "1,0", "CUDA_VISIBLE_DEVICES": "1"}, [0]),
        ({"HIP_VISIBLE_DEVICES": "GPU-8af2d5e1c0ffee02,0"}, [1, 0]),
        ({"HIP_VISIBLE_DEVICES": "1,1,0"}, [1, 0]),
        ({"HIP_VISIBLE_DEVICES": "1, 0"}, [1]),
        ({"HIP_VISIBLE_DEVICES": "1,00"}, [1]),
        ({"HIP_VISIBLE_DEVICES": "0,x,1"}, [0]),
        ({"HIP_VISIBLE_DEVICES": ""}, []),
    ],
)
def test_visible_devices(
    machines: Any, on_machine: Any, environ: dict[str, str], physical: list[int]
) -> None:
    """The three control variables are applied one after the other, as the runtime does."""
    on_machine(machines.from_record("mi300x-two", environ=environ))
    assert (physical if environ else None) == RocmPlatform.visible_physical_ids()
    assert len(physical) == RocmPlatform.device_count()
    if not physical:
        assert RocmPlatform.get_device_capability() is None


def test_facts_of_a_device(machines: Any, on_machine: Any) -> None:
    """What the kernel says of a physical device is given by its visible id."""
    environ = {"HIP_VISIBLE_DEVICES": "1"}
    on_machine(machines.from_record("mi300x-two", environ=environ))
    assert "AMD Instinct MI300X OAM" == RocmPlatform.get_device_name()
    assert "GPU-8af2d5e1c0ffee02" == RocmPlatform.get_device_uuid()
    assert DeviceCapability(9, 4) == RocmPlatform.get_device_capability()
    assert 206141652992 == RocmPlatform.get_device_total_memory()
    assert {0: "0000:05:00.0", 1: "0000:26:00.0"} == RocmPlatform.get_all_gpu_pci_bus_ids()
    assert 0 == RocmPlatform.device_control_id_to_physical_device_id("gpu-8af2d5e1c0ffee01")
    with pytest.raises(IndexError, match="device 1 was asked for, but 1 are visible"):
        RocmPlatform.get_device_name(1)


def test_capabilities(machines: Any, on_machine: Any) -> None:
    """The first generation with 8-bit floats has the kind without infinities."""
    on_machine(machines.from_record("mi300x-two"))
    assert RocmPlatform.is_fp8_fnuz() and RocmPlatform.supports_fp8()
    assert {"gfx942"} == RocmPlatform.capabilities().isa_features
    assert not RocmPlatform.is_integrated_gpu()


def test_device_that_shares_memory(machines: Any, on_machine: Any) -> None:
    """A GPU inside a processor has no memory of its own, and no 8-bit floats here."""
    on_machine(machines.from_record("amd-apu"))
    assert RocmPlatform.is_integrated_gpu() and not RocmPlatform.supports_fp8()
    assert DeviceCapability(11, 5) == RocmPlatform.get_device_capability()


@pytest.mark.parametrize(
    ("behaviour", "name"),
    [
        ("0", "AMD Instinct MI300X"),
        ("late", "AMD Instinct MI300X"),
        ("hang", "gfx942"),
        ("crash", "gfx942"),
        ("garbage", "gfx942"),
        ("34", "gfx942"),
    ],
)
def test_management_library(
    machines: Any,
    on_machine: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    behaviour: str,
    name: str,
) -> None:
    """AMD's library adds names that the kernel lacks; if it hangs, dies or raves, that is logged.

    Whether the devices can be used never waits for it.
    """
    monkeypatch.setenv("MAINBOARD_PROBE_TIMEOUT", "0.7" if behaviour == "hang" else "30")
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    machines.install_torch(hip="7.1")
    machines.install_amdsmi(behaviour, ["0000:05:00.0", "0000:26:00.0"])
    record = machines.record("mi300x-two")
    files = {path: text for path, text in record["files"].items() if "product_name" not in path}
    machine = machines.build({**record, "files": files})
    verdict = rocm.probe(machine)
    assert "available" == verdict.code and verdict.milliseconds < 600
    on_machine(machine)
    assert name == RocmPlatform.get_device_name(1)
    assert ("names no device" in caplog.text) == (name == "gfx942")


def test_free_memory(machines: Any, on_machine: Any) -> None:
    """Free memory is what the kernel counts; of a part of a divided device nobody counts it."""
    files = {
        "sys/bus/pci/devices/0000:05:00.0/mem_info_vram_used": "141652992",
        "sys/bus/pci/devices/0000:26:00.0/current_compute_partition": "CPX",
    }
    record = machines.record("mi300x-two")
    on_machine(machines.build({**record, "files": record["files"] | files}))
    assert (206_000_000_000, 206_141_652_992) == RocmPlatform.get_device_memory_info()
    with pytest.raises(NotImplementedError, match="get_device_memory_info"):
        RocmPlatform.get_device_memory_info(1)


def test_description_is_json(machines: Any, on_machine: Any) -> None:
    """Everything that `mainboard env` shows of the devices is made of JSON types."""
    on_machine(machines.from_record("mi300x-two"))
    described = RocmPlatform.describe()
    assert described == json.loads(json.dumps(described))
    assert "9.4" == described["rocm"]["devices"][0]["capability"]


def _divided(mode: str, parts: int, memory_mode: str, unique_ids: Sequence[int]) -> dict[str, Any]:
    """The files of one MI300X in so many parts."""
    device, nodes = "sys/bus/pci/devices/0000:05:00.0", "sys/class/kfd/kfd/topology/nodes"
    files = {
        "dev/kfd": "",
        f"{device}/product_name": "AMD Instinct MI300X OAM",
        f"{device}/current_compute_partition": mode,
        f"{device}/current_memory_partition": memory_mode,
    }
    for part, unique_id in enumerate(unique_ids):
        facts = {
            "simd_count": 1216 // parts,
            "simd_per_cu": 4,
            "gfx_target_version": 90402,
            "location_id": part << 28 | 0x500,
            "drm_render_minor": 128 + part,
            "unique_id": unique_id,
        }
        node, memory = f"{nodes}/{part + 1}", 206_141_652_992 // parts
        files[f"dev/dri/renderD{128 + part}"] = ""
        files[f"{node}/properties"] = "\n".join(f"{name} {each}" for name, each in facts.items())
        files[f"{node}/mem_banks/0/properties"] = f"heap_type 1\nsize_in_bytes {memory}"
    return {"files": files}


@pytest.mark.parametrize(
    ("mode", "parts", "memory_mode"),
    [("SPX", 1, "NPS1"), ("DPX", 2, "NPS2"), ("QPX", 4, "NPS4"), ("CPX", 8, "NPS4")],
)
def test_partition_modes(
    machines: Any, on_machine: Any, mode: str, parts: int, memory_mode: str
) -> None:
    """Each part of a divided device is a device, with its share of units and memory, and its mode."""
    machines.install_torch(hip="7.1")
    machine = machines.build(_divided(mode, parts, memory_mode, range(1, parts + 1)))
    assert f"{parts} visible: AMD Instinct MI300X OAM (gfx942)" == rocm.probe(machine).reason
    on_machine(machine)
    assert parts == RocmPlatform.device_count()
    for number, device in enumerate(RocmPlatform.devices()):
        assert (number, mode, memory_mode) == device[-3:]
        assert 304 // parts == RocmPlatform.num_compute_units(number)
        assert 206_141_652_992 // parts == RocmPlatform.get_device_total_memory(number)
    assert dict.fromkeys(range(parts), "0000:05:00.0") == RocmPlatform.get_all_gpu_pci_bus_ids()
    if parts > 1:
        with pytest.raises(NotImplementedError, match="get_device_memory_info"):
            RocmPlatform.get_device_memory_info()


@pytest.mark.parametrize(
    ("name", "physical"), [("ROCR_VISIBLE_DEVICES", []), ("HIP_VISIBLE_DEVICES", [0])]
)
def test_parts_that_share_an_id(
    machines: Any, on_machine: Any, name: str, physical: list[int]
) -> None:
    """An id that every part of a device has means none to the one library, the first to the other."""
    record = _divided("DPX", 2, "NPS1", [7, 7]) | {"environ": {name: "GPU-0000000000000007"}}
    on_machine(machines.build(record))
    assert physical == RocmPlatform.visible_physical_ids()
