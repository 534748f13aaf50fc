"""`mainboard tune` where there is nothing to tune, and what it makes of measurements."""

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mainboard.cli import progress, tune
from mainboard.cli.screen import Screen

pytest.importorskip("triton", reason="triton is not installed")


def test_without_a_device_it_says_so(mainboard: Callable[..., Any], tmp_path: Path) -> None:
    """No file is written, the message says what is missing, and the exit code is 1."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("torch sees a device here")
    file = tmp_path / "tiles.json"
    ran = mainboard("tune", str(file))
    assert ran.code == 1
    assert "there are no tiles to tune: torch sees no NVIDIA or AMD device here" in ran.out
    assert not file.exists()


def test_the_fastest_of_each_kind_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The file holds the tile with the least product of times, for this architecture."""
    import torch

    from mainboard.kernels import architecture
    from mainboard.kernels.triton import tiles
    from mainboard.kernels.triton import tune as tuning

    default, better = tiles.Tile(64, 64), tiles.Tile(64, 128, 8)

    def measured(work: Any, advance: Any) -> Iterator[tuning.Measured]:
        yield tuning.Measured("decode", 128, default, (2.0, 3.0))
        yield tuning.Measured("decode", 128, better, (1.0, 4.0))
        yield tuning.Measured("decode", 128, tiles.Tile(64, 16), (float("inf"),), "too large")

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(architecture, "architecture", lambda index: "sm_89")
    monkeypatch.setattr(tuning, "tune", measured)
    file = tmp_path / "tiles.json"
    (row,) = tune._measured(file, (("decode", 128),), lambda stage, done, total: None)
    assert tiles.read(file) == {"sm_89": {("decode", 128): better}}
    assert row["tried"] == 3
    assert row["default"] == "2.000 / 3.000"
    assert row["fastest"] == "1.000 / 4.000"
    stream = io.StringIO()
    tune.show({"failure": None, "rows": [row], "file": "tiles.json"}, Screen(stream))
    assert "64 x 128, 8 warps, 2 stages" in stream.getvalue()
    assert "MAINBOARD_TILES=tiles.json uses them" in stream.getvalue()


def test_unknown_work_is_refused() -> None:
    """A kind or dimension that has no tiles is answered with those that there are."""
    with pytest.raises(ValueError, match=r"decode:100 cannot be tuned; expected prefill:64, "):
        tune._chosen(["decode:100"])
    assert tune._chosen(["latent:512"]) == (("latent", 512),)


def test_a_bar_is_shown_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """After two seconds a terminal gets a bar, which is wiped at the end; a pipe gets nothing."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    times = iter([0.0, 1.0, 5.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with progress.progress_bar() as advance:
        advance("compile", 1, 4)
        assert terminal.getvalue() == ""
        advance("compile", 2, 4)
    assert "compile [###############...............] 2/4, 5 s" in terminal.getvalue()
    assert terminal.getvalue().endswith(" \r")
    times = iter([0.0, 5.0])
    monkeypatch.setattr(sys, "stderr", pipe := io.StringIO())
    with progress.progress_bar() as advance:
        advance("compile", 2, 4)
    assert pipe.getvalue() == ""


def test_what_fits_is_tried_also_with_room_for_a_second_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The table's tile comes first; a cap on registers is tried where two programs then fit."""
    from types import SimpleNamespace

    import torch

    from mainboard.kernels.triton import plan, tiles
    from mainboard.kernels.triton import tune as tuning

    hopper = SimpleNamespace(shared_memory_per_block_optin=232448, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: hopper)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    with plan.pretending("sm_90"):
        found = {work: tuning.candidates(*work) for work in tuning.WORK}
        assert all(tiles.tile("sm_90", *work) == tried[0] for work, tried in found.items())
    capped = [tile for tile in found["prefill", 128] if tile.options == {"maxnreg": 128}]
    assert {(tile.block_m, tile.block_n, tile.num_warps) for tile in capped} >= {(128, 64, 8)}
    assert not any(tile.options for tile in found["decode", 128] + found["latent", 512])
    assert all(len(tried) == len(set(map(repr, tried))) for tried in found.values())
