"""`mainboard bench`: each operator's speed here, beside torch's and beside the machine's limits."""

import argparse
import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mainboard.cli.attempt import attempt
from mainboard.cli.progress import progress_bar
from mainboard.cli.screen import Mark, Screen

if TYPE_CHECKING:
    from mainboard.benchmarking.rows import Row

__all__ = ["add_arguments", "collect", "exit_code", "show"]

# What the timing of all rows together may take; drawing inputs and checking results comes on top.
_SECONDS = {"cpu": 30.0}
_SECONDS_ELSEWHERE = 15.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to measure, for how long, and where to keep it."""
    parser.add_argument("--device", help="a type of device; by default the chosen platform's")
    parser.add_argument("--rows", metavar="REGEX", help="measure the rows that match, no others")
    parser.add_argument("--list", action="store_true", help="list the rows, and measure nothing")
    parser.add_argument(
        "--seconds",
        type=float,
        metavar="N",
        help="for the timing of all rows together; by default "
        f"{_SECONDS['cpu']:.0f} on a CPU and {_SECONDS_ELSEWHERE:.0f} elsewhere",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the roofline as a PNG")
    # In place of every command's --json, which has no value.
    parser.add_argument(
        "--json",
        nargs="?",
        const=True,
        default=False,
        metavar="FILE",
        help="print one JSON object, or keep it in a file, row by row",
    )


def collect(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the limits and then every row; what fails is part of the report."""
    report: dict[str, Any] = {"listed": options.list, "rows": [], "failure": None}
    outcome = attempt(lambda: _bench(options, report))
    return report | {"failure": outcome.failure}


def exit_code(report: dict[str, Any]) -> int:
    """0 when every row was measured and every result is right."""
    rows = report["rows"]
    sound = all(row.get("failure") is None and row.get("agrees", True) for row in rows)
    return 0 if sound and not report["failure"] else 1


def _bench(options: argparse.Namespace, report: dict[str, Any]) -> None:
    from mainboard.benchmarking import plot

    if options.plot is not None:
        plot.require_matplotlib()
    device = _prepare(options.device)
    chosen = _chosen(device, options.rows, everything=options.list)
    if options.list:
        report["rows"] = [
            {"label": row.label, "operator": row.operator, "usual": row.usual} for row in chosen
        ]
        return
    file = Path(options.json) if isinstance(options.json, str) else None
    with progress_bar() as advance:
        _measure(device, chosen, options.seconds, report, advance, file)
    if options.plot is not None:
        plot.draw(report, options.plot)


def _prepare(asked: str | None) -> str:
    """The device's type, with its kernels loaded."""
    import torch

    from mainboard.platforms import current_platform

    device = asked or current_platform.device_type
    if device == current_platform.device_type:
        current_platform.import_kernels()
    torch.empty(1, device=device)  # raises what is wrong with the device, in torch's words
    return device


def _chosen(device: str, pattern: str | None, everything: bool) -> "list[Row]":
    from mainboard.benchmarking.rows import rows

    known = rows(device)
    if pattern is None:
        return [row for row in known if row.usual or everything]
    chosen = [row for row in known if re.search(pattern, row.label)]
    if not chosen:
        raise ValueError(
            f"no row matches {pattern!r}; `mainboard bench --list` shows the {len(known)} there are"
        )
    return chosen


def _measure(
    device: str,
    chosen: "Sequence[Row]",
    seconds: float | None,
    report: dict[str, Any],
    advance: Callable[[str, int, int], None],
    file: Path | None,
) -> None:
    """Fill the report, and the file after each row, so that an early end loses one row."""
    from mainboard.benchmarking.limits import Limits, measure_limits
    from mainboard.benchmarking.measure import Result, measure
    from mainboard.benchmarking.timing import clock_for

    begin = time.perf_counter()
    if seconds is None:
        seconds = _SECONDS.get(device, _SECONDS_ELSEWHERE)
    clock = clock_for(device)
    report["machine"] = _machine(device)
    dtypes = {row.case.dtype for row in chosen}
    advance("the machine's limits", 0, len(chosen))
    limits = measure_limits(device, dtypes, clock)
    results: list[Result] = []

    def note(limits: Limits) -> None:
        report["limits"] = limits.to_dict()
        report["rows"] = [result.to_dict(limits) for result in results]
        report["spent_s"] = time.perf_counter() - begin
        if file is not None:
            file.write_text(json.dumps(report, indent=1), encoding="utf-8")

    for result in measure(chosen, device, limits, clock, seconds, advance):
        results.append(result)
        note(limits)
    advance("the machine's limits again", len(chosen), len(chosen))
    note(limits.better(measure_limits(device, dtypes, clock)))


