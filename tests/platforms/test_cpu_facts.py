"""What is learnt of a processor, its neighbours and its limits, on recorded machines."""

import json
import os
import shutil
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mainboard.platforms import cpu_features
from mainboard.platforms.cgroup import read_limits
from mainboard.platforms.cpu_facts import cpu_facts, read_cpu_facts
from mainboard.platforms.machine import Machine, parse_id_list
from mainboard.platforms.recording import Replay
from mainboard.platforms.values import CpuArchEnum, cpu_architecture

RECORDS = [
    "bare-proc",
    "docker-cgroup1-host-paths",
    "epyc-vm-cgroup1",
    "graviton3",
    "h100-vm",
    "power10",
    "riscv-k1",
    "sapphire-rapids-cgroup2",
    "z16",
]


@pytest.mark.parametrize("name", RECORDS)
def test_facts_of_a_record(machines: Any, name: str) -> None:
    """Every fact that a record states is what its files give."""
    record = machines.record(name)
    facts = json.loads(json.dumps(read_cpu_facts(machines.build(record)).to_dict()))
    expected = record["facts"]["cpu"]
    assert {key: facts[key] for key in expected} == expected
    assert set(record.get("has", [])) <= set(facts["features"])


@pytest.mark.parametrize(
    ("allowed", "quota", "threads"),
    [
        ("0-7", "max 100000", 4),
        ("0-1", "max 100000", 2),
        ("0,4", "max 100000", 1),
        ("0-7", "150000 100000", 2),
        ("0-7", "1000 100000", 1),
        ("0-7", "3900000 100000", 4),
    ],
)
def test_threads(machines: Any, allowed: str, quota: str, threads: int) -> None:
    """The least of affinity, quota rounded up, and cores, is recommended, and never nothing."""
    files = {
        "proc/self/status": f"Cpus_allowed_list:\t{allowed}\n",
        "proc/self/cgroup": "0::/\n",
        "proc/self/mountinfo": "31 1 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
        "sys/devices/system/cpu/online": "0-7",
        "sys/fs/cgroup/cpu.max": quota,
    }
    siblings = {
        f"sys/devices/system/cpu/cpu{n}/topology/core_cpus_list": f"{n % 4},{n % 4 + 4}"
        for n in range(8)
    }
    machine = machines.build({"files": files | siblings})
    assert threads == read_cpu_facts(machine).recommended_threads


@pytest.mark.parametrize(("granted", "tiles"), [(None, True), (1 << 18, True), (231, False)])
def test_tiles_that_the_kernel_refuses(machines: Any, granted: int | None, tiles: bool) -> None:
    """AMX is there only if the kernel grants its registers, as far as it can be asked."""
    record = machines.record("sapphire-rapids-cgroup2") | {"tile_permission": granted}
    facts = read_cpu_facts(Replay(record))
    assert tiles == ("amx_bf16" in facts.processor.features)
    assert "avx512_bf16" in facts.processor.features
    assert facts.tiles_refused is not tiles


@pytest.mark.skipif(shutil.which("taskset") is None, reason="no taskset here")
@pytest.mark.multiprocess
def test_taskset() -> None:
    """A process that is bound to one processor computes with one thread, and says so."""
    cpu = str(min(os.sched_getaffinity(0)))
    program = (
        "from mainboard.platforms import use_platform\n"
        "with use_platform('cpu') as p: print(p.num_compute_units(), p.discover_numa_topology())"
    )
    command = ["taskset", "--cpu-list", cpu, sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"1 [[{cpu}]]" == done.stdout.strip()


def _version_2(limits: dict[str, str], path: str = "/a/b", root: str = "/") -> dict[str, Any]:
    mount = f"31 1 0:28 {root} /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    return {
        "files": {
            "proc/self/cgroup": f"0::{path}\n",
            "proc/self/mountinfo": mount,
            **{f"sys/fs/cgroup/{name}": text for name, text in limits.items()},
        }
    }


