"""Recorded and hand-written machines: what every platform says of each, asserted in full."""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mainboard.errors import PlatformUnavailableError
from mainboard.platforms import cuda_probe, rocm_probe
from mainboard.platforms.device_ids import set_assigned_physical_gpu_ids
from mainboard.platforms.listed_devices import ListedDevices
from mainboard.platforms.recording import Recording, Replay, facts_of, platform_on, record

RECORDS = Path(__file__).parent / "machines"
NAMES = sorted(file.stem for file in RECORDS.glob("*.json"))


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RECORDS / f"{name}.json").read_text("utf-8"))
    return found


def _varied(machine: dict[str, Any], variant: str) -> dict[str, Any]:
    """The record with a variant's parts in place of its own; of files, those that it names."""
    changes = machine.get("variants", {}).get(variant, {})
    files = machine["files"] | changes.get("files", {})
    expected = machine["facts"] | changes.get("facts", {})
    return machine | changes | {"files": files, "facts": expected}


CASES = [
    (name, variant)
    for name in NAMES
    if "facts" in _read(name)
    for variant in ("", *_read(name).get("variants", {}))
]


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_replay(name: str, variant: str) -> None:
    """Verdicts, reason codes, devices, ids, links and memory are those that the record expects."""
    machine = _varied(_read(name), variant)
    expected = machine["facts"]
    found = json.loads(json.dumps(facts_of(Replay(machine))))
    assert expected["verdicts"] == found["verdicts"]
    assert expected["devices"] == found["devices"]
    assert {key: found["cpu"][key] for key in expected["cpu"]} == expected["cpu"]


def test_table_is_large_enough() -> None:
    """The table has many machines of each kind, and every reason for which hardware is declined."""
    assert len(CASES) >= 25
    verdicts = [_varied(_read(name), variant)["facts"]["verdicts"] for name, variant in CASES]
    codes = {code for each in verdicts for _, code in each.values()}
    assert {
        *("available", "available_in_wsl", "nvml_library_missing", "nvml_unsupported"),
        *("hardware_absent", "driver_missing", "device_node_missing", "permission_denied"),
        *("no_visible_devices", "no_devices_reported", "devices_lost", "fabric_not_ready"),
        *("torch_absent", "torch_lacks_cuda", "torch_lacks_rocm", "driver_too_old"),
        *("driver_not_loaded", "driver_mismatch", "driver_library_missing"),
        *("driver_error", "driver_no_answer", "always_available"),
    } <= codes


@pytest.mark.parametrize("name", NAMES)
def test_record_says_where_it_comes_from(name: str) -> None:
    """Each record was recorded or written by hand, and says which."""
    assert _read(name)["origin"].startswith(("recorded", "written by hand", "made by hand"))


@pytest.mark.parametrize("name", NAMES)
def test_every_declined_machine_gets_a_remedy(name: str) -> None:
    """Hardware that is there and cannot be used is declined with what to do about it."""
    machine = Replay(_read(name))
    for verdict in (cuda_probe.probe(machine), rocm_probe.probe(machine)):
        assert verdict.value or verdict.remedy or verdict.code == "hardware_absent"


@pytest.mark.parametrize("name", ["h200", "h100-two"])
def test_doctor_on_the_recorded_machine(name: str) -> None:
    """What the doctor said on the machine itself is what the replay of its record says here."""
    machine = _read(name)
    assert machine["doctor"]["ok"] and machine["doctor"]["chosen"]["name"] == "cuda"
    verdict = cuda_probe.probe(Replay(machine)).to_dict()
    assert machine["doctor"]["chosen"] == {key: verdict[key] for key in machine["doctor"]["chosen"]}


SECRETS = {
    "files": {
        "proc/self/cgroup": "0::/kubepods.slice/pod-of-alice/c0ffee42",
        "proc/self/mountinfo": (
            "31 1 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
            "40 1 8:1 / /home/alice rw - ext4 /dev/sda1 rw"
        ),
        "proc/self/status": "Name:\talices-job\nCpus_allowed_list:\t0-3\nMems_allowed_list:\t0",
        "proc/cpuinfo": "processor\t: 0\nSerial\t: 00000000deadbeef\nmodel name\t: A processor",
        "proc/meminfo": "MemTotal: 1000 kB\nMemAvailable: 500 kB",
        "sys/devices/system/cpu/online": "0-3",
        "sys/fs/cgroup/kubepods.slice/pod-of-alice/c0ffee42/cpu.max": "150000 100000",
        "dev/nvidia0": "",
        "dev/nvidiactl": "",
        "dev/alices-disk": "",
    },
    "environ": {"CUDA_VISIBLE_DEVICES": "GPU-66e52c0d", "ALICES_TOKEN": "hunter2"},
    "packages": {"torch": {"version.py": "__version__ = '2.13.0'\ncuda = '13.0'"}},
    "answers": {
        "nvml_inventory devices": {
            "output": "driver\t580.65.06\t13000\ndevice\t0\tNVIDIA H200\t"
            "GPU-66e52c0d-fcb1-c2dd-5d5f-54a2badf7713\t9\t0\t1000\t00000000:00:06.0\t\nend",
            "problem": None,
        },
        "cuda_driver_inventory devices": {
            "output": "driver\t\t13000\ndevice\t0\tNVIDIA H200\t"
            "GPU-66e52c0d-fcb1-c2dd-5d5f-54a2badf7713\t9\t0\t1000\t0000:00:06.0\t\n"
            "facts\t0\t132\t\t1\t1\nend",
            "problem": None,
        },
    },
}


