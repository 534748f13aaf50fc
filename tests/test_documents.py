"""What the documents say is so: programs run, links lead somewhere, settings are complete."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
SOURCES = ("kernels", "platforms", "plugins", "src/mainboard", "csrc", "setup.py")

# A block that begins with the name of a file is a part of somebody's project, not a program.
PROGRAM = re.compile(r"^```python\n(?!# \S+\.py\n)(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
SETTING = re.compile(r"\bMAINBOARD_[A-Z_]+\b")


def name(path: Path) -> str:
    """A document's name in a report."""
    return path.relative_to(ROOT).as_posix()


def programs(path: Path) -> str:
    """The programs of a document, one after the other."""
    return "\n".join(PROGRAM.findall(path.read_text()))


@pytest.mark.parametrize("path", [p for p in DOCUMENTS if programs(p)], ids=name)
def test_programs_run(path: Path, tmp_path: Path) -> None:
    """The Python of a document runs from top to bottom in a fresh interpreter."""
    ran = subprocess.run(
        [sys.executable, "-P", "-c", programs(path)],
        capture_output=True,
        check=False,
        text=True,
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if not k.startswith(("VLLM_", "MAINBOARD_"))},
    )
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_links_lead_somewhere(path: Path) -> None:
    """A link to a file leads to one, and a link to a heading to one of that document."""
    for link in LINK.findall(path.read_text()):
        if link.startswith(("https://", "http://")):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file) if file else path
        assert target.exists(), f"{name(path)}: {link}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            anchors = [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings]
            assert anchor in anchors, f"{name(path)}: {link}"


def test_every_setting_is_documented() -> None:
    """Each variable that the code reads has a row in docs/environment.md, and each row a reader."""
    files = [file for place in SOURCES for file in [ROOT / place, *(ROOT / place).rglob("*")]]
    text = "\n".join(f.read_text() for f in files if f.suffix in (".py", ".cpp") and f.is_file())
    # An argument, a key, or the value of a constant; what is returned is a name of something else.
    read = set(re.findall(r'[(\[=] ?"(MAINBOARD_[A-Z_]+)"', text))
    table = re.findall(r"^\| `(MAINBOARD_[A-Z_]+)`", documented(), re.MULTILINE)
    assert set(table) == read
    assert len(table) == len(set(table)) >= 8


def documented() -> str:
    """The document of all settings."""
    return (ROOT / "docs" / "environment.md").read_text()


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_no_setting_is_invented(path: Path) -> None:
    """A variable that a document names is one of those in docs/environment.md."""
    assert set(SETTING.findall(path.read_text())) <= set(SETTING.findall(documented()))


def test_the_readme_has_its_two_commands() -> None:
    """Each command sets up from nothing, brings no second torch, and stands on one line."""
    text = (ROOT / "README.md").read_text()
    start = "python3 -m venv .venv && .venv/bin/pip install torch==2.13.0 && .venv/bin/pip install "
    commands = [line for line in text.splitlines() if line.startswith("python3 -m venv")]
    assert [command.removeprefix(start) for command in commands] == [
        "'.[example]' && .venv/bin/python examples/semantic_search.py \"How is a platform chosen?\"",
        "'.[test]' && .venv/bin/pytest -n 2",
    ]


def test_the_readme_shows_every_command_of_the_program() -> None:
    """Every command of `mainboard` is named in the README."""
    from mainboard.cli import COMMANDS

    text = (ROOT / "README.md").read_text()
    assert {command for command in COMMANDS if f"`mainboard {command}" not in text} == set()
