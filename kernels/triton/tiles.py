"""The tiles of each architecture: how many queries and keys a program holds, and how it is run.

Data, found by measuring (on sm_90) or by fitting registers and shared memory (on the others, which
were compiled for and not run on). A file that `mainboard tune` wrote comes first:
`MAINBOARD_TILES` names it.
"""

import functools
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mainboard.errors import KernelUnavailableError

__all__ = ["ARCHITECTURES", "KINDS", "Tile", "family", "padded", "read", "tile", "use", "write"]

SETTING = "MAINBOARD_TILES"
KINDS = ("prefill", "decode", "latent")


@dataclass(frozen=True)
class Tile:
    """One way to run a kernel.

    Args:
        block_m: rows, which are queries times heads that share a key head; in decode, at most.
        block_n: keys of one step.
        num_warps: of 32 threads, or 64 on AMD's CDNA.
        num_stages: steps whose loads are under way.
        described: load whole blocks by descriptor (the bulk copy engine), where they lie so.
        scattered_stages: as `num_stages`, where each row of a block has an address of its own, found
            in the page table; its loads need twice the time. 0: the same.
        slice: columns that latent attention multiplies at a time; 0: all.
        near: count offsets into keys and values in 32 bits, where these suffice.
        rows_again: work out which rows a tile has a second time after its walk over the keys, which
            leaves the walk more registers.
        per_unit: programs that one compute unit holds at a time; for counting splits.
        options: what else the architecture's compiler is told.
    """

    block_m: int
    block_n: int
    num_warps: int = 4
    num_stages: int = 2
    described: bool = False
    scattered_stages: int = 0
    slice: int = 0
    near: bool = True
    rows_again: bool = True
    per_unit: int = 2
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def launch(self, scattered: bool) -> dict[str, Any]:
        """The keyword arguments of a launch."""
        stages = (scattered and self.scattered_stages) or self.num_stages
        return {"num_warps": self.num_warps, "num_stages": stages, **self.options}


Table = Mapping[tuple[str, int], Tile]


def _table(rows: dict[tuple[str, int], Tile], **every: Any) -> Table:
    return MappingProxyType({at: replace(tile, **every) for at, tile in rows.items()})


_HOPPER = _table(
    {
        ("prefill", 64): Tile(128, 64, 8, 3, described=True),
        # With 128 registers two programs share a multiprocessor: one's products run beside the
        # other's softmax.
        ("prefill", 128): Tile(
            128, 64, 8, 2, described=True, scattered_stages=3, options={"maxnreg": 128}
        ),
        ("traced prefill", 128): Tile(128, 128, 8, 3, scattered_stages=5),
        ("prefill", 256): Tile(128, 64, 8, 2, described=True),
        ("decode", 64): Tile(64, 64, 2, 3, near=False, per_unit=4),
        ("decode", 128): Tile(64, 128, 4, 2, near=False),
        ("decode", 256): Tile(64, 64, 4, 3, near=False),
        ("latent", 512): Tile(64, 64, 8, 2, per_unit=1),
    }
)
# Its matrix unit keeps operands in shared memory that Hopper's takes from registers.
_BLACKWELL = _table(
    {
        **_HOPPER,
        ("prefill", 64): Tile(128, 64, 8, 3, rows_again=False),
        ("prefill", 128): Tile(128, 128, 8, 3, scattered_stages=5),
        ("latent", 512): Tile(32, 32, 8, 2, per_unit=1),
    }
)
_AMPERE = _table(
    {
        ("prefill", 64): Tile(128, 64, 4, 3),
        ("prefill", 128): Tile(128, 32, 8, 3, scattered_stages=5),
        ("prefill", 256): Tile(64, 32, 8, 2),
        ("decode", 64): Tile(64, 64, 4, 3),
        ("decode", 128): Tile(64, 64, 4, 3),
        ("decode", 256): Tile(64, 32, 4, 2),
        ("latent", 512): Tile(32, 32, 8, 2, per_unit=1),
    }
)
# As Ampere, with 99 KiB of shared memory to a program.
_ADA = _table(
    {
        ("prefill", 64): Tile(128, 64, 8, 3),
        ("prefill", 128): Tile(128, 32, 8, 3, scattered_stages=5),
        ("prefill", 256): Tile(64, 32, 8, 2),
        ("decode", 64): Tile(64, 64, 4, 3),
        ("decode", 128): Tile(64, 32, 4, 2),
        ("decode", 256): Tile(32, 16, 4, 2),
        ("latent", 512): Tile(16, 16, 8, 2, per_unit=1),
    }
)
# 64 KiB of shared memory, no asynchronous copies.
_TURING = _table(
    {
        ("prefill", 64): Tile(64, 32, 8, 1),
        ("prefill", 128): Tile(16, 32, 4, 1),
        ("prefill", 256): Tile(32, 16, 8, 1),
        ("decode", 64): Tile(32, 32, 4, 1),
        ("decode", 128): Tile(32, 32, 4, 1),
        ("decode", 256): Tile(16, 16, 4, 1),
        ("latent", 512): Tile(16, 16, 8, 1, slice=128, per_unit=1),
    }
)
_CDNA = _table(
    {
        ("prefill", 64): Tile(128, 32, 4, 1),
        ("prefill", 128): Tile(128, 32, 4, 1),
        ("prefill", 256): Tile(64, 32, 4, 1),
        ("decode", 64): Tile(32, 64, 4, 1),
        ("decode", 128): Tile(32, 64, 4, 1),
        ("decode", 256): Tile(32, 32, 4, 1),
        ("latent", 512): Tile(16, 16, 4, 1, per_unit=1),
    },
    rows_again=False,  # it would take more scalar registers than there are
)
# Longer blocks take more scalar registers than it has.
_CDNA2 = _table({**_CDNA, ("decode", 128): Tile(32, 32, 4, 1)}, rows_again=False)
# Its matrix instructions hold every operand in registers.
_RDNA = _table(
    {
        ("prefill", 64): Tile(64, 32, 4, 1),
        ("prefill", 128): Tile(64, 16, 8, 1),
        ("prefill", 256): Tile(16, 16, 8, 1),
        ("decode", 64): Tile(16, 32, 4, 1),
        ("decode", 128): Tile(16, 16, 4, 1),
        ("decode", 256): Tile(16, 16, 8, 1),
        ("latent", 512): Tile(16, 16, 8, 1, slice=64, per_unit=1),
    }
)
# Triton's interpreter: small tiles, so that small cases have several.
_INTERPRETED = _table(
    {(kind, pad): Tile(32, 32) for kind in KINDS for pad in (16, 32, 64, 128, 256, 512)}
)