def test_recording_tells_no_secret() -> None:
    """A record has no id of a device, no name of a user or container, and no other variable."""
    source = Replay({"architecture": "x86_64", "system": "linux", **SECRETS})
    made = record("recorded in a test", source)
    text = json.dumps(made).lower()
    for secret in ("alice", "c0ffee42", "66e52c0d", "54a2badf7713", "hunter2", "deadbeef"):
        assert secret not in text
    (device,) = made["facts"]["devices"]["cuda"]["devices"]
    assert "GPU-00000000-0000-0000-0000-000000000001" == device["uuid"]
    assert "/sys/fs/cgroup/kubepods.slice/group1/group2" == made["facts"]["cpu"]["cpu_quota_from"]
    assert 1.5 == made["facts"]["cpu"]["cpu_quota"]


def test_ids_of_amd_devices_are_replaced_together() -> None:
    """The kernel's decimal ids and the variable's hexadecimal ones stay the same device's."""
    machine = _read("mi300x-two") | {"environ": {"ROCR_VISIBLE_DEVICES": "GPU-8af2d5e1c0ffee02"}}
    made = record("recorded in a test", Replay(machine))
    assert "c0ffee" not in json.dumps(made)
    assert [1] == made["facts"]["devices"]["rocm"]["visible"]
    assert re.fullmatch("GPU-0{15}2", made["environ"]["ROCR_VISIBLE_DEVICES"])


@pytest.mark.parametrize("name", ["dgx-h100", "a100-mig", "mi300x-cpx", "sapphire-rapids-cgroup2"])
def test_a_record_of_a_replay_is_the_same_machine(name: str) -> None:
    """Whatever is read of a machine is in its record: the facts are the same a second time."""
    source = Replay(_read(name))
    made = record("recorded in a test", source)
    again = facts_of(Replay(json.loads(json.dumps(made))))
    first = facts_of(source)
    assert json.dumps(made["facts"]) == json.dumps(again)
    assert first["verdicts"] == again["verdicts"]
    for platform, found in first["devices"].items():
        assert found["links"] == again["devices"][platform]["links"]
        memory = [device["memory"] for device in found["devices"]]
        assert memory == [device["memory"] for device in again["devices"][platform]["devices"]]


def test_denied_and_absent_are_kept() -> None:
    """A node that may not be used is in the record as that; one that is not there is not."""
    machine = Recording(Replay(_varied(_read("h200"), "denied")))
    assert not machine.may_use("dev/nvidia0") and not machine.may_use("dev/nvidia9")
    kept = machine.to_record()
    assert (["dev/nvidia0"], ["dev/nvidia0"]) == (kept["denied"], kept["present"])


def test_platform_of_a_record() -> None:
    """A platform class runs on a record without changing what it says of this machine."""
    from mainboard.platforms.cuda import CudaPlatform

    path = "mainboard.platforms.cuda.CudaPlatform"
    there = platform_on(Replay(_read("h200")), path)
    assert "NVIDIA H200" == there.get_device_name() and there.has_device_capability(90)
    assert there is not CudaPlatform and issubclass(there, CudaPlatform)
    other = platform_on(Replay(_read("rtx-5090")), path)
    assert other.has_device_capability((12, 0)) and not there.has_device_capability((12, 0))


