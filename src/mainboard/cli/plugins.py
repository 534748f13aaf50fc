"""`mainboard plugins`: the installed plugins, and how each of them loads."""

import argparse
from typing import Any

from mainboard.cli.attempt import attempt
from mainboard.cli.progress import waiting_for
from mainboard.cli.screen import Mark, Screen, mark

__all__ = ["add_arguments", "collect", "examine", "exit_code", "problems", "show", "show_table"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Whether to run the plugins, which is the default, or to list them only."""
    parser.add_argument(
        "--no-load", action="store_true", help="list what is installed; run no plugin's code"
    )


def collect(options: argparse.Namespace) -> dict[str, Any]:
    """Every plugin after loading it as a program would."""
    return examine(load=not options.no_load)


def examine(load: bool) -> dict[str, Any]:
    """The report of `mainboard.plugins`, with what went wrong around it under `failures`."""
    failures = []
    if load:
        with waiting_for("loading plugins"):
            steps = (attempt(_load_general), attempt(_call_platforms))
        failures += [step.failure for step in steps if step.failure]
    found = attempt(_report)
    failures += [found.failure] if found.failure else []
    return (found.value or {"plugins": [], "unmatched": []}) | {"failures": failures}


def _load_general() -> None:
    from mainboard.plugins import load_general_plugins

    load_general_plugins()


def _call_platforms() -> None:
    # Its answer is the doctor's matter; asking is what calls the platform plugins.
    from mainboard.platforms import selection

    selection()


def _report() -> dict[str, Any]:
    from mainboard.plugins import report

    return report().to_dict()


def problems(report: dict[str, Any]) -> list[str]:
    """What is wrong, one sentence each: what was asked, what is so here, what to do."""
    found = [f"{failure['type']}: {failure['message']}" for failure in report["failures"]]
    found += [
        f"Plugin {row['name']!r} of {row['distribution']} {row['version']} ({row['value']}) failed:"
        f" {row['error']}. {row['remedy']}"
        for row in report["plugins"]
        if row["error"]
    ]
    found += [
        f"VLLM_PLUGINS lists {name!r}, which no installed distribution provides. Correct the name"
        " or install its distribution."
        for name in report["unmatched"]
    ]
    return found


def exit_code(report: dict[str, Any]) -> int:
    """0 when every plugin that may run does, and `VLLM_PLUGINS` lists no unknown name."""
    return 1 if problems(report) else 0


def show(report: dict[str, Any], screen: Screen) -> None:
    """The table, how discovery went, and what is wrong."""
    show_table(report, screen)
    for problem in problems(report):
        screen.line(Mark(problem, "bad"))


def show_table(report: dict[str, Any], screen: Screen) -> None:
    """One row for each plugin, and how it was found and filtered."""
    screen.heading("Plugins")
    rows = [_row(row) for row in report["plugins"]]
    if rows:
        screen.table(("state", "group", "name", "distribution", "ms", "value", "error"), rows)
    else:
        screen.line(Mark("none are installed", "dim"))
    allowed = report.get("allowed")
    if allowed is not None:
        screen.line(f"VLLM_PLUGINS allows only: {', '.join(allowed) or 'none'}")
    if "discovery_milliseconds" in report:
        took = f"found in {report['discovery_milliseconds']:.1f} ms"
        screen.line(Mark(f"{took}; discovery cache: {report['cache_note']}", "dim"))


def _row(row: dict[str, Any]) -> tuple[str | Mark, ...]:
    error = row["error"] or ""
    if row["also_from"]:
        error = f"{error} (the same name comes from {', '.join(row['also_from'])})".strip()
    return (
        mark(row["state"]),
        row["group"],
        row["name"],
        f"{row['distribution']} {row['version']}",
        f"{row['milliseconds']:.1f}",
        row["value"],
        error,
    )
