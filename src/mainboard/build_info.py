"""What was compiled into this installation. Imports neither torch nor the libraries."""

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

__all__ = ["LibraryInfo", "libraries", "library"]

DEVICES = ("cpu", "cuda", "hip")


@dataclass(frozen=True)
class LibraryInfo:
    """One compiled kernel library, as CMake described it."""

    device: str
    path: Path
    instruction_sets: tuple[str, ...]
    processor: str
    compiler: str
    build_type: str
    torch_abi: str


def _folder() -> Path:
    # The kernels package may live outside this folder (an editable installation).
    spec = find_spec("mainboard.kernels")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def library(device: str) -> LibraryInfo | None:
    """The compiled library for a device, or None when this installation has none."""
    path = _folder() / f"libmainboard_{device}.so"
    description = path.with_suffix(".json")
    if not path.is_file() or not description.is_file():
        return None
    facts = json.loads(description.read_text(encoding="utf-8"))
    facts["instruction_sets"] = tuple(facts["instruction_sets"])
    return LibraryInfo(path=path, **facts)


def libraries() -> tuple[LibraryInfo, ...]:
    """Every compiled library in this installation."""
    found = (library(device) for device in DEVICES)
    return tuple(info for info in found if info is not None)