_KINDS = ["driver", "device", "slice", "facts", "link", "memory", "fault", "error", "end", ""]
_FIELDS = [
    "",
    "0",
    "1",
    "-1",
    "13000",
    "9",
    "99999999999999999999",
    "shared",
    "mig",
    "GPU-x",
    "\xff",
]
_LINE = st.lists(st.sampled_from(_FIELDS), max_size=9).flatmap(
    lambda fields: st.sampled_from(_KINDS).map(lambda kind: "\t".join([kind, *fields]))
)
_GOOD = [
    "driver\t580.65.06\t13000",
    "device\t0\tA\tGPU-a\t9\t0\t1000\t0:0\t",
    "device\t1\tB\tGPU-b\t9\t0\t1000\t0:1\t",
    "facts\t0\t132\t\t1\t1",
    "link\t0\t1\tnvlink\tpeer\t50",
    "memory\tGPU-a\t1\t2",
    "end",
]


@settings(deadline=None, max_examples=200)
@given(
    answers=st.lists(st.lists(_LINE | st.sampled_from(_GOOD), max_size=8), min_size=4, max_size=4)
)
def test_rubbish_is_declined(answers: list[list[str]]) -> None:
    """Whatever a library writes, the verdict is one, and a question gets an answer or our error."""
    questions = ["nvml_inventory devices", "nvml_inventory links", "nvml_inventory memory"]
    questions.append("cuda_driver_inventory devices")
    machine = Replay(
        _read("h200")
        | {
            "answers": {
                question: {"output": "\n".join(lines), "problem": None}
                for question, lines in zip(questions, answers, strict=True)
            }
        }
    )
    verdict = cuda_probe.probe(machine)
    assert str(verdict.state) in ("activated", "declined")
    assert verdict.value or (verdict.reason and verdict.remedy)
    if verdict.value:
        platform = platform_on(machine, verdict.value)
        for ask in (platform.links, platform.get_device_memory_info, platform.describe):
            with contextlib.suppress(PlatformUnavailableError, NotImplementedError):
                ask()


def test_setting_that_changes_is_honoured() -> None:
    """What is remembered of a device is not used once another device is visible."""
    machine = Replay(_read("nvidia-two-gpus"))
    platform = platform_on(machine, "mainboard.platforms.cuda.CudaPlatform")
    seen = [(platform.get_device_capability(), platform.has_device_capability((8, 9)))]
    for setting in ("1", "", "1,0"):
        machine.environ["CUDA_VISIBLE_DEVICES"] = setting  # type: ignore[index]
        seen.append((platform.get_device_capability(), platform.has_device_capability((8, 9))))
    assert [((8, 0), False), ((8, 9), True), (None, False), ((8, 9), True)] == seen
    assert 2 == platform.device_count()


@pytest.fixture
def eight_of_which_two() -> Iterator[type[ListedDevices]]:
    """The platform of eight devices where two are visible, in reverse; assignments end with it."""
    machine = Replay(_read("dgx-h100") | {"environ": {"CUDA_VISIBLE_DEVICES": "7,3"}})
    yield platform_on(machine, "mainboard.platforms.cuda.CudaPlatform")
    set_assigned_physical_gpu_ids(None)


def test_three_spaces_of_ids(eight_of_which_two: Any) -> None:
    """Logical, visible and physical ids are told apart, and the device is that of the logical one."""
    p, ids = eight_of_which_two, [device.uuid for device in eight_of_which_two._listed()]
    assert [7, 3] == [p.device_id_to_physical_device_id(number) for number in (0, 1)]
    assert [ids[7], ids[3]] == [p.get_device_uuid(number) for number in (0, 1)]
    set_assigned_physical_gpu_ids([3])
    assert 3 == p.device_id_to_physical_device_id(0)
    assert 7 == p.visible_device_id_to_physical_device_id(0)
    assert 1 == p.logical_device_id_to_visible_device_id(0)
    assert ids[3] == p.get_device_uuid(0)
    assert 3 == p.device_control_id_to_physical_device_id(ids[3])


def test_ids_that_are_refused(eight_of_which_two: Any) -> None:
    """An id beyond its space, one that is hidden, and one of no device are errors that say why."""
    p = eight_of_which_two
    with pytest.raises(IndexError, match=r"device 2 was asked for, but 2 are visible .*\[7, 3\]"):
        p.get_device_uuid(2)
    with pytest.raises(IndexError, match="device -1 was asked for"):
        p.device_id_to_physical_device_id(-1)
    with pytest.raises(ValueError, match="'GPU-ffff' means no single device"):
        p.device_control_id_to_physical_device_id("GPU-ffff")
    set_assigned_physical_gpu_ids([5, 9])
    with pytest.raises(ValueError, match=r"physical device 5, which CUDA_VISIBLE_DEVICES"):
        p.logical_device_id_to_visible_device_id(0)
    with pytest.raises(IndexError, match=r"physical device 9; the working devices here are 0 "):
        p.get_device_name(1)
    with pytest.raises(IndexError, match=r"but 2 are assigned to this process: \[5, 9\]"):
        p.get_device_name(2)
