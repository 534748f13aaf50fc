"""`mainboard tune`: time the Triton kernels' tiles on this device, and keep the fastest in a file."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mainboard.cli.attempt import attempt
from mainboard.cli.progress import progress_bar
from mainboard.cli.screen import Mark, Screen

__all__ = ["add_arguments", "collect", "exit_code", "show"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to write, and what to tune."""
    parser.add_argument("file", type=Path, help="where to write the tiles, for MAINBOARD_TILES")
    parser.add_argument(
        "--work",
        metavar="KIND:DIM",
        nargs="+",
        help="such as prefill:128 decode:128 latent:512; by default all that there is",
    )


def collect(options: argparse.Namespace) -> dict[str, Any]:
    """Time every candidate, write the fastest, and report both."""
    outcome = attempt(lambda: _tune(options.file, options.work))
    return {"file": str(options.file), "rows": outcome.value or [], "failure": outcome.failure}


def exit_code(report: dict[str, Any]) -> int:
    """0 when tiles were written."""
    return 1 if report["failure"] else 0


def show(report: dict[str, Any], screen: Screen) -> None:
    """The fastest tile of each kind beside the table's."""
    if report["failure"]:
        failure = report["failure"]
        screen.line(Mark(f"To tune failed: {failure['type']}: {failure['message']}", "bad"))
        return
    header = ("work", "tiles tried", "default ms", "fastest ms", "fastest tile")
    rows = [
        (row["work"], str(row["tried"]), row["default"], row["fastest"], row["tile"])
        for row in report["rows"]
    ]
    screen.table(header, rows)
    screen.line(f"MAINBOARD_TILES={report['file']} uses them")


def _chosen(names: list[str] | None) -> tuple[tuple[str, int], ...]:
    from mainboard.kernels.triton.tune import WORK

    if not names:
        return WORK
    known = {f"{kind}:{pad}": (kind, pad) for kind, pad in WORK}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{', '.join(unknown)} cannot be tuned; expected {', '.join(known)}")
    return tuple(known[name] for name in names)


def _tune(file: Path, names: list[str] | None) -> list[dict[str, Any]]:
    import torch

    from mainboard.errors import KernelUnavailableError
    from mainboard.kernels.library import why_no_triton

    why = why_no_triton()
    if why is None and not torch.cuda.is_available():
        why = "torch sees no NVIDIA or AMD device here"
    if why is not None:
        raise KernelUnavailableError(f"there are no tiles to tune: {why}")
    work = _chosen(names)
    with progress_bar() as advance:
        return _measured(file, work, advance)


def _measured(
    file: Path, work: tuple[tuple[str, int], ...], advance: Callable[[str, int, int], None]
) -> list[dict[str, Any]]:
    """Time all candidates of some work; the first of each kind and dimension is the default."""
    import torch

    from mainboard.kernels.architecture import architecture
    from mainboard.kernels.triton import tiles
    from mainboard.kernels.triton.tune import tune

    measured = list(tune(work, advance))
    rows: list[dict[str, Any]] = []
    best: dict[tuple[str, int], tiles.Tile] = {}
    for kind, pad in work:
        mine = [m for m in measured if (m.kind, m.pad) == (kind, pad)]
        fastest = min(mine, key=lambda m: m.total)
        best[kind, pad] = fastest.tile
        tile = fastest.tile
        rows.append(
            {
                "work": f"{kind}:{pad}",
                "tried": len(mine),
                "default": _times(mine[0].milliseconds),
                "fastest": _times(fastest.milliseconds),
                "tile": f"{tile.block_m} x {tile.block_n}, {tile.num_warps} warps, "
                f"{tile.num_stages} stages"
                + "".join(f", {name} {value}" for name, value in tile.options.items()),
            }
        )
    tiles.write(file, {architecture(torch.cuda.current_device()): best})
    return rows


def _times(milliseconds: tuple[float, ...]) -> str:
    return " / ".join(f"{value:.3f}" for value in milliseconds)
