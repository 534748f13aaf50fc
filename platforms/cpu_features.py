"""Which processor this is, and which instruction sets it has.

Names are those of Linux's `/proc/cpuinfo` on x86; elsewhere the kernel's, except that ARM's
`asimd*` are called by what they do (`neon`, `fp16`, `dotprod`). Other systems answer the same
names through calls that they have for it. What nobody answers is absent, never an error.
"""

from __future__ import annotations

from itertools import takewhile

from mainboard.light_typing import TYPE_CHECKING, NamedTuple
from mainboard.platforms.machine import Machine
from mainboard.platforms.values import CpuArchEnum, cpu_architecture

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

__all__ = ["Processor", "native_dtypes", "read_processor"]


class Processor(NamedTuple):
    """A processor's model and its instruction sets."""

    model: str
    features: frozenset[str]


# All that compute on vectors, those that later kernels know included.
_X86 = ("sse4_", "avx", "fma", "f16c", "bmi", "amx_")

_ARM = {
    "asimd": "neon",
    "neon": "neon",
    "asimdhp": "fp16",
    "asimdfhm": "fp16fml",
    "asimddp": "dotprod",
    "bf16": "bf16",
    "i8mm": "i8mm",
    "sve": "sve",
    "sve2": "sve2",
    "svebf16": "sve_bf16",
    "svei8mm": "sve_i8mm",
    "sme": "sme",
    "sme2": "sme2",
}

# What each generation of POWER added; cpuinfo names the generation only.
_POWER = {7: "vsx", 8: "vsx2", 9: "vsx3", 10: "mma"}

_S390X = frozenset(("vx", "vxd", "vxe", "vxe2", "vxe3", "vxp", "nnpa"))

_ARM_PARTS = {
    ("0x41", "0xd0c"): "Arm Neoverse-N1",
    ("0x41", "0xd40"): "Arm Neoverse-V1",
    ("0x41", "0xd49"): "Arm Neoverse-N2",
    ("0x41", "0xd4f"): "Arm Neoverse-V2",
    ("0x41", "0xd84"): "Arm Neoverse-V3",
    ("0x41", "0xd8e"): "Arm Neoverse-N3",
    ("0xc0", "0xac3"): "Ampere-1",
}

_NATIVE_BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16", "sve_bf16", "mma", "zvfbfwma"})
_NATIVE_FP16 = frozenset({"avx512_fp16", "amx_fp16", "fp16", "zvfh"})


def read_processor(machine: Machine) -> Processor:
    """The processor of a machine, from whichever source its system has."""
    if machine.system == "darwin":
        return _from_sysctl(_sysctl)
    if machine.system == "win32":
        return _from_windows(_windows_has, machine.environ)
    # Enough for the first processor, and for the summary that s390x puts before it: on the
    # others each processor repeats what all of them can do.
    return _from_cpuinfo(machine.architecture, machine.text("proc/cpuinfo", 16384) or "")


def native_dtypes(features: frozenset[str]) -> tuple[str, ...]:
    """The dtypes that these instruction sets compute without conversion."""
    bfloat16 = ("bfloat16",) if features & _NATIVE_BF16 else ()
    float16 = ("float16",) if features & _NATIVE_FP16 else ()
    return (*bfloat16, *float16, "float32")


