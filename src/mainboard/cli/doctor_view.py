"""How the report of `mainboard doctor` looks."""

from typing import Any

from mainboard.cli import plugins
from mainboard.cli.questions import show_questions
from mainboard.cli.screen import Mark, Screen, mark

__all__ = ["show"]


def show(report: dict[str, Any], screen: Screen) -> None:
    """Platforms, plugins, the four questions, the checks, and what is wrong."""
    versions = f"Mainboard {report['mainboard']}, Python {report['python']}, {report['system']}"
    screen.line(versions, indent=0)
    _show_platforms(report["platforms"], screen)
    for difference in report["drift"]:
        screen.line(Mark(f"Another contract: {difference['detail']}", "warn"))
    plugins.show_table(report["plugins"], screen)
    show_questions(report["questions"], screen)
    _show_checks(report, screen)
    if report["verbose"]:
        _show_tracebacks(report, screen)
    _show_conclusion(report, screen)


def _show_platforms(platforms: dict[str, Any], screen: Screen) -> None:
    screen.heading("Platforms")
    rows = []
    for row in platforms["verdicts"]:
        remedy = "" if row["state"] == "activated" or not row["remedy"] else f" {row['remedy']}"
        aside = "" if row["decided"] else " (the choice did not depend on it)"
        milliseconds = f"{row['milliseconds']:.1f}"
        reason = f"{row['reason'].rstrip('.')}.{remedy}{aside}"
        rows.append(
            (mark(row["state"]), row["name"], row["provider"], row["code"], milliseconds, reason)
        )
    screen.table(("state", "name", "provider", "code", "ms", "reason"), rows)
    if platforms["chosen"]:
        chosen = platforms["chosen"]
        screen.line(Mark(f"Chosen: {chosen['name']} ({chosen['value']})", "good"))
        screen.line(f"Why: {platforms['reason']}")
    else:
        screen.line(Mark("Chosen: none", "bad"))
    for warning in platforms["warnings"]:
        screen.line(Mark(warning, "warn"))


def _show_checks(report: dict[str, Any], screen: Screen) -> None:
    screen.heading("Operators against the float64 reference")
    rows = [_check_row(check) for check in report["checks"]]
    if rows:
        screen.table(("", "operator", "dtype", "device", "error", "at most"), rows)
    else:
        screen.line(Mark("none was tried", "dim"))


def _check_row(check: dict[str, Any]) -> tuple[str | Mark, ...]:
    ran = check["error"] is not None
    return (
        mark("PASS" if check["passed"] else "FAIL"),
        check["family"],
        check["dtype"],
        check["device"] or "",
        f"{check['error']:.1e}" if ran else "failed",
        f"{check['bound']:.1e}" if ran else "",
    )


def _show_tracebacks(report: dict[str, Any], screen: Screen) -> None:
    rows = report["platforms"]["verdicts"] + report["plugins"]["plugins"] + report["failures"]
    rows += [step["failure"] or {} for step in report["preparation"] + report["checks"]]
    for traceback in dict.fromkeys(row.get("traceback") for row in rows):
        if traceback:
            screen.heading("Traceback")
            for line in traceback.splitlines():
                screen.line(line)


def _show_conclusion(report: dict[str, Any], screen: Screen) -> None:
    screen.heading("Conclusion")
    if report["ok"]:
        screen.line(Mark("Nothing is wrong.", "good"))
    for problem in dict.fromkeys(report["problems"]):
        for line in problem.splitlines():
            screen.line(Mark(line, "bad"))
