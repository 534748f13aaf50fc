"""What of a record is left out or replaced before anybody else sees it.

A record is made to be shown: it must not tell whose machine it is. Ids of devices become numbers,
names of control groups that may carry a user's or a container's become `group1` and so on, and of
files that say more than the probes ask for, only the lines that they ask for stay.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["SETTINGS", "redact", "shorten"]

SETTINGS = (
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES",
    "CPU_VISIBLE_MEMORY_NODES",
)
"""The environment that decides which devices a process has."""

_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_UNIQUE_ID = re.compile(r"(?<=\bunique_id )([1-9]\d*)")
_GROUPS = re.compile(
    r"(kubepods|burstable|besteffort|guaranteed|system|user|machine|init|docker|lxc|containerd|podman)"
    r"(-(burstable|besteffort|guaranteed))?(\.(slice|scope|service))?"
)

# The names of device nodes that a probe looks for, and the lines of files that it reads.
_NODES = re.compile(r"nvidia|kfd$|dri$|dxg$|nvhost|nvgpu|nvmap")
_LINES = [
    (re.compile(name), re.compile(wanted, re.IGNORECASE))
    for name, wanted in (
        (r"proc/self/mountinfo", r".* - cgroup"),
        (r"proc/self/status", r"(Cpus|Mems)_allowed_list:"),
        (r".*/?meminfo", r"(Node \d+ )?(MemTotal|MemAvailable):"),
        (r"proc/cpuinfo", r"(?!serial|bugs|bogomips)"),
        (r".*/memory\.stat", r"hierarchical_memory_limit|(total_)?inactive_file"),
    )
]


def redact(record: dict[str, Any]) -> dict[str, Any]:
    """The record without what identifies a machine or its user."""
    kept = {**record, "files": {**record["files"]}, "folders": {**record["folders"]}}
    for name, text in kept["files"].items():
        for names, wanted in _LINES:
            if names.fullmatch(name):
                lines = [line for line in text.splitlines() if wanted.match(line)]
                kept["files"][name] = "\n".join(lines)
    if "dev" in kept["folders"]:
        kept["folders"]["dev"] = [name for name in kept["folders"]["dev"] if _NODES.match(name)]
    for replace in (_numbered_uuids(kept), _numbered_unique_ids(kept), _renamed_groups(kept)):
        kept = _everywhere(kept, replace)
    return kept


def shorten(record: dict[str, Any]) -> dict[str, Any]:
    """The record with texts of several lines as lists of them, and no processor listed twice."""
    files = dict(record["files"])
    if record["architecture"] in ("x86_64", "aarch64") and "proc/cpuinfo" in files:
        # Of a repeated field the first counts, and each processor repeats the first one's.
        files["proc/cpuinfo"] = files["proc/cpuinfo"].partition("\nprocessor")[0]
    packages = {
        name: {file: _lines(text) for file, text in texts.items()}
        for name, texts in record["packages"].items()
    }
    answers = {
        name: answer | {"output": _lines(answer["output"])}
        for name, answer in record["answers"].items()
    }
    shorter = {name: _lines(text) for name, text in files.items()}
    return record | {"files": shorter, "packages": packages, "answers": answers}


def _lines(text: str | None) -> str | list[str] | None:
    return text.splitlines() if text and "\n" in text else text


def _everywhere(value: Any, replace: Callable[[str], str]) -> Any:
    """The same value with every string in it, keys too, replaced."""
    if isinstance(value, str):
        return replace(value)
    if isinstance(value, dict):
        return {replace(key): _everywhere(each, replace) for key, each in value.items()}
    if isinstance(value, list):
        return [_everywhere(each, replace) for each in value]
    return value


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield key
            yield from _strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)


def _numbered_uuids(record: dict[str, Any]) -> Callable[[str], str]:
    """Each id a number, the same one everywhere, also where it was shortened."""
    ids = list(dict.fromkeys(found for text in _strings(record) for found in _UUID.findall(text)))
    numbers = {uuid: f"00000000-0000-0000-0000-{place:012x}" for place, uuid in enumerate(ids, 1)}

    def replace(text: str) -> str:
        whole = _UUID.sub(lambda match: numbers[match[0]], text)
        return re.sub(
            r"(?<=GPU-|MIG-)[0-9a-fA-F-]+", lambda match: _longer(match[0], numbers), whole
        )

    return replace


def _longer(part: str, numbers: dict[str, str]) -> str:
    """The number of the id that a shortened one begins; what begins none is no id of a device."""
    meant = [number for uuid, number in numbers.items() if uuid.startswith(part)]
    return meant[0] if meant else part


def _numbered_unique_ids(record: dict[str, Any]) -> Callable[[str], str]:
    """The same for the ids that the kernel writes as decimal numbers, and programs as 16 digits."""
    ids = dict.fromkeys(found for text in _strings(record) for found in _UNIQUE_ID.findall(text))
    numbers = {decimal: str(place) for place, decimal in enumerate(ids, 1)}
    digits = {f"{int(decimal):016x}": f"{int(n):016x}" for decimal, n in numbers.items()}

    def replace(text: str) -> str:
        plain = _UNIQUE_ID.sub(lambda match: numbers[match[0]], text)
        pattern = r"(?<=GPU-)[0-9a-fA-F]{16}\b"
        return re.sub(pattern, lambda match: digits.get(match[0].lower(), match[0]), plain)

    return replace


def _renamed_groups(record: dict[str, Any]) -> Callable[[str], str]:
    """Control groups by number, but for the levels that every such system has."""
    lines = record["files"].get("proc/self/cgroup", "").splitlines()
    parts = [part for line in lines for part in line.split(":", 2)[-1].split("/")]
    own = [part for part in dict.fromkeys(parts) if part not in ("", "..")]
    names = [part for part in own if not _GROUPS.fullmatch(part)]
    groups = {name: f"group{place}" for place, name in enumerate(names, 1)}
    if not groups:
        return lambda text: text
    either = "|".join(map(re.escape, sorted(groups, key=len, reverse=True)))
    whole = re.compile(rf"(?<=/)(?:{either})(?=[/\s]|$)", re.MULTILINE)
    return lambda text: whole.sub(lambda match: groups[match[0]], text)
