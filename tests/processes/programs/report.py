"""What a process says of itself; imported by the programs and by their workers."""

import os
from importlib import import_module


def platform():
    """This process, and the platform that it has."""
    import mainboard.platforms

    return [os.getpid(), type(mainboard.platforms.current_platform).__name__]


def shapes(names):
    """For each plugin: how it stands, in which processes it was called, what its effect is."""
    from mainboard.plugins import report

    states = {row.name: str(row.state) for row in report().plugins}
    here = os.getpid()
    answers = {}
    for name in names:
        module = import_module(name)
        calls = sum(pid == here for pid in module.calls)
        answers[name] = {"state": states[name], "calls": calls, "effect": effect(module)}
    return answers


def effect(module):
    """What the plugin did, or what kept it from being seen."""
    try:
        return module.effect()
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {error}"


def conflict():
    """Prepare this worker; the error that came of it, if one did."""
    from mainboard.plugins import prepare_worker

    try:
        prepare_worker()
    except RuntimeError as error:
        return [type(error).__name__, str(error)]
    return None
