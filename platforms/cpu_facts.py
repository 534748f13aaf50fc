"""Everything known about the host's processor, gathered once."""

from __future__ import annotations

import os
from functools import cache

from mainboard.light_typing import TYPE_CHECKING, NamedTuple
from mainboard.platforms.cgroup import CgroupLimits, read_limits
from mainboard.platforms.cpu_features import Processor, native_dtypes, read_processor
from mainboard.platforms.cpu_topology import Topology, read_memory_field, read_topology
from mainboard.platforms.machine import Machine, cpu_architecture, this_machine
from mainboard.platforms.values import CpuArchEnum, MemoryInfo

if TYPE_CHECKING:
    from typing import Any

__all__ = ["CpuFacts", "cpu_facts", "read_cpu_facts"]


class CpuFacts(NamedTuple):
    """A processor, what it is part of, and how much of it this process may use."""

    machine: Machine
    processor: Processor
    topology: Topology
    limits: CgroupLimits
    installed_memory: int

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
        """How many threads to compute with: cores that are allowed, and paid for by the quota."""
        cores = min(len(self.topology.allowed), self.topology.physical_cores)
        if self.limits.cpus is not None:
            cores = min(cores, int(-(-self.limits.cpus // 1)))
        return max(1, cores)

    @property
    def total_memory(self) -> int:
        """The bytes of memory that this process can ever have."""
        limit = self.limits.memory
        return self.installed_memory if limit is None else min(limit, self.installed_memory)

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
            "threads_per_core": self.topology.threads_per_core,
            "recommended_threads": self.recommended_threads,
            "numa_nodes": [
                {"id": node.id, "cpus": list(node.cpus), "memory": node.memory}
                for node in self.topology.nodes
            ],
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
    return CpuFacts(
        machine, read_processor(machine), read_topology(machine), read_limits(machine), installed
    )


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
