"""What is told of NVIDIA's devices, by the ids of each kind, on the answers of a stub of NVML in C."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from mainboard.platforms import nvml_inventory
from mainboard.platforms.cuda import CudaPlatform
from mainboard.platforms.device_ids import set_assigned_physical_gpu_ids
from mainboard.platforms.values import DeviceCapability


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
        ("GPU-bb,0", [1]),
        ("0,GPU-bb", [0]),
        ("GPU-bb,GPU-aa", [1, 0]),
        ("GPU-bbbb2222-1xyz,GPU-aa", [1, 0]),
        ("GPU-BBBB2222-1 ,GPU-AA", [1, 0]),
        ("GPU-bbxy,GPU-aa", []),
        ("gpu-bbbb2222-1", []),
        (" GPU-bbbb2222-1", []),
        ("0,9,0", [0]),
        ("4294967297", [1]),
        ("2147483648", []),
        ("99999999999999999999", []),
        ("9" * 5000, []),
        ("0" * 5000 + "1", [1]),
        ("0x1", [0]),
        ("01,-0", [1, 0]),
        ("-4294967295", [1]),
        ("-99999999999999999999", []),
        ("GPU-bb,GPU-bbbb", []),
        ("+1,0;9", [1, 0]),
        ("0,00", []),
        ("MIG-GPU-aaaa1111-0/0/0", []),
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


def test_units_that_only_torch_knows(
    second_first: Any, machines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that the driver does not list is asked of torch, by its number there."""
    machines.install_stub("cuda", "0")  # it lists another device only
    second_first()
    monkeypatch.setattr(
        CudaPlatform,
        "get_device_properties",
        lambda device: SimpleNamespace(multi_processor_count=100 + device),
    )
    assert [100, 101] == [CudaPlatform.num_compute_units(number) for number in (0, 1)]
    set_assigned_physical_gpu_ids([0])
    try:
        assert 101 == CudaPlatform.num_compute_units()
    finally:
        set_assigned_physical_gpu_ids(None)


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


@pytest.mark.parametrize("allowed", [True, False])
def test_devices_are_started_at_once(monkeypatch: pytest.MonkeyPatch, allowed: bool) -> None:
    """All of several, whichever fails; where no thread may be started, each when it is asked."""
    touched = []

    class Nvml:
        def device(self, number: int) -> None:
            touched.append(number)
            if number == 1:
                raise nvml_inventory.NvmlError(15, "lost")

    def refused(*arguments: Any) -> None:
        raise RuntimeError("can't start new thread")

    if not allowed:
        monkeypatch.setattr(nvml_inventory, "start_new_thread", refused)
    nvml: Any = Nvml()
    nvml_inventory._start(nvml, range(1))
    nvml_inventory._start(nvml, range(4))
    assert sorted(touched) == ([0, 1, 2, 3] if allowed else [])
