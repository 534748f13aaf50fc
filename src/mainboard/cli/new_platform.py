"""`mainboard new-platform NAME`: write a complete project for a platform of one's own.

The project works as it is written: it simulates its device, and passes its own tests. Its files
are the templates beside this module, with the name in its several spellings put in.
"""

import argparse
import keyword
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from string import Template
from types import MappingProxyType
from typing import Any

from mainboard import __version__
from mainboard.cli.screen import Mark, Screen

__all__ = ["FILES", "add_arguments", "collect", "exit_code", "show"]

FILES: Mapping[str, str] = MappingProxyType(
    {
        "pyproject.toml": "pyproject.toml.in",
        "README.md": "README.md.in",
        ".gitignore": "gitignore.in",
        ".github/workflows/ci.yml": "ci.yml.in",
        "src/${name}/__init__.py": "package.py.in",
        "src/${name}/devices.py": "devices.py.in",
        "src/${name}/platform.py": "platform.py.in",
        "src/${name}/operators.py": "operators.py.in",
        "src/${name}/simulator.py": "simulator.py.in",
        "tests/conftest.py": "conftest.py.in",
        "tests/test_conformance.py": "test_conformance.py.in",
        "tests/test_operators.py": "test_operators.py.in",
        "tests/test_selection.py": "test_selection.py.in",
    }
)
"""Every file of a project and its template."""

# The device types that torch has; a device with one of these names cannot be another's.
_TAKEN = frozenset(
    {"cpu", "cuda", "fpga", "hip", "hpu", "ideep", "ipu", "lazy", "maia", "meta", "mkldnn", "mps",
     "mtia", "opencl", "opengl", "privateuseone", "ve", "vulkan", "xla", "xpu"}
)  # fmt: skip
_RESERVED = frozenset({"mainboard", "tests", "torch", "vllm"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The platform's name, and where its project goes."""
    parser.add_argument(
        "name", type=_name, metavar="NAME", help="what the platform is called, such as acme"
    )
    parser.add_argument(
        "--into",
        metavar="FOLDER",
        default=".",
        help="where to make the project's folder; the current folder by default",
    )


def collect(options: argparse.Namespace) -> dict[str, Any]:
    """Write the project; what keeps it from being written is under `problem`."""
    folder = Path(options.into) / options.name
    report: dict[str, Any] = {"name": options.name, "folder": str(folder), "files": []}
    try:
        files = _write(options.name, folder)
    except FileExistsError:
        problem = (
            f"{folder} is there already. Nothing was written; choose another folder with --into."
        )
        return report | {"problem": problem}
    except OSError as error:
        problem = f"The project could not be written to {folder}: {error}."
        return report | {"problem": problem}
    return report | {"files": files, "problem": None}


def exit_code(report: dict[str, Any]) -> int:
    """0 when the project was written."""
    return int(report["problem"] is not None)


def show(report: dict[str, Any], screen: Screen) -> None:
    """The files, and what to do next."""
    if report["problem"]:
        screen.line(Mark(report["problem"], "bad"))
        return
    screen.heading(report["folder"])
    for file in report["files"]:
        screen.line(f"  {file}")
    screen.heading("Next")
    for command in (f"cd {report['folder']}", "python -m pip install -e '.[test]'", "pytest"):
        screen.line(f"  {command}")
    screen.line("  README.md says what to replace, and in which order.")


def _name(name: str) -> str:
    """The name, if it can be that of a package, a torch device and an entry point."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        plain = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_0123456789")
        hint = f", for example {plain}" if plain else ""
        raise argparse.ArgumentTypeError(
            f"{name!r} is to be a Python package too: use lower-case letters, digits and _{hint}"
        )
    if name in _TAKEN:
        raise argparse.ArgumentTypeError(f"torch has devices called {name!r}; choose another name")
    if keyword.iskeyword(name) or name in _RESERVED or name in sys.stdlib_module_names:
        raise argparse.ArgumentTypeError(f"{name!r} means something else in Python; choose another")
    return name


def _write(name: str, folder: Path) -> list[str]:
    """Write every file into a new folder.

    Raises:
        FileExistsError: the folder is there.
        OSError: it cannot be written to.
    """
    from importlib import resources

    words = [word.capitalize() for word in name.split("_")]
    spellings = {
        "name": name,
        "title": " ".join(words),
        "class_name": "".join(words),
        "constant": name.upper(),
        "version": __version__,
    }
    templates = resources.files("mainboard.cli") / "templates"
    folder.mkdir(parents=True)
    written = []
    for target, template in FILES.items():
        file = Template(target).substitute(spellings)
        text = (templates / template).read_text(encoding="utf-8")
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(Template(text).substitute(spellings), encoding="utf-8")
        written.append(file)
    return written
