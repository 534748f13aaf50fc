"""`mainboard bench`: what it lists, measures, writes and draws."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mainboard.benchmarking import calls, limits, measure, plot, rows, timing
from mainboard.cli import bench
from mainboard.cli.screen import Screen
from mainboard.errors import MainboardError
from mainboard.testing.attention_cases import AttentionCase

SMALL = AttentionCase(
    (1, 1), (200, 90), heads=4, kv_heads=2, head_dim=64, dtype=torch.bfloat16, page_size=16
)
LIMITS = limits.Limits(1e10, {"bfloat16": 1e12, "float32": 1e11}, 1e10)


def measured(row: rows.Row) -> measure.Result:
    """A row, measured for a moment."""
    advance: list[tuple[str, int, int]] = []
    clock = timing.clock_for("cpu")
    (result,) = measure.measure(
        [row], "cpu", LIMITS, clock, 0.01, lambda *step: advance.append(step)
    )
    assert advance == [(row.label, 0, 1)]
    return result


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_rows_have_labels_of_their_own(device: str) -> None:
    """Every row can be asked for by its label, and most are measured without being asked for."""
    labels = [row.label for row in rows.rows(device)]
    assert len(labels) == len(set(labels)) > 30
    assert sum(row.usual for row in rows.rows(device)) > 15
    assert {row.operator for row in rows.rows(device)} >= {"attention", "mla_decode"}


def test_a_case_knows_what_it_costs() -> None:
    """Operations are those of visible keys; bytes those of keys and values, or of both sides."""
    square = AttentionCase((100,), (100,), heads=2, kv_heads=1, head_dim=64)
    assert square.flops == 2 * 2 * 128 * 5050
    assert replace(square, causal=False).flops == 2 * 2 * 128 * 10000
    assert replace(square, window=(9, 0)).flops == 2 * 2 * 128 * (55 + 90 * 10)
    assert rows.Row("", square).exponentials == 2 * 5050
    moved = rows.Row("", replace(square, cache_dtype=torch.int8), "reshape_and_cache")
    assert moved.bytes == 100 * 128 * (4 + 1)
    latent = replace(square, head_dim=576, value_dim=512)
    assert rows.Row("", latent, "mla_decode").bytes == 100 * 576 * 4
    assert rows.Row("", square, "merge_attention_states").bytes == 3 * 100 * 2 * 64 * 4


@pytest.mark.parametrize(
    "row",
    [
        rows.Row("decode", SMALL),
        rows.Row("from the caches", SMALL, warm=True),
        rows.Row("verify", replace(SMALL, queries=(4, 4), keys=(200, 200))),
        rows.Row("dense", replace(SMALL, queries=(50,), keys=(50,), page_size=None)),
        rows.Row("options", replace(SMALL, softcap=20.0, alibi=True, sinks=True)),
        rows.Row("window", replace(SMALL, queries=(30, 2), window=(20, 0))),
        rows.Row("fp8", replace(SMALL, cache_dtype=torch.float8_e4m3fn, scaled_cache=True)),
        rows.Row("int8", replace(SMALL, cache_dtype=torch.int8, scaled_cache=True)),
        rows.Row(
            "latent",
            replace(SMALL, keys=(96, 96), kv_heads=1, head_dim=576, value_dim=512),
            "mla_decode",
        ),
        rows.Row("write", replace(SMALL, keys=(64,), queries=(64,)), "reshape_and_cache"),
        rows.Row("merge", replace(SMALL, keys=(64,), queries=(64,)), "merge_attention_states"),
    ],
    ids=lambda row: row.name,
)
def test_every_kind_of_row_is_measured_and_right(
    row: rows.Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is timed beside a peer where torch has one, and agrees with the reference."""
    monkeypatch.setattr(calls, "_POOL_BYTES", 1 << 20)
    result = measured(row)
    assert result.failure is None
    assert result.agrees
    assert result.seconds > 0 and result.samples >= 1
    moved = row.operator in ("reshape_and_cache", "merge_attention_states")
    assert (result.error is None) == moved
    without_peer = row.name in ("options", "window", "fp8", "int8")
    assert (result.peer is None) == without_peer
    found = result.to_dict(LIMITS)
    assert found["served_by"] == "compiled CPU"
    assert found["of_limit"] == pytest.approx(LIMITS.bound(row).seconds / result.seconds)
    json.dumps(found)


