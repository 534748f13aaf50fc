"""`mainboard doctor`: what was chosen and why, and whether its kernels compute what they should."""

import argparse
import platform
from typing import Any

from mainboard import __version__
from mainboard.cli import plugins
from mainboard.cli.attempt import attempt, quiet
from mainboard.cli.checks import DTYPES
from mainboard.cli.child import START, Step, run_steps
from mainboard.cli.doctor_view import show
from mainboard.cli.preparation import KERNELS, PLATFORM, PREPARATION
from mainboard.cli.progress import waiting_for
from mainboard.cli.questions import compiled_kernels, kernel_questions, platform_question

__all__ = ["add_arguments", "collect", "exit_code", "show"]

_CHECKS = "mainboard.cli.checks"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Whether to run operators, and whether to show tracebacks."""
    parser.add_argument(
        "--no-checks", action="store_true", help="run no operator; torch is not imported"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="show every traceback")


def collect(options: argparse.Namespace) -> dict[str, Any]:
    """Everything the doctor looks at, and under `problems` what it finds wrong."""
    # The survey runs plugins that a program would not run, so it comes after their report.
    with waiting_for("choosing a platform"):
        decision = attempt(_selection)
    loaded = plugins.examine(load=True)
    with waiting_for("probing the other platforms"):
        survey = attempt(_survey)
    differences = attempt(_drift)
    compiled = compiled_kernels()
    steps = [] if options.no_checks else run_steps(_CHECKS, "checking the operators")
    prepared = [step for step in steps if step.name in (START, DTYPES, *PREPARATION)]
    status = next((step.value for step in prepared if step.name == KERNELS), None)
    platforms = _platforms(decision.value, survey.value)
    report: dict[str, Any] = {
        "mainboard": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "verbose": options.verbose,
        "platforms": platforms,
        "drift": differences.value or [],
        "plugins": loaded,
        "compiled": compiled,
        "questions": [platform_question(platforms), *kernel_questions(compiled, status)],
        "preparation": [step._asdict() for step in prepared],
        "checks": [_check(step) for step in steps if step not in prepared],
    }
    failures = [decision.failure, survey.failure, differences.failure, compiled["failure"]]
    report["failures"] = [failure for failure in failures if failure]
    report["problems"] = _problems(report, checked=not options.no_checks)
    report["ok"] = not report["problems"]
    return report


def exit_code(report: dict[str, Any]) -> int:
    """0 when a platform was chosen, nothing that decides failed, and every check passes."""
    return 0 if report["ok"] else 1


def _selection() -> dict[str, Any]:
    from mainboard.platforms import selection

    return selection().to_dict()


def _drift() -> list[dict[str, str]]:
    """How a package's platform differs from the contract; that is tolerated, and worth knowing."""
    from mainboard.platforms import resolve, selection

    chosen = selection().chosen
    if chosen is None or chosen.built_in:
        return []
    from mainboard.platforms.foreign_calls import drift

    return [each._asdict() for each in drift(resolve.current())]


def _survey() -> list[dict[str, Any]]:
    from mainboard.platforms import survey

    with quiet():
        return [verdict.to_dict() for verdict in survey()]


def _platforms(
    decision: dict[str, Any] | None, survey: list[dict[str, Any]] | None
) -> dict[str, Any]:
    """The decision, with the survey's verdicts on those candidates that it did not depend on."""
    nothing = {"chosen": None, "error": None, "verdicts": survey or [], "warnings": []}
    report: dict[str, Any] = decision or nothing
    asked = {(row["provider"], row["name"]): row for row in survey or ()}
    verdicts = []
    for row in report["verdicts"]:
        decided = row["state"] != "not probed"
        answer = row if decided else asked.get((row["provider"], row["name"])) or row
        verdicts.append(answer | {"decided": decided})
    return report | {"verdicts": verdicts}


def _check(step: Step) -> dict[str, Any]:
    family, _, dtype = step.name.rpartition(" in ")
    unknown = {"passed": False, "error": None, "bound": None, "device": None}
    row = {"name": step.name, "family": family, "dtype": dtype, "failure": step.failure}
    return row | (step.value or unknown)


def _problems(report: dict[str, Any], checked: bool) -> list[str]:
    """Everything wrong, one sentence or two each."""
    found = [_cause(failure) for failure in report["failures"]]
    found += _platform_problems(report["platforms"])
    found += plugins.problems(report["plugins"])
    found += [
        f"No operator was tried: to {step['name']} failed: {_cause(step['failure']).rstrip('.')}."
        for step in report["preparation"]
        # Why no platform was chosen is said above.
        if step["failure"] and not (step["name"] == PLATFORM and report["platforms"]["error"])
    ]
    found += _failed_checks(report["checks"])
    found += [
        _wrong_values(check) for check in report["checks"] if _ran(check) and not check["passed"]
    ]
    if checked and not report["checks"] and not found:
        found.append("No operator was tried: the platform has none of the dtypes that are tried.")
    return found


def _platform_problems(platforms: dict[str, Any]) -> list[str]:
    if platforms["error"]:
        return [platforms["error"]["message"]]
    failed = any(row["decided"] and row["state"] == "failed" for row in platforms["verdicts"])
    return list(platforms["warnings"]) if failed else []


def _ran(check: dict[str, Any]) -> bool:
    return check["failure"] is None


def _failed_checks(checks: list[dict[str, Any]]) -> list[str]:
    """One sentence for each cause, however many operators it keeps from running."""
    names: dict[str, list[str]] = {}
    for check in checks:
        if not _ran(check):
            names.setdefault(_cause(check["failure"]), []).append(check["name"])
    return [
        f"{first}{f' and {len(more)} more checks' if more else ''} failed: {cause.rstrip('.')}."
        for cause, (first, *more) in names.items()
    ]


def _wrong_values(check: dict[str, Any]) -> str:
    return (
        f"{check['name']} computed wrong values on {check['device']}: the error is"
        f" {check['error']:.2g}, expected at most {check['bound']:.2g}. Set"
        " MAINBOARD_KERNELS=reference to do without the kernel, and report this with the output of"
        " `mainboard env`."
    )


def _cause(failure: dict[str, str]) -> str:
    return f"{failure['type']}: {failure['message']}"
