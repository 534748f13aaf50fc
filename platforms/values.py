"""The small values of the platform contract: kinds, capabilities, memory."""

from __future__ import annotations

import enum

from mainboard.light_typing import NamedTuple

__all__ = [
    "Capabilities",
    "CpuArchEnum",
    "DeviceCapability",
    "MemoryInfo",
    "PlatformEnum",
    "cpu_architecture",
]


class PlatformEnum(enum.Enum):
    """Which family a platform belongs to; OOT is everybody who is not built in."""

    CUDA = enum.auto()
    ROCM = enum.auto()
    TPU = enum.auto()
    XPU = enum.auto()
    CPU = enum.auto()
    OOT = enum.auto()
    UNSPECIFIED = enum.auto()


class CpuArchEnum(enum.Enum):
    """The architecture of the host's processor."""

    X86 = enum.auto()
    ARM = enum.auto()
    POWERPC = enum.auto()
    S390X = enum.auto()
    RISCV = enum.auto()
    OTHER = enum.auto()
    UNKNOWN = enum.auto()


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


class DeviceCapability(NamedTuple):
    """A device's generation; compares as the tuple `(major, minor)`."""

    major: int
    minor: int

    def as_version_str(self) -> str:
        """Written as people write it: `9.0`."""
        return f"{self.major}.{self.minor}"

    def to_int(self) -> int:
        """One number, `<major><minor>`: `90`.

        Raises:
            ValueError: the minor number has more than one digit, so the number would be ambiguous.
        """
        if not 0 <= self.minor < 10:
            raise ValueError(
                f"capability {self.major}.{self.minor} cannot be one number: "
                "its minor part is not a single digit; compare the tuple instead"
            )
        return self.major * 10 + self.minor


class MemoryInfo(NamedTuple):
    """Bytes of memory, in the order of `torch.cuda.mem_get_info`."""

    free: int
    total: int


class Capabilities(NamedTuple):
    """What a device can do; a new fact becomes a new field here, with a cautious default.

    Args:
        dtypes: names of the torch dtypes that work, the preferred one first.
        native_dtypes: those among them that the hardware computes without conversion.
        fp8_formats: names of the torch float8 dtypes that the hardware computes with.
        isa_features: instruction sets or architecture names, such as `avx2` or `sm_90`.
        integrated_memory: whether the device uses the host's memory.
        pinned_memory: whether page-locked host memory makes copies to the device faster.
        static_graphs: whether work can be captured once and replayed.
        block_scaled_formats: formats with a scale for each block (MX, NVFP4) that it computes with.
        bulk_copies: whether one instruction copies a tile to on-chip memory while others compute
            (NVIDIA's TMA).
        thread_block_clusters: whether groups of thread blocks can share on-chip memory.
    """

    dtypes: tuple[str, ...] = ("bfloat16", "float16", "float32")
    native_dtypes: tuple[str, ...] = ("float32",)
    fp8_formats: tuple[str, ...] = ()
    isa_features: frozenset[str] = frozenset()
    integrated_memory: bool = False
    pinned_memory: bool = False
    static_graphs: bool = False
    block_scaled_formats: tuple[str, ...] = ()
    bulk_copies: bool = False
    thread_block_clusters: bool = False

    def to_dict(self) -> dict[str, list[str] | bool]:
        """Everything above as plain JSON types."""
        return {
            "dtypes": list(self.dtypes),
            "native_dtypes": list(self.native_dtypes),
            "fp8_formats": list(self.fp8_formats),
            "isa_features": sorted(self.isa_features),
            "integrated_memory": self.integrated_memory,
            "pinned_memory": self.pinned_memory,
            "static_graphs": self.static_graphs,
            "block_scaled_formats": list(self.block_scaled_formats),
            "bulk_copies": self.bulk_copies,
            "thread_block_clusters": self.thread_block_clusters,
        }
