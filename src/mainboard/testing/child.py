"""What the checks do in an interpreter of its own: `python -m mainboard.testing.child NAME ARGS`.

Each function takes and returns plain JSON types. What the platform prints goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["compute", "fork", "inventory", "register", "resolve", "worker"]


def register(label: str) -> dict[str, Any]:
    """Import a platform plugin and call its function twice, and say what else happened."""
    import builtins
    import threading

    from mainboard.plugins.loading import PLATFORM_PLUGINS_GROUP, plugins_of

    plugin = {each.entry.label: each for each in plugins_of(PLATFORM_PLUGINS_GROUP)}[label]
    environment, importer = dict(os.environ), builtins.__import__
    folder, threads = os.getcwd(), threading.active_count()
    with _written() as printed:
        start = time.perf_counter()
        function = plugin.load()
        if plugin.error is not None:
            raise plugin.error
        answer = function()
        milliseconds = (time.perf_counter() - start) * 1e3
        torch = "torch" in sys.modules
        try:
            again = _described(function())
        except BaseException as error:  # noqa: BLE001 - foreign code; its failure is the finding
            again = f"{type(error).__name__}: {error}"
    changed = environment.items() ^ dict(os.environ).items()
    return {
        "answer": _described(answer),
        "again": again,
        "milliseconds": milliseconds,
        "torch": torch,
        "printed": printed[0],
        "environment": sorted({name for name, _ in changed}),
        "importer": builtins.__import__ is not importer,
        "folder": os.getcwd() != folder,
        "threads": threading.active_count() - threads,
    }


def _described(answer: Any) -> str:
    if isinstance(answer, type):
        return f"{answer.__module__}.{answer.__qualname__}"
    return repr(answer) if not isinstance(answer, str) else answer


@contextmanager
def _written() -> Iterator[list[str]]:
    """Everything that is written to stdout in this block, native code included."""
    import tempfile

    printed = [""]
    sys.stdout.flush()
    with tempfile.TemporaryFile() as file:
        saved = os.dup(1)
        os.dup2(file.fileno(), 1)
        try:
            yield printed
        finally:
            sys.stdout.flush()
            os.dup2(saved, 1)
            os.close(saved)
            file.seek(0)
            printed[0] = file.read(2000).decode(errors="replace")


def resolve(threads: int) -> dict[str, Any]:
    """Read `current_platform` from several threads at once."""
    import threading

    from mainboard import platforms

    barrier = threading.Barrier(threads)
    found: list[Any] = []

    def read() -> None:
        barrier.wait()
        try:
            found.append(platforms.current_platform)
        except BaseException as error:  # noqa: BLE001 - foreign code; its failure is the finding
            found.append(error)

    started = [threading.Thread(target=read) for _ in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    errors = sorted({f"{type(e).__name__}: {e}" for e in found if isinstance(e, BaseException)})
    return {
        "objects": len({id(each) for each in found}),
        "errors": errors,
        "torch": "torch" in sys.modules,
    }


def inventory() -> dict[str, Any]:
    """The devices that are visible here, and that the first of them works."""
    from mainboard.errors import PlatformError

    try:
        from mainboard.platforms import current_platform as platform
    except PlatformError as error:
        return {"count": 0, "declined": str(error)}
    count = platform.device_count()
    return {
        "count": count,
        "facts": [_facts(platform, device) for device in range(count)],
        "physical": [platform.device_id_to_physical_device_id(i) for i in range(count)],
        "works": compute(platform) if count else None,
    }


def _facts(platform: Any, device: int) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for name in ("get_device_name", "get_device_uuid", "get_device_total_memory"):
        try:
            facts[name] = getattr(platform, name)(device)
        except NotImplementedError:
            facts[name] = None
    return facts


def compute(platform: Any) -> bool:
    """Whether a small computation on the device gives what it gives on the host."""
    import torch

    platform.import_kernels()
    device_type = platform.device_type
    there = torch.arange(64, dtype=torch.float32).to(device_type)
    result: bool = torch.equal((there * 2 + 1).cpu(), torch.arange(1.0, 129.0, 2.0))
    return result


def fork() -> dict[str, Any]:
    """Ask for every fact, fork, and compute in the child."""
    from mainboard.platforms import current_platform as platform

    facts = [_facts(platform, device) for device in range(platform.device_count())]
    capability = platform.get_device_capability()
    platform.is_pin_memory_available()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            answer: dict[str, Any] = {"works": compute(platform)}
            status = 0
        except BaseException as error:  # noqa: BLE001 - foreign code; its failure is the finding
            answer = {"error": f"{type(error).__name__}: {error}"}
        os.write(write, json.dumps(answer).encode())
        os._exit(status)
    os.close(write)
    with os.fdopen(read) as channel:
        text = channel.read()
    _, status = os.waitpid(child, 0)
    ended = {"error": f"the forked child ended with wait status {status}"}
    return {"facts": facts, "capability": capability, "child": json.loads(text) if text else ended}


def worker() -> dict[str, Any]:
    """What a worker process does: prepare, then compute."""
    from mainboard.plugins import prepare_worker

    prepare_worker()
    from mainboard.platforms import current_platform
    from mainboard.platforms.resolve import identity

    return {"identity": identity(), "works": compute(current_platform)}


def _main(name: str, arguments: str) -> None:
    # stdout is the answer's.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    if name not in __all__:
        raise SystemExit(f"no function {name!r}")
    status = 1
    try:
        answer = globals()[name](*json.loads(arguments))
        print(json.dumps(answer), file=channel, flush=True)
        status = 0
    except BaseException:  # noqa: BLE001 - foreign code; its last line is the finding
        traceback.print_exc()
    # A runtime's threads may keep an interpreter from ending, or end it with words of their own.
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    _main(*sys.argv[1:])
