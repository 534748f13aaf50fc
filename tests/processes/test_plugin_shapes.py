"""Ten shapes of general plugins, each loaded twice in one process and once in a spawned worker."""

import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.multiprocess

HERE = Path(__file__).parent
SHAPES = tomllib.loads((HERE / "shapes.toml").read_text())
FAILS = "shape_patches_engine"


@pytest.fixture(scope="module")
def said(program, general_site, once):
    """What the shapes say here and in a spawned worker, with the one that fails among them."""

    def ask():
        ended = program("twice.py", *SHAPES, FAILS, path=(general_site,), strict=False)
        return ended.json | {"err": ended.err}

    return once("shapes", ask)


@pytest.mark.parametrize("where", ["here", "spawned"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_is_called_once_and_takes_effect(said, shape, where):
    """Loading twice, by threads and by the plugin's own callable too, is one call in a process."""
    expected = {"state": "called", "calls": 1, "effect": SHAPES[shape]["effect"]}
    assert said[where][shape] == expected


@pytest.mark.parametrize("where", ["here", "spawned"])
def test_a_plugin_that_needs_the_engine_fails_alone(said, where):
    """It is called once, named with what it lacks, and leaves the ten as they are."""
    assert said[where][FAILS] == {"state": "failed", "calls": 1, "effect": None}
    assert "vllm.v1.engine" in said["err"]


def test_there_are_ten():
    """The table and the folder agree."""
    files = {path.stem for path in (HERE / "shapes").glob("*.py")}
    assert files - set(SHAPES) == {FAILS, "shape_platform"}
    assert len(SHAPES) == 10
