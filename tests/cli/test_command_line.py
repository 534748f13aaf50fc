"""What holds for every command: arguments, output, exit codes."""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import mainboard as package
from mainboard.cli import COMMANDS

ESCAPE = re.compile(r"\x1b\[")
# What a command cannot do without, or not in a moment.
ARGUMENTS = {"bench": ["--list"], "new-platform": ["acme"], "tune": ["tiles.json"]}
# What a sound machine without a device gives, where it is not 0.
EXITS = {"tune": 1}


def test_version(mainboard) -> None:
    """`--version` prints the version of the package."""
    assert mainboard("--version") == (0, f"mainboard {package.__version__}\n", "")


def test_help_names_every_command(mainboard) -> None:
    """`--help` names every command and what it does."""
    text = " ".join(mainboard("--help").out.split())
    for name, summary in COMMANDS.items():
        assert f"{name} {summary}" in text


def test_a_command_is_required(mainboard) -> None:
    """Without a command the usage goes to stderr, and the exit status is 2."""
    ran = mainboard()
    assert (ran.code, ran.out) == (2, "")
    assert "usage: mainboard" in ran.err


def test_importing_the_command_line_imports_nothing_heavy() -> None:
    """Importing `mainboard.cli` brings argparse, and neither a room of the library nor torch."""
    program = "import sys, mainboard.cli; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, check=True)
    loaded = set(ran.stdout.decode().split())
    heavy = {"torch", "rich", "json", "importlib.metadata", "inspect", "asyncio", "logging"}
    rooms = {"mainboard.plugins", "mainboard.platforms", "mainboard.kernels"}
    assert "argparse" in loaded
    assert not loaded & (heavy | rooms)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_json_is_all_there_is_on_stdout(mainboard, command: str) -> None:
    """With `--json` stdout holds one JSON object, and a sound machine gives exit status 0."""
    ran = mainboard(command, *ARGUMENTS.get(command, []), "--json", CUDA_VISIBLE_DEVICES="")
    assert isinstance(ran.json, dict)
    assert ran.code == EXITS.get(command, 0), ran.out + ran.err


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_no_escape_codes_in_a_pipe(mainboard, command: str) -> None:
    """A report that does not go to a terminal has no colours and no traceback."""
    ran = mainboard(command, *ARGUMENTS.get(command, []), CUDA_VISIBLE_DEVICES="")
    assert ran.code == EXITS.get(command, 0), ran.out + ran.err
    assert ran.out.strip()
    assert not ESCAPE.search(ran.out + ran.err)
    assert "Traceback" not in ran.out + ran.err


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a POSIX terminal")
@pytest.mark.parametrize("colour", [True, False])
def test_colour_on_a_terminal_unless_refused(colour: bool, tmp_path: Path) -> None:
    """A terminal gets colours; `NO_COLOR` refuses them."""
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    environment |= {"TERM": "xterm", "COLUMNS": "100"} | ({} if colour else {"NO_COLOR": "1"})
    ours, theirs = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "mainboard", "plugins"],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        cwd=tmp_path,
        env=environment,
    ) as process:
        os.close(theirs)
        text = read_terminal(ours)
    assert process.returncode == 0, text
    assert "Plugins" in text
    assert bool(ESCAPE.search(text)) == colour


def read_terminal(descriptor: int) -> str:
    """Everything written to a terminal until its last writer is gone."""
    chunks = []
    try:
        while chunk := os.read(descriptor, 1 << 16):
            chunks.append(chunk)
    except OSError:  # how Linux says that there is no writer left
        pass
    finally:
        os.close(descriptor)
    return b"".join(chunks).decode()


@pytest.mark.skipif(sys.platform == "win32", reason="a closed pipe is an OSError there")
def test_a_reader_that_stops_reading(tmp_path: Path) -> None:
    """When the reader of the pipe is gone, the program ends quietly."""
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "mainboard", "env"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
    ) as process:
        process.stdout.close()
        errors = process.stderr.read().decode()
    assert process.returncode == 141
    assert errors == ""


def test_console_script(tmp_path: Path) -> None:
    """The installed program `mainboard` is the same as `python -m mainboard`."""
    program = Path(sysconfig.get_path("scripts")) / "mainboard"
    if not program.exists():
        pytest.skip("mainboard is on the path but not installed")
    ran = subprocess.run(
        [program, "--version"], capture_output=True, check=True, text=True, cwd=tmp_path
    )
    assert ran.stdout == f"mainboard {package.__version__}\n"
