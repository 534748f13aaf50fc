"""The machine that facts are read from: files under a root, and an environment.

Everything that Mainboard learns about a machine without a vendor's library goes through a
`Machine`, so that a recorded tree of `/proc` and `/sys` stands in for a machine nobody has here.
A file that cannot be read is an absent fact, never an error.
"""

from __future__ import annotations

import os
import sys
from functools import cache, cached_property

from mainboard.light_typing import TYPE_CHECKING, NamedTuple
from mainboard.platforms.values import CpuArchEnum

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["Machine", "PciDevice", "cpu_architecture", "parse_id_list", "this_machine"]

# PCI class codes: 0x03 is a display controller, 0x12 a processing accelerator.
_COMPUTE_CLASSES = ("0x03", "0x12")

# More processors than any kernel can be built for; a list that says more is damaged.
_MOST_IDS = 1 << 16


class PciDevice(NamedTuple):
    """A display controller or accelerator on the PCI bus, with or without a driver."""

    address: str
    vendor: int
    device: int


class Machine:
    """One machine's files and environment.

    Args:
        root: the directory that stands for `/`.
        environ: the environment; the process's own by default, read anew each time.
        architecture: what `uname -m` says; that of this machine by default.
        system: what `sys.platform` says; that of this machine by default.
        import_path: where Python packages are looked for; `sys.path` by default.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] = "/",
        environ: Mapping[str, str] | None = None,
        *,
        architecture: str | None = None,
        system: str | None = None,
        import_path: Sequence[str] | None = None,
    ) -> None:
        self.root = os.fspath(root)
        self.environ = os.environ if environ is None else environ
        self.system = sys.platform if system is None else system
        self.architecture = _own_architecture() if architecture is None else architecture
        self.import_path = import_path

    def path(self, name: str) -> str:
        """Where the file that the machine calls `/name` really is."""
        return os.path.join(self.root, name.lstrip("/"))

    def text(self, name: str, limit: int = -1) -> str | None:
        """The first `limit` bytes of a file as text, stripped, or None when it cannot be read."""
        try:
            with open(self.path(name), "rb") as file:
                return file.read(limit).decode("utf-8", "replace").strip()
        except OSError:
            return None

    def number(self, name: str) -> int | None:
        """The decimal number that is a file's whole content, or None."""
        text = self.text(name)
        return int(text) if text and text.removeprefix("-").isdecimal() else None

    def names(self, name: str) -> list[str]:
        """The sorted names in a directory; none when it cannot be read."""
        try:
            return sorted(os.listdir(self.path(name)))
        except OSError:
            return []

    def exists(self, name: str) -> bool:
        """Whether there is such a file or directory."""
        return os.path.exists(self.path(name))

    def may_use(self, name: str) -> bool:
        """Whether this user may read and write a device node."""
        return os.access(self.path(name), os.R_OK | os.W_OK)

    @cached_property
    def in_wsl(self) -> bool:
        """Whether this is Linux inside Windows (WSL)."""
        release = self.text("proc/sys/kernel/osrelease") or ""
        return self.system == "linux" and "microsoft" in release.lower()

    @cached_property
    def pci_devices(self) -> tuple[PciDevice, ...]:
        """The display controllers and accelerators on the PCI bus."""
        return tuple(self._pci_devices())

    def _pci_devices(self) -> Iterator[PciDevice]:
        for address in self.names("sys/bus/pci/devices"):
            folder = f"sys/bus/pci/devices/{address}"
            if not (self.text(f"{folder}/class") or "").startswith(_COMPUTE_CLASSES):
                continue
            ids = [self.text(f"{folder}/{name}") or "" for name in ("vendor", "device")]
            try:
                yield PciDevice(address, int(ids[0], 16), int(ids[1], 16))
            except ValueError:  # not the kernel's "0x10de"
                continue


@cache
def this_machine() -> Machine:
    """The machine this process runs on."""
    return Machine()


def cpu_architecture(machine: str) -> CpuArchEnum:
    """The family of what `uname -m` says."""
    name = machine.lower()
    if not name:
        return CpuArchEnum.UNKNOWN
    families = {
        CpuArchEnum.X86: ("x86", "amd64", "i386", "i486", "i586", "i686"),
        CpuArchEnum.ARM: ("arm", "aarch"),
        CpuArchEnum.POWERPC: ("ppc", "powerpc"),
        CpuArchEnum.S390X: ("s390x",),
        CpuArchEnum.RISCV: ("riscv",),
    }
    return next(
        (family for family, prefixes in families.items() if name.startswith(prefixes)),
        CpuArchEnum.OTHER,
    )


def parse_id_list(text: str | None) -> tuple[int, ...]:
    """The numbers of a kernel list such as `0-3,8,10-11`; parts that are no number are skipped."""
    numbers: set[int] = set()
    for part in (text or "").split(","):
        first, _, last = part.strip().partition("-")
        if first.isdecimal() and (last.isdecimal() or not last):
            numbers.update(range(int(first), min(int(last or first), _MOST_IDS) + 1))
    return tuple(sorted(numbers))


def _own_architecture() -> str:
    # Not platform.machine(): it starts a process on some systems.
    if hasattr(os, "uname"):
        return os.uname().machine
    return os.environ.get("PROCESSOR_ARCHITEW6432", os.environ.get("PROCESSOR_ARCHITECTURE", ""))