@pytest.mark.parametrize(
    ("limits", "memory"),
    [
        ({"a/b/memory.max": "max", "a/memory.max": "max"}, None),
        ({"a/b/memory.max": "100", "a/memory.max": "200"}, 100),
        ({"a/b/memory.max": "300", "a/memory.max": "200"}, 200),
        ({"memory.max": "50", "a/b/memory.max": "200"}, 50),
        ({"a/b/c/memory.max": "10"}, None),
        ({"a/b/memory.max": "garbage"}, None),
        ({}, None),
    ],
)
def test_tightest_memory_limit(machines: Any, limits: dict[str, str], memory: int | None) -> None:
    """The tightest limit from the process's group upward counts; no other group's does."""
    assert memory == read_limits(machines.build(_version_2(limits))).memory


@pytest.mark.parametrize(
    ("path", "root", "quota"),
    [
        ("/x/y", "/x", 1.0),
        ("/x", "/x", 3.0),
        ("/xy/y", "/x", 3.0),
        ("/../../elsewhere", "/", 3.0),
        ("/y", "/", 1.0),
        ("/gone", "/", 3.0),
    ],
)
def test_path_below_the_mount(machines: Any, path: str, root: str, quota: float) -> None:
    """A group's path is taken below the mount's root; if it is not there, the mount is all."""
    limits = {"cpu.max": "300000 100000", "y/cpu.max": "100000 100000"}
    assert quota == read_limits(machines.build(_version_2(limits, path, root))).cpus


def test_inner_quota_is_read_when_outer_has_none(machines: Any) -> None:
    """The process's own group is reached through a mount that shows a part of the tree."""
    machine = machines.build(_version_2({"y/cpu.max": "200000 100000"}, "/x/y", "/x"))
    limits = read_limits(machine)
    assert (2.0, "/sys/fs/cgroup/y") == (limits.cpus, limits.cpus_from)


def test_mount_point_with_a_blank(machines: Any) -> None:
    """The octal escapes of mountinfo are undone."""
    record = {
        "files": {
            "proc/self/cgroup": "0::/\n",
            "proc/self/mountinfo": "31 1 0:28 / /my\\040groups rw - cgroup2 cgroup2 rw\n",
            "my groups/memory.max": "4096",
        }
    }
    assert 4096 == read_limits(machines.build(record)).memory


def test_memory_available_is_live(machines: Any) -> None:
    """What is free is read anew each time, though the limits are not."""
    machine = machines.from_record("sapphire-rapids-cgroup2")
    facts = read_cpu_facts(machine)
    before = facts.memory()
    app = "sys/fs/cgroup/kubepods.slice/pod1/app/memory.current"
    with open(machine.path(app), "w") as file:
        file.write(str(16 << 30))
    assert facts.memory().free < before.free
    assert facts.memory().total == before.total == 16 << 30


def test_a_full_group_has_nothing_left(machines: Any) -> None:
    """Usage above the limit, as the kernel allows for a moment, is not a negative number."""
    limits = {"memory.max": "100", "memory.current": "150", "memory.stat": "inactive_file 10\n"}
    machine = machines.build(_version_2(limits, "/"))
    assert 0 == read_limits(machine).memory_available(machine)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("0-3,8,10-11", (0, 1, 2, 3, 8, 10, 11)),
        ("5", (5,)),
        ("", ()),
        (None, ()),
        ("0-1,x,3", (0, 1, 3)),
        ("1-0", ()),
    ],
)
def test_id_lists(text: str | None, numbers: tuple[int, ...]) -> None:
    """The kernel's lists of numbers are read, and what is no number in them is left out."""
    assert numbers == parse_id_list(text)


@pytest.mark.parametrize(
    ("machine", "family"),
    [
        ("x86_64", CpuArchEnum.X86),
        ("AMD64", CpuArchEnum.X86),
        ("i686", CpuArchEnum.X86),
        ("aarch64", CpuArchEnum.ARM),
        ("arm64", CpuArchEnum.ARM),
        ("armv7l", CpuArchEnum.ARM),
        ("ppc64le", CpuArchEnum.POWERPC),
        ("s390x", CpuArchEnum.S390X),
        ("riscv64", CpuArchEnum.RISCV),
        ("loongarch64", CpuArchEnum.OTHER),
        ("", CpuArchEnum.UNKNOWN),
    ],
)
def test_architectures(machine: str, family: CpuArchEnum) -> None:
    """Each name that a kernel gives its processor belongs to one family."""
    assert family is cpu_architecture(machine)


