"""The command line: `mainboard doctor`, `env`, `plugins`, `kernels`, `bench` and the others.

Each command is one module with the same four names: `add_arguments(parser)`, `collect(options)`,
which returns plain JSON types and never raises, `show(report, screen)` and `exit_code(report)`.
Nothing heavy is imported here, so that `--help` and `--version` work on any machine.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from types import MappingProxyType, ModuleType
from typing import Any

from mainboard import __version__

__all__ = ["COMMANDS", "main"]

COMMANDS: Mapping[str, str] = MappingProxyType(
    {
        "doctor": "say what was chosen and why, and try one real operator of each family",
        "env": "say what this machine, its Python and its packages are",
        "plugins": "list the installed plugins and how each of them loads",
        "kernels": "list which operators run here, on what, with which features",
        "bench": "measure the operators beside torch's and beside the limits of this machine",
        "tune": "time the Triton kernels' tiles on this device and keep the fastest in a file",
        "verify": "run the conformance checks on a platform",
        "new-platform": "write a complete project for a platform of one's own",
    }
)
"""Every command and what it does; each is the module of that name, with _ for -, in this package."""

# What a shell reports for a program that ended with SIGINT or SIGPIPE.
_INTERRUPTED = 130
_PIPE_CLOSED = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments after the program's name; those of this process by default.

    Returns:
        0 when all is well, 1 when the command found something wrong, 2 for a wrong argument.
    """
    options = _parser().parse_args(argv)
    command = _module(options.command)
    try:
        return _run(command, options)
    except BrokenPipeError:
        # Python flushes stdout once more when it exits; let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE_CLOSED
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return _INTERRUPTED


def _run(command: ModuleType, options: argparse.Namespace) -> int:
    from mainboard.cli.screen import screen_for, stdout_reserved

    with stdout_reserved():
        report: dict[str, Any] = command.collect(options)
    if options.json is True:  # `bench` also takes a file, which it writes itself
        import json

        print(json.dumps(report, indent=2))
    else:
        command.show(report, screen_for(sys.stdout))
    if sys.stdout is not None:
        sys.stdout.flush()
    code: int = command.exit_code(report)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mainboard",
        description="One current_platform for any PyTorch program, and attention on its kernels.",
        epilog="Exit status: 0 all is well, 1 something is wrong, 2 a wrong argument.",
    )
    parser.add_argument("--version", action="version", version=f"mainboard {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        command = commands.add_parser(
            name, help=summary, description=f"{summary.capitalize()}.", conflict_handler="resolve"
        )
        command.add_argument("--json", action="store_true", help="print one JSON object")
        _module(name).add_arguments(command)
    return parser


def _module(command: str) -> ModuleType:
    return import_module(f"mainboard.cli.{command.replace('-', '_')}")
