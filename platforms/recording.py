"""A machine as a file: what the probes read of it, written down, and read again elsewhere.

`Recording` stands before a machine and remembers every answer; `Replay` is a machine that has nothing but
those answers. So whatever a probe says of somebody's machine can be seen, and kept as a test, on
one that has none of its hardware. `mainboard env --record DIR` writes such a file.

A record is one JSON object: `origin` in words, `system` and `architecture`, the `environ` that
chooses devices, the `files` and `folders` that were read, what was `present`, the nodes `denied`,
the `packages` that were looked into, and the `answers` of native libraries. `facts` is what
Mainboard made of it there.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mainboard.platforms.bounded import Outcome
from mainboard.platforms.candidates import BUILT_INS
from mainboard.platforms.cpu_facts import read_cpu_facts
from mainboard.platforms.listed_devices import ListedDevices
from mainboard.platforms.machine import Machine
from mainboard.platforms.redaction import SETTINGS, redact, shorten
from mainboard.platforms.verdict import State, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Recording", "Replay", "facts_of", "platform_on", "record"]


class Recording(Machine):
    """Another machine; whatever is read of it is kept."""

    def __init__(self, source: Machine) -> None:
        super().__init__(
            source.root,
            source.environ,
            architecture=source.architecture,
            system=source.system,
            import_path=source.import_path,
        )
        self._source = source
        self.kept: dict[str, Any] = {
            name: {} for name in ("files", "folders", "packages", "answers")
        }
        self._present: dict[str, bool] = {}

    def text(self, name: str, limit: int = -1) -> str | None:
        """What stands in a file."""
        found = self._source.text(name, limit)
        if found is not None:
            self.kept["files"].setdefault(name.lstrip("/"), found)
        return found

    def names(self, name: str) -> list[str]:
        """What is in a folder."""
        found = self._source.names(name)
        if found:
            self.kept["folders"][name.lstrip("/")] = found
        return found

    def exists(self, name: str) -> bool:
        """Whether there is such a file or folder."""
        found = self._source.exists(name)
        if found:
            self._present.setdefault(name.lstrip("/"), True)
        return found

    def may_use(self, name: str) -> bool:
        """Whether this user may read and write a device node."""
        found = self._source.may_use(name)
        if self.exists(name):
            self._present[name.lstrip("/")] = found
        return found

    def package(self, name: str) -> str | None:
        """Where a package is; the record says only that there is one."""
        found = self._source.package(name)
        if found is not None:
            self.kept["packages"].setdefault(name, {})
        return found

    def package_text(self, name: str, file: str) -> str | None:
        """What stands in a file of a package."""
        found = self._source.package_text(name, file)
        if found is not None:
            self.kept["packages"].setdefault(name, {})[file] = found
        return found

    def ask(self, script: str, question: str, package: str | None = None) -> Outcome:
        """What a native library answers."""
        outcome = self._source.ask(script, question, package)
        answer = {"output": outcome.output, "problem": outcome.problem}
        self.kept["answers"][f"{script} {question}"] = answer
        return outcome

    def tile_permission(self) -> int | None:
        """Which extended states the kernel grants."""
        found = self.kept["tile_permission"] = self._source.tile_permission()
        return found

    def to_record(self) -> dict[str, Any]:
        """Everything that was read, as plain JSON types; nothing is left out yet."""
        named = {*self.kept["files"], *self.kept["folders"]}
        return {
            "system": self.system,
            "architecture": self.architecture,
            "environ": {name: self.environ[name] for name in SETTINGS if name in self.environ},
            **self.kept,
            "present": sorted(self._present.keys() - named),
            "denied": sorted(name for name, usable in self._present.items() if not usable),
        }


class Replay(Machine):
    """The machine of a record."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        super().__init__(
            "/recorded",
            dict(record.get("environ", {})),
            architecture=record["architecture"],
            system=record["system"],
            import_path=[],
        )
        self.record = record
        self._files: dict[str, str] = {
            name: content if isinstance(content, str) else "\n".join(content)
            for name, content in record["files"].items()
        }
        self._folders: dict[str, list[str]] = dict(record.get("folders", {}))
        for path in (*self._files, *record.get("present", ())):
            self._add(path)

    def _add(self, path: str) -> None:
        """List a path in its folder, and that in its own."""
        while path:
            path, _, name = path.rpartition("/")
            inside = self._folders.setdefault(path, [])
            if name not in inside:
                inside.append(name)

    def text(self, name: str, limit: int = -1) -> str | None:
        """What stood in a file."""
        found = self._files.get(name.lstrip("/"))
        if found is None:
            return None
        whole = found.encode()
        return whole[: None if limit < 0 else limit].decode("utf-8", "replace").strip()

    def names(self, name: str) -> list[str]:
        """What was in a folder."""
        return sorted(self._folders.get(name.strip("/"), ()))

    def exists(self, name: str) -> bool:
        """Whether there was such a file or folder."""
        path = name.strip("/")
        folder, _, last = path.rpartition("/")
        return path in self._files or path in self._folders or last in self._folders.get(folder, ())

    def may_use(self, name: str) -> bool:
        """Whether the user there could read and write a device node."""
        return self.exists(name) and name.lstrip("/") not in self.record.get("denied", ())

    def package(self, name: str) -> str | None:
        """A folder that stands for a package which was there."""
        return f"/recorded/{name}" if name in self.record.get("packages", {}) else None

    def package_text(self, name: str, file: str) -> str | None:
        """What stood in a file of a package."""
        found = self.record.get("packages", {}).get(name, {}).get(file)
        return "\n".join(found) if isinstance(found, list) else found

    def ask(self, script: str, question: str, package: str | None = None) -> Outcome:
        """What a native library answered; without an answer in the record, nothing."""
        nothing = {"output": None, "problem": "the record has no answer"}
        answer = self.record.get("answers", {}).get(f"{script} {question}", nothing)
        output = answer["output"]
        text = "\n".join(output) if isinstance(output, list) else output
        return Outcome(text, answer.get("problem"), 0.0)

    def tile_permission(self) -> int | None:
        """Which extended states the kernel there granted."""
        found: int | None = self.record.get("tile_permission")
        return found


