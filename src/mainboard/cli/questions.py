"""Known, compiled in, able to run here, active: four questions, never one.

A platform or kernel may be known but not built, built but unable to run on this machine, and able
to run but not the one that does.
"""

from typing import Any, TypedDict

from mainboard.cli.attempt import attempt
from mainboard.cli.screen import Screen

__all__ = [
    "Question",
    "compiled_kernels",
    "kernel_questions",
    "platform_question",
    "show_questions",
]


class Question(TypedDict):
    """The four answers about one subject; None where it cannot be told."""

    subject: str
    known: list[str]
    compiled: list[str] | None
    available: list[str] | None
    active: list[str] | None


def compiled_kernels() -> dict[str, Any]:
    """What the build wrote down about each compiled library, read without torch."""
    devices, libraries = attempt(_devices), attempt(_libraries)
    return {
        "devices": devices.value or [],
        "libraries": libraries.value or [],
        "failure": libraries.failure or devices.failure,
    }


def _devices() -> list[str]:
    from mainboard.build_info import DEVICES

    return list(DEVICES)


def _libraries() -> list[dict[str, Any]]:
    from mainboard.build_info import libraries

    return [
        vars(library) | {"path": str(library.path), "instruction_sets": [*library.instruction_sets]}
        for library in libraries()
    ]


def platform_question(platforms: dict[str, Any]) -> Question:
    """Which platforms there are, what torch was built for, which are usable, which one is used."""
    verdicts, chosen = platforms["verdicts"], platforms["chosen"]
    build = attempt(_torch_build)
    return {
        "subject": "platforms",
        "known": [row["name"] for row in verdicts],
        "compiled": build.value,
        "available": [row["name"] for row in verdicts if row["state"] == "activated"],
        "active": [chosen["name"]] if chosen else [],
    }


def _torch_build() -> list[str]:
    """What the installed torch was built for, with versions."""
    from mainboard.platforms.machine import this_machine
    from mainboard.platforms.torch_build import find_torch

    facts = find_torch(this_machine()).to_dict()
    torch, _ = facts.pop("version"), facts.pop("folder")
    return [f"torch {torch}", *(f"{name} {version}" for name, version in facts.items() if version)]


def kernel_questions(compiled: dict[str, Any], status: dict[str, Any] | None) -> list[Question]:
    """The same of the compiled libraries, and of the variants inside each.

    Args:
        compiled: what `compiled_kernels` returned.
        status: what `mainboard.kernels.status()` returned, or None when it could not.
    """
    built = {row["device"]: row["instruction_sets"] for row in compiled["libraries"]}
    loaded = {row["device"]: row for row in (status or {}).get("libraries", ()) if row["loaded"]}
    # What was not loaded cannot run; without torch that cannot be told.
    unloaded: list[str] | None = None if status is None else []
    libraries: Question = {
        "subject": "kernel libraries",
        "known": compiled["devices"],
        "compiled": list(built),
        "available": list(loaded) if status else None,
        "active": [status["level"]] if status else None,
    }
    variants: list[Question] = [
        {
            "subject": f"{device} kernels",
            "known": instruction_sets,
            "compiled": instruction_sets,
            "available": list(loaded[device]["usable"]) if device in loaded else unloaded,
            "active": [loaded[device]["active"]] if device in loaded else unloaded,
        }
        for device, instruction_sets in built.items()
    ]
    return [libraries, *variants]


def show_questions(questions: list[Question], screen: Screen) -> None:
    """One row for each subject."""
    screen.heading("Known, compiled in, able to run here, active")
    rows = [
        (
            row["subject"],
            *map(_list, (row["known"], row["compiled"], row["available"], row["active"])),
        )
        for row in questions
    ]
    screen.table(("", "known", "compiled in", "can run here", "active"), rows)


def _list(values: list[str] | None) -> str:
    return "not known" if values is None else ", ".join(values) or "none"
