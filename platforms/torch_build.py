"""What the installed torch was built for, learnt from its files without importing it."""

from __future__ import annotations

import os
import sys

from mainboard.light_typing import TYPE_CHECKING, NamedTuple
from mainboard.platforms.machine import Machine
from mainboard.platforms.probing import Decline

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["TorchBuild", "find_package", "find_torch"]

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
    folder = find_package(machine, "torch")
    if folder is None:
        raise Decline(
            "torch_absent",
            "torch is not installed in this Python environment",
            f"install torch; {_GET_TORCH}",
        )
    source = os.path.join(folder, "version.py")
    try:
        with open(source, encoding="utf-8") as file:
            text = file.read()
    except OSError as error:
        raise _unreadable(source, error.strerror or str(error)) from error
    values = dict(_assigned_strings(text))
    if "__version__" not in values:
        raise _unreadable(source, "it does not name a version")
    return TorchBuild(values["__version__"], values.get("cuda"), values.get("hip"), folder)


def find_package(machine: Machine, name: str) -> str | None:
    """The folder of an importable package, or of a module's file, without importing it."""
    from importlib.machinery import PathFinder

    loaded = sys.modules.get(name)
    if machine.import_path is not None:
        spec = PathFinder.find_spec(name, machine.import_path)
    elif loaded is not None:
        return os.path.dirname(loaded.__file__) if loaded.__file__ else None
    else:
        # Every finder is asked, as an import would: an editable install brings its own.
        finders = (getattr(finder, "find_spec", None) for finder in sys.meta_path)
        found = (find(name, None, None) for find in finders if find is not None)
        spec = next((spec for spec in found if spec is not None), None)
    return os.path.dirname(spec.origin) if spec is not None and spec.origin else None


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