def _from_cpuinfo(architecture: str, text: str) -> Processor:
    """A processor from `/proc/cpuinfo`; of a repeated key the first counts."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip().lower(), value.strip())
    readers = {
        CpuArchEnum.X86: _x86,
        CpuArchEnum.ARM: _arm,
        CpuArchEnum.POWERPC: _power,
        CpuArchEnum.S390X: _s390x,
        CpuArchEnum.RISCV: _riscv,
    }
    reader = readers.get(cpu_architecture(architecture))
    if reader is None:
        return Processor(fields.get("model name", ""), frozenset())
    return reader(fields)


def _x86(fields: Mapping[str, str]) -> Processor:
    features = frozenset(f for f in fields.get("flags", "").split() if f.startswith(_X86))
    return Processor(fields.get("model name", ""), features)


def _arm(fields: Mapping[str, str]) -> Processor:
    features = frozenset(_ARM[f] for f in fields.get("features", "").split() if f in _ARM)
    maker, part = fields.get("cpu implementer", ""), fields.get("cpu part", "")
    unknown = f"Arm implementer {maker}, part {part}" if maker and part else ""
    model = fields.get("model name") or _ARM_PARTS.get((maker, part), unknown)
    return Processor(model, features)


def _power(fields: Mapping[str, str]) -> Processor:
    model = fields.get("cpu", "")
    digits = "".join(takewhile(str.isdecimal, model.upper().removeprefix("POWER")))
    number = int(digits or 0)
    features = {name for since, name in _POWER.items() if number >= since}
    if "altivec" in model:
        features.add("altivec")
    return Processor(model.split(",")[0], frozenset(features))


def _s390x(fields: Mapping[str, str]) -> Processor:
    features = frozenset(fields.get("features", "").split()) & _S390X
    machine = fields.get("processor 0", "").partition("machine = ")[2]
    model = f"{fields.get('vendor_id', '')} {machine.partition(',')[0]}"
    return Processor(model.strip(), features)


def _riscv(fields: Mapping[str, str]) -> Processor:
    base, *extensions = fields.get("isa", "").lower().split("_")
    letters = base.removeprefix("rv64").removeprefix("rv32")
    # Since kernel 6.x the single letters can end in a long name: rv64imafdcvzicsr.
    features = set(takewhile(lambda letter: letter != "z", letters)) & set("afdcv")
    features.update(name for name in extensions if name.startswith(("zv", "zf")))
    return Processor(fields.get("model name") or fields.get("uarch", ""), frozenset(features))


_SYSCTL = {
    "hw.optional.avx2_0": "avx2",
    "hw.optional.avx1_0": "avx",
    "hw.optional.sse4_2": "sse4_2",
    "hw.optional.fma": "fma",
    "hw.optional.f16c": "f16c",
    "hw.optional.avx512f": "avx512f",
    "hw.optional.avx512bw": "avx512bw",
    "hw.optional.avx512dq": "avx512dq",
    "hw.optional.avx512vl": "avx512vl",
    "hw.optional.AdvSIMD": "neon",
    "hw.optional.arm.AdvSIMD": "neon",
    "hw.optional.arm.FEAT_FP16": "fp16",
    "hw.optional.arm.FEAT_FHM": "fp16fml",
    "hw.optional.arm.FEAT_DotProd": "dotprod",
    "hw.optional.arm.FEAT_BF16": "bf16",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_SME": "sme",
    "hw.optional.arm.FEAT_SME2": "sme2",
}

# Numbers of Windows' PF_* constants.
_WINDOWS = {
    38: "sse4_2",
    39: "avx",
    40: "avx2",
    41: "avx512f",
    19: "neon",
    43: "dotprod",
    46: "sve",
    47: "sve2",
    66: "i8mm",
    67: "fp16",
    68: "bf16",
}


def _from_sysctl(read: Callable[[str], bytes | None]) -> Processor:
    """A processor from macOS's answers; `read` gives the raw value of a name."""
    present = {
        name for key, name in _SYSCTL.items() if int.from_bytes(read(key) or b"", "little") != 0
    }
    model = (read("machdep.cpu.brand_string") or b"").rstrip(b"\0").decode("utf-8", "replace")
    return Processor(model, frozenset(present))


def _from_windows(has: Callable[[int], bool], environ: Mapping[str, str]) -> Processor:
    """A processor from Windows's answers; `has` asks about one PF_* number."""
    features = frozenset(name for number, name in _WINDOWS.items() if has(number))
    return Processor(environ.get("PROCESSOR_IDENTIFIER", ""), features)


def _sysctl(name: str) -> bytes | None:
    """The raw value macOS has of `name`, or None."""
    try:
        import ctypes

        libc = ctypes.CDLL(None)
        size = ctypes.c_size_t(0)
        if libc.sysctlbyname(name.encode(), None, ctypes.byref(size), None, 0) != 0:
            return None
        value = ctypes.create_string_buffer(size.value)
        if libc.sysctlbyname(name.encode(), value, ctypes.byref(size), None, 0) != 0:
            return None
        return value.raw[: size.value]
    except (ImportError, OSError, AttributeError):  # no ctypes, no libc, no such function
        return None


def _windows_has(number: int) -> bool:
    """Whether Windows reports processor feature `number`."""
    try:
        import ctypes

        kernel32: Any = ctypes.CDLL("kernel32")
        return bool(kernel32.IsProcessorFeaturePresent(number))
    except (ImportError, OSError, AttributeError):  # no ctypes, or not Windows
        return False
