"""Which kernels are compiled in, which can run here, and which are active.

`MAINBOARD_KERNELS` = `compiled`, `triton` or `reference` forces a level; unset takes the best that
there is. The choice is made once, when the operators are first needed.
"""

import ctypes
import functools
import logging
import os
import sys
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch

from mainboard import build_info
from mainboard.errors import KernelUnavailableError

__all__ = ["KernelLevel", "Library", "active_level", "libraries", "load", "status"]

logger = logging.getLogger(__name__)

SETTING = "MAINBOARD_KERNELS"


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


@functools.cache
def _library(device: str) -> Library:
    info = build_info.library(device)
    if info is None:
        why = (
            "no compiled library is installed beside mainboard.kernels: it was built without a "
            "C++ compiler, with MAINBOARD_BUILD_KERNELS=0, or on a system other than Linux "
            f"(this is {sys.platform}). Reinstall with `pip install --no-binary mainboard mainboard`"
        )
        return Library(device, None, False, why)
    try:
        return _load_cpu(info.path, info.instruction_sets)
    except OSError as error:
        why = f"{info.path.name} does not load into torch {torch.__version__}: {error}"
        return Library(device, str(info.path), False, why, info.instruction_sets)


@functools.cache
def load() -> KernelLevel:
    """Load what the setting allows, once, and say which level is active.

    Raises:
        KernelUnavailableError: the level that was asked for is not there.
    """
    forced = forced_level()
    if forced is KernelLevel.REFERENCE:
        return forced
    if forced is KernelLevel.TRITON:
        raise KernelUnavailableError(
            f"{SETTING} is 'triton', but this release has no Triton kernels; "
            "unset it, or choose 'compiled' or 'reference'"
        )
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


def libraries() -> tuple[Library, ...]:
    """Every compiled library that this release can have."""
    if forced_level() is KernelLevel.REFERENCE:
        return (Library("cpu", None, False, f"not loaded: {SETTING} is 'reference'"),)
    return (_library("cpu"),)


def status() -> dict[str, Any]:
    """Compiled in, able to run here, active: JSON-able, for the doctor."""
    return {
        "setting": os.environ.get(SETTING),
        "level": load().value,
        "libraries": [asdict(library) for library in libraries()],
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
