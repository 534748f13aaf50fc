"""Checks of the plugin's function: what it answers, how often, how fast, and what else it does."""

from __future__ import annotations

from collections.abc import Iterator

from mainboard.testing.check import check
from mainboard.testing.subject import Subject

__all__: list[str] = []

_THREADS = 8


@check(
    "registration.answer", "the plugin's function answers in a new process as it did in this one"
)
def answer(subject: Subject) -> Iterator[str]:
    """The answer is the class in use, and does not depend on what else a process has done."""
    for run in subject.registrations:
        if "error" in run:
            yield f"in a new process it failed: {run['error']}"
            return
    answers = {run["answer"].replace(":", ".") for run in subject.registrations}
    if answers != {(subject.verdict.value or "").replace(":", ".")}:
        yield f"it answered {subject.verdict.value!r} here, and in new processes {sorted(answers)}"


@check("registration.repeat", "a second call of the plugin's function answers as the first")
def repeat(subject: Subject) -> Iterator[str]:
    """Hosts call it more than once; a latch that fails the second time is a fault."""
    run = subject.registrations[0]
    if run.get("again") != run.get("answer"):
        yield f"the first call answered {run.get('answer')!r}, the second {run.get('again')!r}"


@check("registration.cost", "the plugin imports and answers within register_ms")
def cost(subject: Subject) -> Iterator[str]:
    """The quickest of three new processes counts: a machine may be busy."""
    times = [run["milliseconds"] for run in subject.registrations if "milliseconds" in run]
    limit = subject.requirements.register_ms
    if times and min(times) > limit:
        yield f"the quickest of {len(times)} took {min(times):.0f} ms; register_ms is {limit:.0f}"
    if subject.registrations[0].get("torch") and not subject.requirements.torch_in_register:
        yield "it imports torch; look at files and environment, and import torch where it is used"


@check("registration.effects", "the plugin's function does nothing but answer")
def effects(subject: Subject) -> Iterator[str]:
    """Installed plugins are called in every process, also where another platform is used."""
    run = subject.registrations[0]
    if run.get("environment"):
        yield f"it changes the environment: {', '.join(run['environment'])}"
    if run.get("printed"):
        yield f"it writes to stdout: {run['printed'].strip()[:80]!r}; log instead"
    if run.get("importer"):
        yield "it replaces builtins.__import__"
    if run.get("folder"):
        yield "it changes the working directory"
    if run.get("threads", 0) > 0:
        yield f"it leaves {run['threads']} threads running, which a fork would lose"


@check("registration.threads", "threads that ask for the platform first all get one object")
def threads(subject: Subject) -> Iterator[str]:
    """Resolution takes turns; a plugin that asks for the platform itself is a fault."""
    run = subject.fresh("resolve", _THREADS)
    yield from run.get("errors", [])
    if "error" in run:
        yield run["error"]
    elif run["objects"] != 1 and not run["errors"]:
        yield f"{_THREADS} threads got {run['objects']} objects"


@check("registration.class", "importing the platform's class does not import torch")
def class_import(subject: Subject) -> Iterator[str]:
    """Choosing a platform costs some 40 ms without torch, and seconds with it."""
    run = subject.fresh("resolve", 1)
    if run.get("torch") and not subject.requirements.torch_in_register:
        yield "choosing the platform imports torch; import it in the methods that need it"