def _machine(device: str) -> dict[str, Any]:
    import torch

    from mainboard import kernels
    from mainboard.platforms import current_platform

    if device == "cpu":
        from mainboard.platforms.cpu import CpuPlatform

        name = CpuPlatform.get_device_name()
    else:
        name = current_platform.get_device_name()
    return {
        "device": name,
        "device_type": device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "kernels": kernels.status(),
    }


def show(report: dict[str, Any], screen: Screen) -> None:
    """The limits, then the rows beside them."""
    if report["listed"] and not report["failure"]:
        screen.table(
            ("row", "operator", "measured by default"),
            [(r["label"], r["operator"], "yes" if r["usual"] else "no") for r in report["rows"]],
        )
        return
    if "limits" in report:
        _show_limits(report, screen)
    if report["rows"] and not report["listed"]:
        screen.heading("Medians, taken in turn with torch's")
        header = ("row", "served by", "ms", "torch ms", "torch / ours", "rate", "of its limit", "")
        screen.table(header, [_cells(row) for row in report["rows"]])
        if left_out := sum(row.get("left_out", 0) for row in report["rows"]):
            taken = left_out + sum(row.get("samples", 0) for row in report["rows"])
            screen.line(f"{left_out} of {taken} samples do not count: the machine was disturbed")
        screen.line(f"{report['spent_s']:.0f} s in all")
    if failure := report["failure"]:
        screen.line(Mark(f"To measure failed: {failure['type']}: {failure['message']}", "bad"))


def _show_limits(report: dict[str, Any], screen: Screen) -> None:
    from mainboard.benchmarking.plot import machine_of

    limits = report["limits"]
    screen.heading(f"Limits of {machine_of(report)}")
    rows = [("memory", f"{limits['bandwidth'] / 1e9:.4g} GB/s")]
    rows += [
        (f"products of {dtype}", f"{rate / 1e12:.3g} TFLOP/s")
        for dtype, rate in sorted(limits["products"].items())
    ]
    if limits["exponentials"]:
        rows.append(("exponentials", f"{limits['exponentials'] / 1e9:.3g} G/s"))
    if limits["softened"]:
        rows.append(("bfloat16 and exponentials", f"{limits['softened'] / 1e12:.3g} TFLOP/s"))
    screen.table((), rows)


def _cells(row: dict[str, Any]) -> tuple[str | Mark, ...]:
    if row["failure"] is not None:
        return (row["label"], "", "", "", "", "", "", Mark(row["failure"], "bad"))
    many = f"{row['tflops']:.3g} TFLOP/s"
    ratio, remark = row["peer_over_ours"], Mark("")
    if not row["agrees"]:
        remark = Mark(f"WRONG: relative error {row['relative_error']:.1e}", "bad")
    elif row["disturbed"]:
        remark = Mark("disturbed throughout", "warn")
    elif row["warm"]:
        remark = Mark("from the processor's caches", "dim")
    return (
        row["label"],
        row["served_by"],
        f"{row['ms']:.4g}",
        f"{min(row['peers_ms'].values()):.4g}" if row["peers_ms"] else "-",
        f"{ratio:.2f}" if ratio else "-",
        f"{row['gbytes']:.4g} GB/s" if row["few_queries"] else many,
        "-" if row["warm"] else f"{row['of_limit']:.0%} ({row['bound_by']})",
        remark,
    )
