"""What the installed torch was built for, learnt from its files without importing it."""

from __future__ import annotations

import os

from mainboard.light_typing import TYPE_CHECKING, NamedTuple
from mainboard.platforms.machine import Machine
from mainboard.platforms.probing import Decline

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["TorchBuild", "find_torch"]

_GET_TORCH = "see https://pytorch.org/get-started/locally for the command"


class TorchBuild(NamedTuple):
    """The version of torch, and the versions of what it was built for; None for not built."""

    version: str
    cuda: str | None
    hip: str | None
    folder: str

    def to_dict(self) -> dict[str, str | None]:
        """The same as plain JSON types."""
        return self._asdict()


def find_torch(machine: Machine) -> TorchBuild:
    """The torch that `import torch` would give.

    Raises:
        Decline: there is none, or it does not say what it was built for.
    """
    folder = machine.package("torch")
    if folder is None:
        raise Decline(
            "torch_absent",
            "torch is not installed in this Python environment",
            f"install torch; {_GET_TORCH}",
        )
    source = os.path.join(folder, "version.py")
    text = machine.package_text("torch", "version.py")
    if text is None:
        raise _unreadable(source, "the file is not there, or this user may not read it")
    values = dict(_assigned_strings(text))
    if "__version__" not in values:
        raise _unreadable(source, "it does not name a version")
    return TorchBuild(values["__version__"], values.get("cuda"), values.get("hip"), folder)


def _assigned_strings(source: str) -> Iterator[tuple[str, str]]:
    """Every name that gets a string, as torch/version.py does: `cuda: Optional[str] = '13.0'`."""
    for line in source.splitlines():
        target, _, value = line.partition("=")
        value = value.lstrip()
        if value.startswith(("'", '"')) and not line[0].isspace():
            yield target.partition(":")[0].rstrip(), value[1:].partition(value[0])[0]


def _unreadable(source: str, problem: str) -> Decline:
    return Decline(
        "torch_unreadable",
        f"torch is installed, but what it was built for cannot be read from {source}: {problem}",
        f"reinstall torch; {_GET_TORCH}",
    )