_FAMILIES: Mapping[str, Table] = MappingProxyType(
    {
        "sm_75": _TURING,
        "sm_80": _AMPERE,
        "sm_86": _ADA,
        "sm_87": _AMPERE,
        "sm_89": _ADA,
        "sm_90": _HOPPER,
        "sm_100": _BLACKWELL,
        "sm_103": _BLACKWELL,
        "sm_120": _ADA,
        "gfx90a": _CDNA2,
        "gfx942": _CDNA,
        "gfx950": _CDNA,
        "gfx1100": _RDNA,
        "gfx1201": _RDNA,
        "interpreted": _INTERPRETED,
    }
)
_WITHOUT_MATRIX_UNITS = ("gfx900", "gfx906", "gfx908")  # gfx908 has some, without bfloat16
ARCHITECTURES = tuple(name for name in _FAMILIES if name != "interpreted")
"""Those with a table of their own."""

# Matrix units do their float32 products in full precision at a fraction of the speed, and the tile
# takes twice the room.
_FLOAT32 = MappingProxyType({"prefill": (32, 32), "decode": (16, 32), "latent": (16, 16)})


def family(architecture: str) -> Table | None:
    """The table of an architecture, or of its closest older relative; None when it has none."""
    if architecture in _FAMILIES:
        return _FAMILIES[architecture]
    if architecture.startswith("sm_"):
        number = int(architecture.removeprefix("sm_"))
        older = [n for n in _FAMILIES if n.startswith("sm_") and int(n[3:]) <= number]
        return _FAMILIES[older[-1]] if older else None
    if architecture in _WITHOUT_MATRIX_UNITS:
        return None
    for prefix, table in (("gfx9", _CDNA), ("gfx11", _RDNA), ("gfx12", _RDNA)):
        if architecture.startswith(prefix):
            return table
    return None


def padded(dim: int) -> int:
    """A dimension as the matrix units take it: a power of two of at least 16."""
    return max(16, 1 << (dim - 1).bit_length())


def read(path: Path) -> dict[str, dict[tuple[str, int], Tile]]:
    """The tiles in a file that `mainboard tune` wrote, by architecture.

    Raises:
        KernelUnavailableError: the file cannot be read as one.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return {
            name: {(kind, int(pad)): Tile(**tile)
                   for kind, tiles in kinds.items() for pad, tile in tiles.items()}
            for name, kinds in document["tiles"].items()
        }  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise KernelUnavailableError(
            f"{SETTING} is {str(path)!r}, which is no file of tiles ({error!r}); "
            "write one with `mainboard tune`, or unset it"
        ) from error


def write(path: Path, tiles: Mapping[str, Table]) -> None:
    """Write tiles to a file that `MAINBOARD_TILES` can name."""
    document: dict[str, dict[str, dict[str, Any]]] = {}
    for name, table in tiles.items():
        for (kind, pad), tile in table.items():
            document.setdefault(name, {}).setdefault(kind, {})[str(pad)] = asdict(tile)
    path.write_text(json.dumps({"tiles": document}, indent=2) + "\n", encoding="utf-8")


@functools.cache
def _shipped() -> dict[str, dict[tuple[str, int], Tile]]:
    path = os.environ.get(SETTING, "").strip()
    return read(Path(path)) if path else {}


@functools.cache
def tile(architecture: str, kind: str, pad: int, itemsize: int = 2, traced: bool = False) -> Tile:
    """The tile for one kind of work.

    Args:
        architecture: as `sm_90` or `gfx942`.
        kind: one of `KINDS`.
        pad: the larger of key and value dimension, padded.
        itemsize: bytes of a query's element.
        traced: whether the kernel becomes part of a compiled graph, which takes no `options`.

    Raises:
        KeyError: the architecture has no table, or no tile for this dimension.
    """
    smallest = 512 if kind == "latent" else 64
    pad = max(pad, smallest)
    table = family(architecture)
    if table is None:
        raise KeyError(architecture)
    chosen = _shipped().get(architecture, {}).get((kind, pad)) or table[kind, pad]
    if traced and chosen.options:
        chosen = table.get((f"traced {kind}", pad), replace(chosen, options={}))
    if itemsize == 4:
        rows, keys = _FLOAT32[kind]
        return Tile(min(chosen.block_m, rows), min(chosen.block_n, keys), 4, 1)
    return chosen


def use(architecture: str, kind: str, pad: int, chosen: Tile) -> None:
    """Use a tile from now on in this process, before any table."""
    from mainboard.kernels.triton.attend import PREPARED
    from mainboard.kernels.triton.plan import plan

    _shipped().setdefault(architecture, {})[kind, pad] = chosen
    tile.cache_clear()
    plan.cache_clear()
    PREPARED.clear()
