"""The machine that facts are read from: files under a root, and an environment.

Everything that Mainboard learns about a machine without a vendor's library goes through a
`Machine`, so that a recorded tree of `/proc` and `/sys` stands in for a machine nobody has here.
A file that cannot be read is an absent fact, never an error.
"""

from __future__ import annotations

import os
import sys

from mainboard.light_typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mainboard.platforms.bounded import Outcome

__all__ = ["Machine", "PciDevice", "parse_id_list", "this_machine"]

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
        self._on_bus: tuple[PciDevice, ...] | None = None
        self.raw_environ = _raw_environ(self.environ)
        """The same variables, named in bytes, in whichever form they can be had soonest."""

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

    def package(self, name: str) -> str | None:
        """The folder of an importable package, or of a module's file, without importing it."""
        loaded = sys.modules.get(name)
        if self.import_path is not None:
            from importlib.machinery import PathFinder

            spec = PathFinder.find_spec(name, self.import_path)
        elif loaded is not None:
            return os.path.dirname(loaded.__file__) if loaded.__file__ else None
        else:
            # Every finder is asked, as an import would: an editable install brings its own.
            finders = (getattr(finder, "find_spec", None) for finder in sys.meta_path)
            found = (find(name, None, None) for find in finders if find is not None)
            spec = next((spec for spec in found if spec is not None), None)
        return os.path.dirname(spec.origin) if spec is not None and spec.origin else None

    def package_text(self, name: str, file: str) -> str | None:
        """What stands in a file of a package, or None when it cannot be read."""
        folder = self.package(name)
        if folder is None:
            return None
        try:
            with open(os.path.join(folder, file), encoding="utf-8") as opened:
                return opened.read()
        except OSError:
            return None

    def ask(self, script: str, question: str, package: str | None = None) -> Outcome:
        """What a native library answers, asked by a script of this package for a bounded time.

        Args:
            script: the script's name without its ending.
            question: its first argument.
            package: what the script imports, if anything; its folder is the second argument.
        """
        from mainboard.platforms import bounded

        folder = self.package(package) if package else None
        arguments = [question, folder] if folder else [question]
        return bounded.ask(_script(script), arguments, bounded.time_limit())

    def ask_ahead(self, script: str, question: str) -> None:
        """Start asking what `ask` is about to be asked, to have the answer sooner."""
        from mainboard.platforms import bounded

        bounded.ask_ahead(_script(script), [question])

    def tile_permission(self) -> int | None:
        """The extended states that the kernel grants on request (AMX), as a bit for each.

        None where there is nobody to ask, as on other systems and processors.
        """
        here = (self.root, self.system, self.architecture) == ("/", "linux", "x86_64")
        return _supported_states() if here else None

    @property
    def in_wsl(self) -> bool:
        """Whether this is Linux inside Windows (WSL)."""
        release = self.text("proc/sys/kernel/osrelease") or ""
        return self.system == "linux" and "microsoft" in release.lower()

    @property
    def pci_devices(self) -> tuple[PciDevice, ...]:
        """The display controllers and accelerators on the PCI bus."""
        if self._on_bus is None:
            self._on_bus = tuple(self._pci_devices())
        return self._on_bus

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


_here: list[Machine] = []


def this_machine() -> Machine:
    """The machine this process runs on."""
    if not _here:
        _here.append(Machine())
    return _here[0]


def parse_id_list(text: str | None) -> tuple[int, ...]:
    """The numbers of a kernel list such as `0-3,8,10-11`; parts that are no number are skipped."""
    numbers: set[int] = set()
    for part in (text or "").split(","):
        first, _, last = part.strip().partition("-")
        if first.isdecimal() and (last.isdecimal() or not last):
            numbers.update(range(int(first), min(int(last or first), _MOST_IDS) + 1))
    return tuple(sorted(numbers))


def _script(name: str) -> str:
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), f"{name}.py")


def _raw_environ(environ: Mapping[str, str]) -> Mapping[bytes, object]:
    # Reading os.environ encodes, looks up and decodes, which takes longer than all else that a
    # question asked in a loop does. What it looks up in is the same for every CPython on POSIX.
    data = getattr(environ, "_data", None) if environ is os.environ else None
    if os.name == "posix" and isinstance(data, dict):
        return data
    from mainboard.platforms.encoded_environ import EncodedEnviron

    return EncodedEnviron(environ)


def _own_architecture() -> str:
    # Not platform.machine(): it starts a process on some systems.
    if hasattr(os, "uname"):
        return os.uname().machine
    return os.environ.get("PROCESSOR_ARCHITEW6432", os.environ.get("PROCESSOR_ARCHITECTURE", ""))


def _supported_states() -> int | None:
    """What Linux answers on x86."""
    try:
        import ctypes

        supported = ctypes.c_uint64(0)
        ask_for_supported, arch_prctl = 0x1021, 158
        libc = ctypes.CDLL(None)
        # Kernels before 5.16, and some sandboxes, refuse the question: they grant nothing either.
        refused = libc.syscall(arch_prctl, ask_for_supported, ctypes.byref(supported)) != 0
    except (ImportError, OSError, AttributeError):  # no ctypes, no libc, no such function
        return None
    return 0 if refused else supported.value
