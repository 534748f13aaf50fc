"""`mainboard env`: what this machine, its Python and its packages are.

Nothing outside the standard library is imported, and torch never: the report is as full on a
machine where torch does not import.
"""

import argparse
import os
import platform
import sys
from typing import Any

from mainboard import __version__
from mainboard.cli import distributions
from mainboard.cli.attempt import Attempt, attempt
from mainboard.cli.screen import Mark, Screen

__all__ = ["add_arguments", "collect", "exit_code", "show"]

_PREFIXES = (
    "MAINBOARD_", "VLLM_", "CUDA_", "NVIDIA_", "HIP_", "ROCR_", "ROCM_", "HSA_", "GPU_",
    "CPU_VISIBLE_", "TORCH_", "PYTORCH_", "TRITON_", "NCCL_", "OMP_", "GOMP_", "KMP_", "MKL_",
    "OPENBLAS_", "RAY_", "SLURM_", "PYTHON", "LD_", "DYLD_", "CONDA_",
)  # fmt: skip
_NAMES = frozenset(
    {"PATH", "VIRTUAL_ENV", "RANK", "LOCAL_RANK", "WORLD_SIZE", "HF_HUB_OFFLINE", "XDG_CACHE_HOME"}
)
_SECRETS = ("TOKEN", "KEY", "SECRET", "PASSWORD", "CREDENTIAL")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to write down what the probes read, if anywhere."""
    parser.add_argument(
        "--record",
        metavar="DIR",
        help="also write DIR/machine.json: what the probes read, to replay them elsewhere",
    )


def collect(options: argparse.Namespace) -> dict[str, Any]:
    """Every section of the report; one that cannot be had is its failure."""
    sections = {
        "mainboard": _mainboard,
        "system": _system,
        "python": _python,
        "torch": _torch,
        "cpu": _cpu,
        "packages": distributions.packages,
        "plugins": distributions.plugins,
        "environment": _environment,
    }
    report = {name: _answer(attempt(probe)) for name, probe in sections.items()}
    if options.record is not None:
        report["recording"] = _answer(attempt(lambda: _record(options.record)))
    return report


def exit_code(report: dict[str, Any]) -> int:
    """0, unless a recording was asked for and failed: a fact that cannot be had is a fact."""
    return int("failure" in report.get("recording", ()))


def _answer(result: Attempt) -> Any:
    return {"failure": result.failure} if result.failure else result.value


def _mainboard() -> dict[str, Any]:
    from mainboard import build_info

    libraries = attempt(build_info.libraries)
    compiled = [vars(info) | {"path": str(info.path)} for info in libraries.value or ()]
    return {
        "version": __version__,
        "location": os.path.dirname(build_info.__file__),
        "compiled_libraries": compiled,
        "compiled_libraries_failure": libraries.failure,
    }


def _system() -> dict[str, Any]:
    release = attempt(platform.freedesktop_os_release).value or {}
    return {
        "platform": platform.platform(),
        "distribution": release.get("PRETTY_NAME"),
        "libc": " ".join(platform.libc_ver()).strip() or None,
        "container": _container(),
    }


def _container() -> str | None:
    """What kind of container this is, as far as files and variables tell."""
    for file, kind in (("/.dockerenv", "docker"), ("/run/.containerenv", "podman")):
        if os.path.exists(file):
            return kind
    return "kubernetes" if "KUBERNETES_SERVICE_HOST" in os.environ else None


def _python() -> dict[str, Any]:
    return {
        "version": sys.version,
        "implementation": platform.python_implementation(),
        "executable": sys.executable,
        "virtual_environment": sys.prefix if sys.prefix != sys.base_prefix else None,
        "path": list(sys.path),
    }


def _torch() -> dict[str, Any]:
    from mainboard.platforms.machine import this_machine
    from mainboard.platforms.torch_build import find_torch

    build: dict[str, Any] = find_torch(this_machine()).to_dict()
    return build | {"imported": "torch" in sys.modules}


def _cpu() -> dict[str, Any]:
    from mainboard.platforms.cpu_facts import cpu_facts

    return cpu_facts().to_dict()


def _record(folder: str) -> dict[str, Any]:
    """Write down what the probes read of this machine, without what tells whose it is."""
    import json
    from datetime import UTC, datetime

    from mainboard.platforms.recording import record

    made = f"recorded by mainboard {__version__} on {datetime.now(UTC):%Y-%m-%d}"
    path = os.path.join(folder, "machine.json")
    recorded = json.dumps(record(made), indent=1)
    os.makedirs(folder, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"{recorded}\n")
    return {
        "file": path,
        "note": "ids and names of groups are replaced; read it before you send it",
    }


def _environment() -> dict[str, str]:
    wanted = (name for name in sorted(os.environ) if name in _NAMES or name.startswith(_PREFIXES))
    return {name: _public(name, os.environ[name]) for name in wanted}


def _public(name: str, value: str) -> str:
    """The value, unless its name says that it is a secret: this report gets pasted."""
    return "(set, not shown)" if any(word in name for word in _SECRETS) else value


def show(report: dict[str, Any], screen: Screen) -> None:
    """Every section under its heading."""
    for name, section in report.items():
        screen.heading(name.capitalize())
        if isinstance(section, dict) and "failure" in section:
            screen.line(Mark(f"not known: {section['failure']['message']}", "bad"))
        elif not section:
            screen.line(Mark("none", "dim"))
        elif isinstance(section, list):
            screen.table(list(section[0]), [list(map(_text, row.values())) for row in section])
        elif name == "environment":
            screen.table((), list(section.items()))
        else:
            rows = [(label.replace("_", " "), _text(fact)) for label, fact in section.items()]
            screen.table((), [row for row in rows if row[1]])


def _text(fact: Any) -> str:
    """A fact as one line: nothing for None, and lists without their brackets."""
    if isinstance(fact, dict):
        return ", ".join(f"{name} {text}" for name, value in fact.items() if (text := _text(value)))
    if isinstance(fact, list | tuple):
        between = "; " if fact and isinstance(fact[0], dict) else ", "
        return between.join(map(_text, fact))
    return "" if fact is None else " ".join(str(fact).split())