def test_macos_answers() -> None:
    """On macOS the same names come from sysctl, and a name it does not have is absent."""
    answers = {
        "machdep.cpu.brand_string": b"Apple M3\0",
        "hw.optional.arm.FEAT_BF16": (1).to_bytes(4, "little"),
        "hw.optional.AdvSIMD": (1).to_bytes(4, "little"),
        "hw.optional.arm.FEAT_SME": (0).to_bytes(4, "little"),
    }
    processor = cpu_features._from_sysctl(answers.get)
    assert ("Apple M3", {"bf16", "neon"}) == (processor.model, processor.features)


def test_windows_answers() -> None:
    """On Windows the same names come from numbered questions."""
    processor = cpu_features._from_windows({40, 41}.__contains__, {"PROCESSOR_IDENTIFIER": "Intel"})
    assert ("Intel", {"avx2", "avx512f"}) == (processor.model, processor.features)


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_foreign_systems_never_fail(tmp_path: Any, system: str) -> None:
    """A system whose calls are not here leaves facts out instead of failing."""
    machine = Machine(tmp_path, {}, system=system, architecture="arm64", import_path=[])
    facts = read_cpu_facts(machine)
    assert facts.recommended_threads >= 1
    assert facts.processor.features <= set(cpu_features._SYSCTL.values())
    assert json.dumps(facts.to_dict())


def test_this_machine() -> None:
    """Here the facts agree with what Python knows by other ways, and are read once."""
    facts = cpu_facts()
    assert facts is cpu_facts()
    if hasattr(os, "sched_getaffinity"):
        assert set(facts.topology.allowed) <= set(range(os.cpu_count() or 1))
        assert len(facts.topology.allowed) == len(os.sched_getaffinity(0))
    assert 1 <= facts.recommended_threads <= len(facts.topology.allowed)
    assert 0 < facts.memory().free <= facts.memory().total <= facts.installed_memory


def test_facts_are_json(machines: Any) -> None:
    """Everything `mainboard env` shows of the processor is made of JSON types."""
    facts = read_cpu_facts(machines.from_record("graviton3")).to_dict()
    assert facts == json.loads(json.dumps(facts))


ARCHITECTURES = ["x86_64", "aarch64", "ppc64le", "s390x", "riscv64", "sparc64", ""]

# Lines as they are in /proc and /sys, and damage to them.
_WORDS = st.sampled_from(
    [
        *("flags", "Features", "isa", "cpu", "features", "processor 0", "rv64imv_zvfh", "POWER"),
        *("avx2 fma", "-1", "--5", "0-99999999999", "9" * 30, "MemTotal", "12 kB", "kB"),
        *("0::/a", "cgroup2", " - ", "/", "max"),
    ]
)
_TEXTS = st.lists(
    st.lists(_WORDS | st.text(max_size=6), max_size=4).map(": ".join), max_size=4
).map("\n".join)


@settings(deadline=None, max_examples=300)
@given(
    architecture=st.sampled_from(ARCHITECTURES),
    texts=st.lists(_TEXTS, min_size=8, max_size=8),
)
def test_damaged_files_never_fail(architecture: str, texts: list[str]) -> None:
    """Whatever stands in the files, facts come out, and they can be used and shown."""
    names = ["proc/cpuinfo", "proc/meminfo", "proc/self/status", "proc/self/cgroup"]
    names += ["proc/self/mountinfo", "sys/devices/system/cpu/online"]
    names += ["sys/devices/system/node/online", "sys/fs/cgroup/memory.max"]
    files = dict(zip(names, texts, strict=True))
    machine = InMemory("/nowhere", {}, system="linux", architecture=architecture, import_path=[])
    machine.files = files
    facts = read_cpu_facts(machine)
    assert 1 <= facts.recommended_threads <= max(1, len(facts.topology.online))
    assert 0 <= facts.memory().free <= facts.memory().total
    assert json.dumps(facts.to_dict())


class InMemory(Machine):
    """A machine whose files are a dictionary."""

    files: dict[str, str]

    def text(self, name: str, limit: int = -1) -> str | None:
        """The beginning of a file, if there is one."""
        found = self.files.get(name.lstrip("/"))
        return None if found is None else found[: None if limit < 0 else limit].strip()
