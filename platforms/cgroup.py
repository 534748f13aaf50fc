"""How much of the machine this process may use: Linux control groups, both versions.

A limit can be set on the group of the process or on any group above it; the tightest that is
visible counts. Version 1 keeps one tree for each controller, version 2 one tree for all, and a
machine may have both.
"""

from __future__ import annotations

from mainboard.light_typing import TYPE_CHECKING, NamedTuple
from mainboard.platforms.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CgroupLimits", "read_limits"]

# Version 1 writes "no limit" as the largest number of whole pages below 2**63.
_UNLIMITED = 1 << 62


class CgroupLimits(NamedTuple):
    """What the control groups leave to this process.

    Args:
        cpus: processors' worth of time, such as 1.5; None for no limit.
        memory: bytes; None for no limit.
        cpus_from: the directory of the group that sets `cpus`.
        memory_from: the directory of the group that sets `memory`.
        memory_groups: every directory with a memory limit, the process's own group first.
    """

    cpus: float | None = None
    memory: int | None = None
    cpus_from: str | None = None
    memory_from: str | None = None
    memory_groups: tuple[str, ...] = ()

    def memory_available(self, machine: Machine) -> int | None:
        """The bytes still free under every memory limit, now; None for no limit."""
        left = [_memory_left(machine, group) for group in self.memory_groups]
        return min((bytes_left for bytes_left in left if bytes_left is not None), default=None)


def read_limits(machine: Machine) -> CgroupLimits:
    """The limits on this process."""
    cpus = [(limit, g) for g in _groups(machine, "cpu") if (limit := _cpus(machine, g))]
    memory = [(limit, g) for g in _groups(machine, "memory") if (limit := _memory(machine, g))]
    least_cpus, cpus_from = min(cpus, default=(None, None))
    least_memory, memory_from = min(memory, default=(None, None))
    groups = tuple(group for _, group in memory)
    return CgroupLimits(least_cpus, least_memory, cpus_from, memory_from, groups)


class _Mount(NamedTuple):
    """A mounted tree of groups: `root` of the tree is what `point` shows."""

    point: str
    root: str
    controllers: frozenset[str] | None  # None for version 2


def _groups(machine: Machine, controller: str) -> Iterator[str]:
    """The directories that may limit `controller` for this process, its own group first."""
    paths = _memberships(machine)
    for mount in _mounts(machine):
        if mount.controllers is not None and controller not in mount.controllers:
            continue
        path = paths.get("" if mount.controllers is None else controller)
        if path is None:
            continue
        below = _below(path, mount.root)
        while below:
            yield f"{mount.point}{below}"
            below = below.rpartition("/")[0]
        yield mount.point


def _memberships(machine: Machine) -> dict[str, str]:
    """The path of this process's group by controller; version 2's is the empty name."""
    paths: dict[str, str] = {}
    for line in (machine.text("proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        paths.update(dict.fromkeys(controllers.split(","), path))
    return paths


def _mounts(machine: Machine) -> Iterator[_Mount]:
    for line in (machine.text("proc/self/mountinfo") or "").splitlines():
        before, separator, after = line.partition(" - ")
        fields, kinds = before.split(" "), after.split(" ")
        if not separator or len(fields) < 5 or kinds[0] not in ("cgroup", "cgroup2"):
            continue
        controllers = None if kinds[0] == "cgroup2" else frozenset(kinds[-1].split(","))
        yield _Mount(_unescape(fields[4]).rstrip("/"), _unescape(fields[3]), controllers)


def _below(path: str, root: str) -> str:
    """The part of a group's path under a mount's root; empty for the root itself.

    A container may see its path as the host does, or relative to a root it cannot see
    (`/../..`); then what is mounted is all it has.
    """
    path, root = path.rstrip("/"), root.rstrip("/")
    if ".." in path.split("/") or not f"{path}/".startswith(f"{root}/"):
        return ""
    return path[len(root) :]


def _unescape(text: str) -> str:
    """Undo mountinfo's octal escapes of blanks and backslashes."""
    for code, character in (("040", " "), ("011", "\t"), ("012", "\n"), ("134", "\\")):
        text = text.replace(f"\\{code}", character)
    return text


def _cpus(machine: Machine, group: str) -> float | None:
    """The processors' worth of time that a group may use, or None for no limit."""
    both = (machine.text(f"{group}/cpu.max") or "").split()
    if len(both) == 2 and both[0].isdecimal() and both[1].isdecimal():
        quota, period = map(int, both)
    else:
        quota = machine.number(f"{group}/cpu.cfs_quota_us") or 0
        period = machine.number(f"{group}/cpu.cfs_period_us") or 0
    return quota / period if quota > 0 and period > 0 else None


def _memory(machine: Machine, group: str) -> int | None:
    """The bytes that a group may use, or None for no limit."""
    # Version 1 also says the least limit of the groups above, which may not be visible.
    limits = [
        machine.number(f"{group}/memory.max"),
        machine.number(f"{group}/memory.limit_in_bytes"),
        _memory_statistic(machine, group, "hierarchical_memory_limit"),
    ]
    return min((n for n in limits if n is not None and n < _UNLIMITED), default=None)


def _memory_left(machine: Machine, group: str) -> int | None:
    limit = _memory(machine, group)
    usage = machine.number(f"{group}/memory.current")
    reclaimable = "inactive_file"
    if usage is None:
        usage = machine.number(f"{group}/memory.usage_in_bytes")
        reclaimable = "total_inactive_file"
    if limit is None or usage is None:
        return None
    cache = _memory_statistic(machine, group, reclaimable) or 0
    return max(0, limit - max(0, usage - cache))


def _memory_statistic(machine: Machine, group: str, name: str) -> int | None:
    for line in (machine.text(f"{group}/memory.stat") or "").splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.isdecimal():
            return int(value)
    return None
