"""The documents for authors of plugins say what the classes and the tests have."""

import re
import runpy
import tomllib
from pathlib import Path

from mainboard.platforms.interface import Capabilities, Platform

ROOT = Path(__file__).parents[1]
CONTRACT = runpy.run_path(str(ROOT / "docs" / "contract.py"))


def test_the_contract_is_as_the_classes_have_it() -> None:
    """After a change of the contract, the generated page changes in the same commit."""
    written = (ROOT / "docs" / "contract.md").read_text()
    assert written == CONTRACT["page"](), "run `python docs/contract.py` and commit its page"


def test_the_contract_has_every_member_once() -> None:
    """No public name of the class is left out or invented."""
    rows = re.findall(r"^\| `(\w+)", CONTRACT["page"](), re.MULTILINE)
    public = [name for cls in (Platform, Capabilities) for name in dir(cls)]
    inherited = {*dir(tuple), *dir(object)}
    expected = {name for name in public if not name.startswith("_") and name not in inherited}
    assert set(rows) == expected | {"_enum"}
    assert len(rows) == len(set(rows)) > 100


def test_every_member_says_what_it_is() -> None:
    """No row without a default or a meaning."""
    rows = re.findall(r"^\| `.+", CONTRACT["page"](), re.MULTILINE)
    for row in rows:
        cells = re.split(r"(?<!\\)\|", row)[1:-1]
        assert len(cells) == 4, row
        assert all(cell.strip() for cell in cells), row


def test_what_is_required_has_no_default() -> None:
    """The members called required are empty in the class itself."""
    for name in CONTRACT["REQUIRED"]:
        value = getattr(Platform, name)
        assert value == "" or value.name == "UNSPECIFIED"


def test_the_shapes_are_those_of_the_tests() -> None:
    """The table of general plugins is the one that the tests install."""
    shapes = tomllib.loads((ROOT / "tests" / "processes" / "shapes.toml").read_text())
    rows = [f"| {shape['does']} | {shape['seen']} |" for shape in shapes.values()]
    table = "\n".join(["| what it does | seen in |", "|---|---|", *rows])
    assert table in (ROOT / "docs" / "authors.md").read_text()
