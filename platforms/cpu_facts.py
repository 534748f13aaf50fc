"""Everything known about the host's processor, gathered once."""

from __future__ import annotations

import os
from functools import cache

from mainboard.light_typing import TYPE_CHECKING, NamedTuple
from mainboard.platforms.cgroup import CgroupLimits, read_limits
from mainboard.platforms.cpu_features import Processor, native_dtypes, read_processor
from mainboard.platforms.cpu_topology import Topology, read_memory_field, read_topology
from mainboard.platforms.machine import Machine, this_machine
from mainboard.platforms.values import CpuArchEnum, MemoryInfo, cpu_architecture

if TYPE_CHECKING:
    from typing import Any

__all__ = ["CpuFacts", "HugePages", "cpu_facts", "read_cpu_facts"]

# The extended state of AMX's tile registers, which a process must ask the kernel for.
_TILE_DATA = 1 << 18


class HugePages(NamedTuple):
    """Pages of memory larger than the usual ones.

    Args:
        transparent: when the kernel uses them unasked: `always`, `madvise` or `never`; empty if it
            does not say.
        reserved: pages that are kept for those who ask, by the bytes of one.
    """

    transparent: str
    reserved: dict[int, int]


class CpuFacts(NamedTuple):
    """A processor, what it is part of, and how much of it this process may use.

    Args:
        machine: what the facts are read from.
        processor: the model, with the instruction sets that this process can use.
        topology: the processors, cores and NUMA nodes.
        limits: what the control groups leave.
        installed_memory: bytes.
        tiles_refused: whether the processor has AMX and the kernel does not grant its registers.
    """

    machine: Machine
    processor: Processor
    topology: Topology
    limits: CgroupLimits
    installed_memory: int
    tiles_refused: bool = False

    @property
    def architecture(self) -> CpuArchEnum:
        """The family of instruction sets."""
        return cpu_architecture(self.machine.architecture)

    @property
    def native_dtypes(self) -> tuple[str, ...]:
        """The dtypes that the processor computes without conversion."""
        return native_dtypes(self.processor.features)

    @property
    def recommended_threads(self) -> int:
        """How many threads to compute with: fast cores that are allowed and paid for by the quota."""
        cores = min(len(self.topology.allowed), self.topology.fast_cores)
        if self.limits.cpus is not None:
            cores = min(cores, int(-(-self.limits.cpus // 1)))
        return max(1, cores)

    @property
    def total_memory(self) -> int:
        """The bytes of memory that this process can ever have."""
        nodes = self.topology.nodes
        near = [node.memory or 0 for node in nodes if node.id in self.topology.memory_nodes]
        bound = sum(near) if 0 < len(near) < len(nodes) and all(near) else None
        known = [n for n in (self.limits.memory, bound, self.installed_memory) if n is not None]
        return min(known)

    @property
    def huge_pages(self) -> HugePages:
        """The larger pages of memory, read now."""
        base = "sys/kernel/mm"
        setting = self.machine.text(f"{base}/transparent_hugepage/enabled") or ""
        reserved: dict[int, int] = {}
        for name in self.machine.names(f"{base}/hugepages"):
            size = name.removeprefix("hugepages-").removesuffix("kB")
            count = self.machine.number(f"{base}/hugepages/{name}/nr_hugepages")
            if size.isdecimal() and count is not None:
                reserved[int(size) * 1024] = count
        return HugePages(setting.partition("[")[2].partition("]")[0], reserved)

    def memory(self) -> MemoryInfo:
        """The bytes that this process can still have, now, and could have in all."""
        total = self.total_memory
        available = read_memory_field(self.machine, "MemAvailable")
        under_limits = self.limits.memory_available(self.machine)
        known = [n for n in (available, under_limits, total) if n is not None]
        return MemoryInfo(min(known), total)

    def to_dict(self) -> dict[str, Any]:
        """Everything above as plain JSON types."""
        return {
            "architecture": self.machine.architecture,
            "model": self.processor.model,
            "features": sorted(self.processor.features),
            "native_dtypes": list(self.native_dtypes),
            "online_cpus": len(self.topology.online),
            "allowed_cpus": list(self.topology.allowed),
            "physical_cores": self.topology.physical_cores,
            "fast_cores": self.topology.fast_cores,
            "threads_per_core": self.topology.threads_per_core,
            "recommended_threads": self.recommended_threads,
            "numa_nodes": [
                {"id": node.id, "cpus": list(node.cpus), "memory": node.memory}
                for node in self.topology.nodes
            ],
            "memory_nodes": list(self.topology.memory_nodes),
            "tiles_refused": self.tiles_refused,
            "transparent_huge_pages": self.huge_pages.transparent,
            "huge_pages": {str(size): count for size, count in self.huge_pages.reserved.items()},
            "cpu_quota": self.limits.cpus,
            "cpu_quota_from": self.limits.cpus_from,
            "memory_limit": self.limits.memory,
            "memory_limit_from": self.limits.memory_from,
            "memory_installed": self.installed_memory,
            "memory_total": self.total_memory,
            "memory_available": self.memory().free,
        }


def read_cpu_facts(machine: Machine) -> CpuFacts:
    """The facts of one machine, read now."""
    installed = read_memory_field(machine, "MemTotal") or _memory_by_system()
    processor = read_processor(machine)
    refused = _refuses_tiles(machine, processor)
    if refused:
        usable = frozenset(name for name in processor.features if not name.startswith("amx_"))
        processor = processor._replace(features=usable)
    topology, limits = read_topology(machine), read_limits(machine)
    return CpuFacts(machine, processor, topology, limits, installed, refused)


def _refuses_tiles(machine: Machine, processor: Processor) -> bool:
    """Whether there is AMX here, and the kernel is known not to grant its registers."""
    if "amx_tile" not in processor.features:
        return False
    granted = machine.tile_permission()
    return granted is not None and not granted & _TILE_DATA


@cache
def cpu_facts() -> CpuFacts:
    """The facts of this machine, read once per process."""
    return read_cpu_facts(this_machine())


def _memory_by_system() -> int:
    """The bytes of memory that POSIX or Windows reports; 0 when neither answers."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return _windows_memory()


def _windows_memory() -> int:
    try:
        import ctypes

        kilobytes = ctypes.c_ulonglong(0)
        kernel32: Any = ctypes.CDLL("kernel32")
        kernel32.GetPhysicallyInstalledSystemMemory(ctypes.byref(kilobytes))
        return kilobytes.value * 1024
    except (ImportError, OSError, AttributeError):  # no ctypes, or not Windows
        return 0
