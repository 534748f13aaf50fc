"""Checks of other processes and threads: forked, spawned, and in this one."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

from mainboard.testing.check import NotOffered, check
from mainboard.testing.subject import Subject

__all__: list[str] = []

_THREADS = 6


@check("processes.fork", "facts can be asked for before a fork, and the child computes", "fork")
def fork(subject: Subject) -> Iterator[str]:
    """A fact that starts the device breaks every worker that is forked afterwards."""
    if not hasattr(os, "fork"):
        raise NotOffered("this system has no fork()")
    found = subject.fresh("fork")
    if "error" in found:
        yield found["error"]
    elif "error" in found["child"]:
        yield f"in the forked child: {found['child']['error']}"
    elif not found["child"]["works"]:
        yield "in the forked child a computation gives a wrong result"


@check("processes.worker", "a spawned worker has its parent's platform, and computes")
def worker(subject: Subject) -> Iterator[str]:
    """prepare_worker() compares it with the parent's."""
    from mainboard.platforms.resolve import identity
    from mainboard.plugins.worker import PARENT_PLATFORM

    here = identity()
    found = subject.fresh("worker", environment={PARENT_PLATFORM: here})
    if "error" in found:
        yield found["error"]
    elif found["identity"] != here:
        yield f"the worker has {found['identity']}, the parent {here}"
    elif not found["works"]:
        yield "in the worker a computation gives a wrong result"


@check("processes.threads", "several threads compute on the device at once")
def threads(subject: Subject) -> Iterator[str]:
    """Each has its own tensors; what one computes does not reach another."""
    import torch

    wrong: list[str] = []

    def work(number: int) -> None:
        try:
            x = torch.full((2048,), float(number), device=subject.device)
            for _ in range(20):
                x = x + number
            if not torch.equal(x.cpu(), torch.full((2048,), 21.0 * number)):
                wrong.append(f"thread {number} got a wrong result")
        except Exception as error:  # noqa: BLE001 - foreign code; its failure is the finding
            wrong.append(f"thread {number}: {type(error).__name__}: {error}")

    started = [threading.Thread(target=work, args=(number,)) for number in range(_THREADS)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    yield from wrong
