"""`mainboard kernels`: which operators run here, and what serves each of their configurations."""

import argparse
from typing import Any

from mainboard.cli.child import run_steps
from mainboard.cli.matrix import BACKENDS, MATRIX, OPERATORS
from mainboard.cli.preparation import KERNELS, PLATFORM
from mainboard.cli.questions import compiled_kernels, kernel_questions, show_questions
from mainboard.cli.screen import Mark, Screen

__all__ = ["add_arguments", "collect", "exit_code", "show"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`kernels` has no arguments of its own."""


def collect(options: argparse.Namespace) -> dict[str, Any]:
    """What is compiled, read without torch; with torch, in a process of its own, what runs."""
    compiled = compiled_kernels()
    steps = run_steps("mainboard.cli.matrix", "loading the kernels")
    values = {step.name: step.value for step in steps}
    failures = {step.name: step.failure for step in steps if step.failure}
    if compiled["failure"]:
        failures["read what is compiled"] = compiled["failure"]
    return {
        "platform": values.get(PLATFORM),
        "status": values.get(KERNELS),
        "compiled": compiled["libraries"],
        "questions": kernel_questions(compiled, values.get(KERNELS)),
        "operators": values.get(OPERATORS) or [],
        "matrix": values.get(MATRIX) or [],
        "backends": values.get(BACKENDS),
        "failures": failures,
    }


def exit_code(report: dict[str, Any]) -> int:
    """0 when the kernels load and the operators are there."""
    return 1 if report["failures"] else 0


def show(report: dict[str, Any], screen: Screen) -> None:
    """The libraries, the operators on this platform, and what failed."""
    show_questions(report["questions"], screen)
    _show_libraries(report, screen)
    if report["operators"]:
        platform = report["platform"]
        screen.heading(f"Operators on {platform['device_type']} ({platform['device_name']})")
        header = ("operator", "dispatch key", "served by")
        screen.table(
            header,
            [
                (row["operator"], row["dispatch_key"], row["served_by"])
                for row in report["operators"]
            ],
        )
    if report["matrix"]:
        screen.heading("Support: what serves each configuration")
        screen.table(tuple(report["matrix"][0]), [tuple(row.values()) for row in report["matrix"]])
    if report["backends"]:
        screen.heading("Attention backends for heads of 128 and pages of 16, best first")
        candidates = report["backends"]["candidates"]
        screen.table(
            ("backend", "", "priority", ""),
            [
                (row["name"], row["state"], str(row["priority"]), "; ".join(row["reasons"]))
                for row in candidates
            ],
        )
    for step, failure in report["failures"].items():
        screen.line(Mark(f"To {step} failed: {failure['type']}: {failure['message']}", "bad"))


def _show_libraries(report: dict[str, Any], screen: Screen) -> None:
    screen.heading("Libraries")
    reasons = {
        row["device"]: row["reason"] for row in (report["status"] or {}).get("libraries", ())
    }
    rows = [
        (row["device"], row["compiler"], row["build_type"], row["torch_abi"], row["path"])
        for row in report["compiled"]
    ]
    if rows:
        screen.table(("device", "compiler", "build", "torch ABI from", "path"), rows)
    else:
        screen.line(Mark("none is compiled in", "dim"))
    for device, reason in reasons.items():
        if reason != "loaded":
            screen.line(f"{device}: {reason}")