def test_a_wrong_result_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that computes something else fails its row, and the command."""

    def wrong(q: torch.Tensor, k: Any, v: Any, **options: Any) -> torch.Tensor:
        return torch.zeros_like(q)

    monkeypatch.setattr(calls, "_POOL_BYTES", 1 << 20)
    monkeypatch.setattr(measure.kernels, "attention", wrong)
    result = measured(rows.Row("decode", SMALL))
    assert result.error == pytest.approx(1.0)
    assert not result.agrees
    report = {"rows": [result.to_dict(LIMITS)], "failure": None}
    assert bench.exit_code(report) == 1
    assert "WRONG: relative error 1.0e+00" in str(bench._cells(report["rows"][0])[-1])


def test_a_row_that_fails_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel raises is its row's failure."""

    def broken(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("no room\nat all")

    monkeypatch.setattr(measure, "build", broken)
    result = measured(rows.Row("decode", SMALL))
    assert result.failure == "RuntimeError: no room"
    assert bench.exit_code({"rows": [result.to_dict(LIMITS)], "failure": None}) == 1


def test_a_bound_is_the_slowest_part() -> None:
    """Decode is bound by memory, prefill by products, and a slow exponential by that."""
    decode = rows.Row("", replace(SMALL, keys=(4096, 4096)))
    assert LIMITS.bound(decode) == limits.Bound(decode.bytes / 1e10, "memory")
    prefill = rows.Row("", replace(SMALL, queries=(4096,), keys=(4096,)))
    assert LIMITS.bound(prefill) == limits.Bound(prefill.flops / 1e12, "products")
    slow = replace(LIMITS, exponentials=1e6)
    assert slow.bound(prefill).by == "exponentials"
    assert LIMITS.bound(replace(decode, warm=True)).by == "products"
    shared = replace(LIMITS, softened=1e11)
    assert shared.bound(prefill) == limits.Bound(prefill.flops / 1e11, "products and exponentials")
    wide = replace(prefill, case=replace(prefill.case, head_dim=256))
    assert shared.bound(wide).by == "products"
    better = LIMITS.better(limits.Limits(2e10, {"bfloat16": 1.0, "float16": 3.0}))
    assert better == limits.Limits(2e10, LIMITS.products | {"float16": 3.0}, 1e10)


def test_limits_are_of_this_machine() -> None:
    """Each loop of the compiled library gives a rate, and the products are the best of several."""
    found = limits.measure_limits("cpu", {torch.float32}, timing.clock_for("cpu"))
    assert 1e8 < found.bandwidth < 1e13
    assert found.exponentials > 1e7
    assert found.products["float32"] == max(
        rate for name, rate in found.details.items() if name.startswith(("fma", "torch.mm"))
    )


def test_samples_are_taken_in_turn() -> None:
    """Who goes first alternates; the time ends the rounds, after one at least.

    A warmed clock runs each call once more, before.
    """
    order: list[str] = []
    calls = [lambda: order.append("a"), lambda: order.append("b")]
    samples = timing.interleaved(calls, timing.clock_for("cpu"), 5.0, most=3)
    assert order == ["b", "a", "a", "b", "b", "a"]
    assert samples == [timing.Samples(each.seconds) for each in samples]
    assert [len(each.seconds) for each in samples] == [3, 3]
    once = timing.interleaved(calls, lambda call: 1.0, 0.0)
    assert [each.seconds for each in once] == [[1.0], [1.0]]
    order.clear()
    timing.interleaved(calls, timing.warmed(timing.clock_for("cpu")), 5.0, most=2)
    assert order == ["b", "b", "a", "a", "a", "a", "b", "b"]


def test_disturbed_samples_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample counts where the witnesses before and after it took about as long as they can.

    Where hardly one does, all count, and it says so.
    """
    witnessed = iter([1.0, 1.1, 2.0, 1.0, 1.0, 1.2, 1.0, 1.05])
    monkeypatch.setattr(timing, "_host_clock", lambda call: next(witnessed))
    took = iter([10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 16.0])
    (calm,) = timing.interleaved([print], lambda call: next(took), 60.0, most=7, witness=print)
    assert calm == timing.Samples([10.0, 13.0, 16.0], left_out=4)
    slow = iter([1.0, 2.0, 2.0, 2.0])
    monkeypatch.setattr(timing, "_host_clock", lambda call: next(slow))
    (all_of_them,) = timing.interleaved([print], lambda call: 5.0, 60.0, most=3, witness=print)
    assert all_of_them == timing.Samples([5.0] * 3, disturbed=True)


def test_it_measures_draws_and_writes(mainboard: Callable[..., Any], tmp_path: Path) -> None:
    """One row as a table, as JSON in a file, and as a PNG."""
    file, picture = tmp_path / "report.json", tmp_path / "report.png"
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    ran = mainboard("bench", "--device", "cpu", "--rows", "^decode 1 x 512 bfloat16", "--seconds", "0.1",
                    "--json", str(file), "--plot", str(picture))  # fmt: skip
    assert ran.code == 0, ran.out + ran.err
    assert "decode 1 x 512 bfloat16" in ran.out
    assert "Limits of" in ran.out
    report = json.loads(file.read_text())
    (row,) = report["rows"]
    assert row["ms"] > 0 and row["agrees"]
    assert report["machine"]["threads"] >= 1
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_it_lists_and_refuses(mainboard: Callable[..., Any]) -> None:
    """The list names every row as JSON too; a pattern that matches nothing says what to do."""
    listed = mainboard("bench", "--device", "cpu", "--list", "--json").json
    assert len(listed["rows"]) == len(rows.rows("cpu"))
    ran = mainboard("bench", "--device", "cpu", "--rows", "nothing like it")
    assert ran.code == 1
    assert "no row matches 'nothing like it'; `mainboard bench --list` shows" in ran.out


def test_a_picture_needs_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the message says what to install, before anything is measured."""
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    with pytest.raises(MainboardError, match=r"pip install 'mainboard\[bench\]'"):
        plot.require_matplotlib()


def test_failures_are_shown_in_their_rows() -> None:
    """The table has the reason where the figures would be."""
    result = measure.Result(rows.Row("decode", SMALL), failure="no room")
    stream = io.StringIO()
    report = {
        "listed": False, "failure": None, "rows": [result.to_dict(LIMITS)], "spent_s": 1.0,
        "machine": {"device": "X", "device_type": "cpu", "threads": 2, "torch": "2"},
        "limits": LIMITS.to_dict(),
    }  # fmt: skip
    bench.show(report, Screen(stream))
    assert "no room" in stream.getvalue()
    assert "Limits of X, 2 threads, torch 2" in stream.getvalue()
    assert "products of bfloat16  1 TFLOP/s" in stream.getvalue()
