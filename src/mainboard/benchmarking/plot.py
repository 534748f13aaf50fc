"""The roofline: what was measured below what the machine can do, as a picture."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mainboard.errors import MainboardError

__all__ = ["draw", "machine_of", "require_matplotlib"]

_OURS, _PEER, _ROOF = "#1f77b4", "#ff7f0e", "#444444"


def require_matplotlib() -> None:
    """Find out before anything is measured whether there can be a picture.

    Raises:
        MainboardError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise MainboardError(
            "--plot needs matplotlib, which is not installed: pip install 'mainboard[bench]'"
        )


def machine_of(report: dict[str, Any]) -> str:
    """What was measured, in one line."""
    machine = report["machine"]
    threads = f", {machine['threads']} threads" if machine["device_type"] == "cpu" else ""
    return f"{machine['device']}{threads}, torch {machine['torch']}"


def draw(report: dict[str, Any], file: Path) -> None:
    """Draw a report of `mainboard bench` as a PNG.

    Args:
        report: what the command collects.
        file: where to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in report["rows"] if row["failure"] is None]
    figure = Figure(figsize=(14, max(5.5, 0.27 * len(rows) + 1.8)), layout="constrained")
    FigureCanvasAgg(figure)
    roof, bars = figure.subplots(1, 2, width_ratios=(1.1, 1))
    _draw_roofline(roof, rows, report["limits"])
    _draw_fractions(bars, rows)
    handles, labels = bars.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower right", ncols=2, fontsize=8)
    figure.suptitle(machine_of(report))
    figure.savefig(file, dpi=110, format="png")


def _draw_roofline(axes: Any, rows: Sequence[dict[str, Any]], limits: dict[str, Any]) -> None:
    """Rate over intensity, with one roof for each dtype's products."""
    known = [row for row in rows if row["flops"] and not row["warm"]]
    intensities = [row["flops"] / row["bytes"] for row in known] or [1.0]
    low, high = min(intensities) / 2, max(intensities) * 2
    bandwidth = limits["bandwidth"]
    used = {row["dtype"] for row in known}
    for dtype, peak in sorted(limits["products"].items(), key=lambda item: item[1]):
        if dtype not in used:
            continue
        ridge = peak / bandwidth
        points = sorted({low, min(max(ridge, low), high), high})
        axes.plot(
            points, [min(peak, bandwidth * x) / 1e12 for x in points], color=_ROOF, linewidth=1
        )
        label = f"{dtype} products {peak / 1e12:.3g} TFLOP/s"
        axes.annotate(label, (high, peak / 1e12), ha="right", va="bottom", fontsize=8)
    axes.annotate(
        f"memory {_digits(bandwidth / 1e9)} GB/s", (low, bandwidth * low / 1e12), fontsize=8,
        xytext=(-4, -14), textcoords="offset points",
    )  # fmt: skip
    for i, row in enumerate(rows, 1):
        if row not in known:
            continue
        x = row["flops"] / row["bytes"]
        axes.plot(x, row["tflops"], "o", color=_OURS, markersize=5)
        axes.annotate(
            str(i), (x, row["tflops"]), fontsize=7, xytext=(4, 2), textcoords="offset points"
        )
        if row["peer_over_ours"]:
            axes.plot(x, row["tflops"] / row["peer_over_ours"], "o", markersize=5,
                      markerfacecolor="none", color=_PEER)  # fmt: skip
    axes.set(
        xscale="log", yscale="log", xlabel="operations per byte of keys and values",
        ylabel="TFLOP/s", title="Roofline",
    )  # fmt: skip
    axes.grid(alpha=0.2, which="both")


def _draw_fractions(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Each row as a share of its own limit, ours above torch's."""
    places = range(len(rows))
    axes.barh([y - 0.2 for y in places], [row["of_limit"] for row in rows], 0.38, color=_OURS,
              label="mainboard")  # fmt: skip
    axes.barh(
        [y + 0.2 for y in places],
        [row["of_limit"] / row["peer_over_ours"] if row["peer_over_ours"] else 0 for row in rows],
        0.38,
        color=_PEER,
        label="torch in the same run (SDPA, or a plain copy)",
    )
    for y, row in enumerate(rows):
        rate = _rate(row)
        axes.annotate(f" {rate}", (row["of_limit"], y - 0.2), va="center", fontsize=7)
    labels = [f"{i}  {row['label']}" for i, row in enumerate(rows, 1)]
    axes.set_yticks(list(places), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="share of the row's own limit", title="Each row beside its limit")
    axes.set_xlim(0, max([1.0, *(1.25 * row["of_limit"] for row in rows)]))
    axes.axvline(1.0, color=_ROOF, linewidth=1)


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _rate(row: dict[str, Any]) -> str:
    if row["few_queries"]:
        return f"{_digits(row['gbytes'])} GB/s"
    return f"{row['tflops']:.3g} TFLOP/s"
