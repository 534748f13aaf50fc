"""`mainboard verify`: what a platform promises and what it must do, checked on this machine.

The checks run in a process of their own; where one ends that process, it fails, and the rest run in
another.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from mainboard import __version__
from mainboard.cli.child import START, Step, run_steps
from mainboard.cli.screen import Mark, Screen, mark
from mainboard.cli.verification import LIST, OPEN

__all__ = ["add_arguments", "collect", "exit_code", "show"]

_MODULE = "mainboard.cli.verification"
_LIMIT_S = 1800.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which platform, what is demanded of it, which checks, and where to put a badge."""
    parser.add_argument(
        "platform",
        nargs="?",
        default="",
        metavar="NAME",
        help="the platform, as for MAINBOARD_PLATFORM; the current one by default",
    )
    parser.add_argument(
        "--requirements",
        default="",
        metavar="MODULE:NAME",
        help="what the platform promises, a mainboard.testing.Requirements",
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="CHECK", help="groups or ids of checks"
    )
    parser.add_argument(
        "--badge", type=Path, metavar="FILE", help="write the summary as shields.io's endpoint JSON"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="show every traceback")


def collect(options: argparse.Namespace) -> dict[str, Any]:
    """The result of every check, in as many processes as it takes."""
    report: dict[str, Any] = {
        "mainboard": __version__,
        "verbose": options.verbose,
        "platform": {"label": options.platform or "the current platform", "provider": "?"},
        "failure": None,
        "results": [],
    }
    todo: list[str] = list(options.only)
    summaries: dict[str, str] = {}
    while True:
        arguments = [options.platform, options.requirements, *todo]
        steps = run_steps(_MODULE, "checking the platform", _LIMIT_S, arguments)
        values = {step.name: step for step in steps}
        for step in steps:
            if step.name in (START, LIST, OPEN):
                report["failure"] = report["failure"] or step.failure
        if report["failure"] or LIST not in values:
            break
        summaries |= dict(values[LIST].value)
        report["platform"] = values[OPEN].value
        done = [step for step in steps if step.name in summaries]
        report["results"] += [_result(step, summaries[step.name]) for step in done]
        names = {result["id"] for result in report["results"]}
        todo = [id for id, _ in values[LIST].value if id not in names]
        if not todo or not done:
            break
    _summarize(report, options.badge)
    return report


def _result(step: Step, summary: str) -> dict[str, Any]:
    """What a check came to; one that ended its process failed."""
    if step.failure is None:
        result: dict[str, Any] = step.value
        return result
    from mainboard.testing.check import Result, State

    ended = (f"{step.failure['type']}: {step.failure['message']}",)
    return Result(step.name, summary, State.FAILED, 0.0, ended).to_dict()


def _summarize(report: dict[str, Any], badge: Path | None) -> None:
    from mainboard.testing.check import Result, State
    from mainboard.testing.report import Report

    rows = (dict(row, state=State(row["state"])) for row in report["results"])
    whole = Report(report["platform"], tuple(Result(**row) for row in rows))
    report |= {"passed": whole.passed and not report["failure"], "summary": whole.summary()}
    report["badge"] = whole.badge()
    if badge is not None:
        badge.write_text(json.dumps(report["badge"]) + "\n", encoding="utf-8")


def exit_code(report: dict[str, Any]) -> int:
    """0 when the platform could be opened and no check failed."""
    return 0 if report["passed"] else 1


def show(report: dict[str, Any], screen: Screen) -> None:
    """A row for each check, with its faults or the reason why it was skipped."""
    platform = report["platform"]
    if "class" in platform:
        screen.heading(f"Platform {platform['label']} ({platform['provider']})")
        screen.line(
            f"{platform['class']}: {platform['devices']} device(s) of type "
            f"{platform['device_type']!r}, contract {platform['contract']}"
        )
        for detail in platform["retired"]:
            screen.line(Mark(detail, "warn"))
    if report["results"]:
        screen.heading("Checks")
        screen.table(("check", "", "ms", ""), [_row(row) for row in report["results"]])
    for row in report["results"]:
        if row["traceback"] and report["verbose"]:
            screen.heading(row["id"])
            for line in row["traceback"].splitlines():
                screen.line(line)
    if report["failure"]:
        failure = report["failure"]
        screen.heading("Nothing could be checked" if not report["results"] else "Not all checked")
        screen.line(Mark(f"{failure['type']}: {failure['message']}", "bad"))
    screen.heading(report["summary"])


def _row(row: dict[str, Any]) -> tuple[str | Mark, ...]:
    text = "; ".join(row["faults"]) or row["summary"]
    if row["reason"]:
        text = f"{row['reason']}" if not row["faults"] else f"{row['reason']}: {text}"
    return row["id"], mark(row["state"]), f"{row['milliseconds']:.0f}", text
