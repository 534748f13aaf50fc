"""Which processors this process may run on, how they share cores, and where memory is near."""

from __future__ import annotations

import os

from mainboard.light_typing import TYPE_CHECKING, NamedTuple
from mainboard.platforms.machine import Machine, parse_id_list

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["NumaNode", "Topology", "read_memory_field", "read_topology"]


class NumaNode(NamedTuple):
    """Processors and memory that are near each other."""

    id: int
    cpus: tuple[int, ...]
    memory: int | None


class Topology(NamedTuple):
    """The processors of a machine.

    Args:
        online: every processor, hardware threads counted singly.
        allowed: those that this process may run on.
        physical_cores: the cores behind `allowed`.
        fast_cores: those among them to use together, where kinds differ (big.LITTLE, hybrids).
        nodes: the NUMA nodes that have processors or memory.
        memory_nodes: the nodes on which this process may have memory.
    """

    online: tuple[int, ...]
    allowed: tuple[int, ...]
    physical_cores: int
    fast_cores: int
    nodes: tuple[NumaNode, ...]
    memory_nodes: tuple[int, ...]

    @property
    def threads_per_core(self) -> int:
        """How many hardware threads of one core this process may use, at most."""
        return -(-len(self.allowed) // self.physical_cores)


def read_topology(machine: Machine) -> Topology:
    """The processors of a machine, and which of them this process may use."""
    online = parse_id_list(machine.text("sys/devices/system/cpu/online")) or _listed(machine)
    affinity = parse_id_list(_status_field(machine, "Cpus_allowed_list"))
    allowed = tuple(cpu for cpu in online if cpu in set(affinity)) or online
    nodes = _nodes(machine, online)
    mems = set(parse_id_list(_status_field(machine, "Mems_allowed_list")))
    memory_nodes = tuple(node.id for node in nodes if node.id in mems)
    return Topology(
        online,
        allowed,
        _physical_cores(machine, allowed),
        _physical_cores(machine, _fast(machine, allowed)),
        nodes,
        memory_nodes or tuple(node.id for node in nodes),
    )


def read_memory_field(machine: Machine, name: str, file: str = "proc/meminfo") -> int | None:
    """The bytes that a file such as `/proc/meminfo` gives for `name`, or None."""
    for line in (machine.text(file) or "").splitlines():
        key, _, value = line.partition(":")
        # A NUMA node's file writes "Node 0 MemTotal".
        if key.split()[-1:] == [name]:
            number, _, unit = value.strip().partition(" ")
            return int(number) * (1024 if unit == "kB" else 1) if number.isdecimal() else None
    return None


def _listed(machine: Machine) -> tuple[int, ...]:
    """The processors that cpuinfo lists, or as many as the interpreter counts."""
    lines = (machine.text("proc/cpuinfo") or "").splitlines()
    numbers = [line.partition(":")[2].strip() for line in lines if line.startswith("processor\t")]
    found = tuple(sorted({int(number) for number in numbers if number.isdecimal()}))
    return found or tuple(range(os.cpu_count() or 1))


def _status_field(machine: Machine, name: str) -> str | None:
    for line in (machine.text("proc/self/status") or "").splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return value.strip()
    return None


def _physical_cores(machine: Machine, cpus: Iterable[int]) -> int:
    """The number of cores behind `cpus`; each counts as one where the kernel says nothing."""
    waiting = set(cpus)
    cores = 0
    while waiting:
        cpu = waiting.pop()
        folder = f"sys/devices/system/cpu/cpu{cpu}/topology"
        siblings = machine.text(f"{folder}/core_cpus_list")
        waiting.difference_update(
            parse_id_list(siblings or machine.text(f"{folder}/thread_siblings_list"))
        )
        cores += 1
    return cores


def _fast(machine: Machine, cpus: tuple[int, ...]) -> tuple[int, ...]:
    """The processors to give equal parts of work; all of them where the kernel names no kinds.

    ARM's kernels give each processor a capacity, of which the fastest has 1024. Equal parts end
    when the slowest does, so those that together do most are as many as make their number times
    the least capacity among them largest. x86's kernels list the kinds of hybrid processors only.
    """
    folder = "sys/devices/system/cpu"
    of = {cpu: machine.number(f"{folder}/cpu{cpu}/cpu_capacity") or 0 for cpu in cpus[:1]}
    if any(of.values()):
        of = {cpu: machine.number(f"{folder}/cpu{cpu}/cpu_capacity") or 0 for cpu in cpus}
        capacities = sorted(of.values(), reverse=True)
        most = max(range(len(cpus)), key=lambda place: (place + 1) * capacities[place])
        return tuple(cpu for cpu in cpus if of[cpu] >= capacities[most])
    slow = {
        cpu
        for kind in ("cpu_atom", "cpu_lowpower")
        for cpu in parse_id_list(machine.text(f"sys/devices/{kind}/cpus"))
    }
    return tuple(cpu for cpu in cpus if cpu not in slow) or cpus


def _nodes(machine: Machine, online: tuple[int, ...]) -> tuple[NumaNode, ...]:
    """The NUMA nodes, or the whole machine as one where the kernel says nothing."""
    base = "sys/devices/system/node"
    nodes: list[NumaNode] = []
    for number in parse_id_list(machine.text(f"{base}/online")):
        cpus = parse_id_list(machine.text(f"{base}/node{number}/cpulist"))
        memory = read_memory_field(machine, "MemTotal", f"{base}/node{number}/meminfo")
        if cpus or memory:
            nodes.append(NumaNode(number, cpus, memory))
    return tuple(nodes) or (NumaNode(0, online, read_memory_field(machine, "MemTotal")),)
