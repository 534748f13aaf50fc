"""Which kernels are compiled in, which can run here, and which are active.

`MAINBOARD_KERNELS` = `compiled`, `triton` or `reference` forces a level; unset takes the best that
there is. The CPU's is chosen once, when the operators are first needed; on a GPU each configuration
is served by the best that serves it (`mainboard.kernels.gpu_dispatch`).
"""

import ctypes
import functools
import logging
import os
import sys
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from mainboard import build_info
from mainboard.errors import KernelUnavailableError
from mainboard.kernels.architecture import architecture

__all__ = [
    "KernelLevel",
    "Library",
    "active_level",
    "forced_level",
    "interpreted",
    "libraries",
    "load",
    "loaded",
    "status",
    "why_no_triton",
]

logger = logging.getLogger(__name__)

SETTING = "MAINBOARD_KERNELS"
OLDEST_TRITON = (3, 4)


class KernelLevel(StrEnum):
    """How an operator is implemented, best first."""

    COMPILED = "compiled"
    TRITON = "triton"
    REFERENCE = "reference"


@dataclass(frozen=True)
class Library:
    """One compiled kernel library and what became of it in this process."""

    device: str
    path: str | None
    loaded: bool
    reason: str
    variants: tuple[str, ...] = ()
    usable: tuple[str, ...] = ()
    active: str | None = None


def forced_level() -> KernelLevel | None:
    """What `MAINBOARD_KERNELS` asks for.

    Raises:
        KernelUnavailableError: the setting names no level.
    """
    name = os.environ.get(SETTING, "").strip()
    if not name:
        return None
    try:
        return KernelLevel(name)
    except ValueError:
        levels = ", ".join(KernelLevel)
        raise KernelUnavailableError(
            f"{SETTING} is {name!r}; expected one of {levels}, or unset for the best there is"
        ) from None


def _load_cpu(path: Path, variants: tuple[str, ...]) -> Library:
    """Load the CPU library: this registers its kernels with PyTorch's dispatcher."""
    torch.ops.load_library(path)
    handle = ctypes.CDLL(str(path))
    handle.mainboard_cpu_isa.restype = ctypes.c_char_p
    usable = tuple(name for name in variants if handle.mainboard_cpu_runs(name.encode()))
    active = handle.mainboard_cpu_isa().decode()
    if not active:
        wanted = os.environ.get("MAINBOARD_CPU_ISA")
        raise KernelUnavailableError(
            f"MAINBOARD_CPU_ISA is {wanted!r}; usable on this processor: {', '.join(usable)}"
        )
    return Library("cpu", str(path), True, "loaded", variants, usable, active)


def _load_gpu(path: Path, variants: tuple[str, ...]) -> Library:
    """Load a GPU's library, whose operators are in a namespace of its own."""
    device = path.stem.removeprefix("libmainboard_")
    if not torch.cuda.is_available():
        return Library(device, str(path), False, "torch sees no GPU here", variants)
    here = {architecture(index) for index in range(torch.cuda.device_count())}
    # sm_90a is sm_90 with the instructions that only it has.
    usable = tuple(name for name in variants if name.rstrip("a") in here or name in here)
    if not usable:
        why = f"is compiled for {', '.join(variants)}; the devices here are {', '.join(here)}"
        return Library(device, str(path), False, why, variants)
    torch.ops.load_library(path)
    return Library(device, str(path), True, "loaded", variants, usable, usable[-1])


_LOADERS = {"cpu": _load_cpu, "cuda": _load_gpu, "hip": _load_gpu}


@functools.cache
def _library(device: str) -> Library:
    info = build_info.library(device)
    if info is None:
        why = (
            "no compiled library is installed beside mainboard.kernels: it was built without a "
            f"compiler for {device}, with MAINBOARD_BUILD_KERNELS=0, or on a system other than "
            f"Linux (this is {sys.platform}). Reinstall with "
            "`pip install --no-binary mainboard mainboard`"
        )
        return Library(device, None, False, why)
    try:
        return _LOADERS[device](info.path, info.instruction_sets)
    except OSError as error:
        why = f"{info.path.name} does not load into torch {torch.__version__}: {error}"
        return Library(device, str(info.path), False, why, info.instruction_sets)


@functools.cache
def why_no_triton() -> str | None:
    """Why the Triton kernels cannot be used in this process; None where they can."""
    if find_spec("triton") is None:
        return "triton is not installed: pip install 'mainboard[triton]'"
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version("triton")
    except PackageNotFoundError:  # ROCm's and others' builds go by other names
        return None
    if tuple(map(int, found.split(".")[:2])) < OLDEST_TRITON:
        oldest = ".".join(map(str, OLDEST_TRITON))
        return f"triton is {found}; at least {oldest} is needed"
    return None


def interpreted() -> bool:
    """Whether Triton kernels run in Triton's interpreter, which takes CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


def _load_triton() -> KernelLevel:
    """Triton was asked for by name: there must be something for it to run on."""
    why = why_no_triton()
    if why is None and not interpreted() and not torch.cuda.is_available():
        why = (
            "its kernels run on NVIDIA's and AMD's devices, and torch sees none here; "
            "TRITON_INTERPRET=1 runs them on the CPU, slowly, for tests"
        )
    if why is not None:
        raise KernelUnavailableError(f"{SETTING} is 'triton', but {why}")
    if interpreted():
        return KernelLevel.TRITON
    logger.warning("%s is 'triton': tensors on the CPU get the plain PyTorch reference", SETTING)
    return KernelLevel.REFERENCE


@functools.cache
def load() -> KernelLevel:
    """Load what the setting allows for the CPU, once, and say which level is active.

    Raises:
        KernelUnavailableError: the level that was asked for is not there.
    """
    forced = forced_level()
    if forced is KernelLevel.REFERENCE:
        return forced
    if forced is KernelLevel.TRITON:
        return _load_triton()
    library = _library("cpu")
    if library.loaded:
        return KernelLevel.COMPILED
    if forced is KernelLevel.COMPILED:
        raise KernelUnavailableError(f"{SETTING} is 'compiled', but {library.reason}")
    logger.warning(
        "Attention runs on the plain PyTorch reference, which is slow: %s", library.reason
    )
    return KernelLevel.REFERENCE


def active_level() -> KernelLevel:
    """The level that serves CPU tensors in this process."""
    return load()


def loaded(device: str) -> Library:
    """The compiled library of `cpu`, `cuda` or `hip`, loaded if the setting allows and it can be."""
    forced = forced_level()
    if forced not in (None, KernelLevel.COMPILED):
        return Library(device, None, False, f"not loaded: {SETTING} is {forced.value!r}")
    return _library(device)


def libraries() -> tuple[Library, ...]:
    """Every compiled library that this torch can use, the CPU's first."""
    gpu = "cuda" if torch.version.cuda else "hip" if torch.version.hip else None
    return tuple(loaded(device) for device in ("cpu", gpu) if device)


def status() -> dict[str, Any]:
    """Compiled in, able to run here, active: JSON-able, for the doctor."""
    return {
        "setting": os.environ.get(SETTING),
        "level": load().value,
        "libraries": [asdict(library) for library in libraries()],
        "triton": why_no_triton() or "usable",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