def record(origin: str, source: Machine | None = None) -> dict[str, Any]:
    """Ask every built-in platform about a machine, and keep what they read and concluded.

    What identifies a machine or its user is replaced: ids of devices, names of control groups. The
    facts are made from the record, so that replaying it gives the same.

    Args:
        origin: where the record comes from, in words.
        source: the machine; this one by default.
    """
    machine = Recording(source or Machine())
    facts_of(machine)
    kept = shorten(redact({"origin": origin, **machine.to_record()}))
    return {**kept, "facts": facts_of(Replay(kept))}


def platform_on(machine: Machine, path: str) -> type[ListedDevices]:
    """The platform class of that path, as if its process ran on another machine."""
    module, _, name = path.rpartition(".")
    cls: type[ListedDevices] = getattr(import_module(module), name)
    return type(cls.__name__, (cls,), {"_machine": classmethod(lambda _: machine)})


def facts_of(machine: Machine) -> dict[str, Any]:
    """What the built-in platforms say of a machine, as plain JSON types."""
    verdicts = {name: import_module(module).probe(machine) for name, module in BUILT_INS.items()}
    facts: dict[str, Any] = {
        "verdicts": {name: [str(v.state), v.code] for name, v in verdicts.items()},
        "devices": {},
        "cpu": read_cpu_facts(machine).to_dict(),
    }
    for name, verdict in verdicts.items():
        if name != "cpu" and verdict.state is State.ACTIVATED:
            facts["devices"][name] = _devices(machine, verdict)
    return facts


def _devices(machine: Machine, verdict: Verdict) -> dict[str, Any]:
    """The devices of a platform that can be used, by logical id, and how they are connected."""
    assert verdict.value is not None
    platform = platform_on(machine, verdict.value)
    if not platform._listed():
        return {"listed": False}  # only torch knows them
    ids = range(platform.device_count())
    links = platform.links()
    return {
        "class": verdict.value.rpartition(".")[2],
        "visible": platform.visible_physical_ids(),
        "physical": [platform.device_id_to_physical_device_id(number) for number in ids],
        "devices": [_device(platform, number) for number in ids],
        "links": [[*link] for link in links],
        "fully_connected": platform.is_fully_connected([d.id for d in platform._listed()]),
    }


def _device(platform: type[ListedDevices], number: int) -> dict[str, Any]:
    capability = platform.get_device_capability(number)
    able = platform.capabilities(number)
    return {
        "name": platform.get_device_name(number),
        "uuid": platform.get_device_uuid(number),
        "capability": capability and capability.as_version_str(),
        "memory": platform.get_device_total_memory(number),
        "compute_units": platform.num_compute_units(number),
        "fp8_formats": list(able.fp8_formats),
        "isa_features": sorted(able.isa_features),
        "integrated": able.integrated_memory,
    }
