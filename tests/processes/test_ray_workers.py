"""Ray's tasks and actors on a local cluster: plugins in each worker, and the parent's platform."""

import shutil
import sys
import tempfile
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.skipif(
        find_spec("ray") is None, reason="Ray is not installed: pip install 'mainboard[test]'"
    ),
]

SHAPES = tomllib.loads((Path(__file__).parent / "shapes.toml").read_text())


@pytest.fixture(scope="module")
def said(program, general_site, platform_site, once, tmp_path_factory):
    """What one cluster's workers say; it is started once in a test run."""

    def ask():
        # Not below pytest's folder: the paths of Ray's sockets may have 107 characters.
        folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp" if sys.platform == "linux" else None)
        try:
            ended = program(
                "cluster.py",
                folder,
                *SHAPES,
                path=(general_site, platform_site),
                strict=False,
                HOME=str(tmp_path_factory.mktemp("home")),
                RAY_USAGE_STATS_ENABLED="0",
                SHAPE_DEVICES="0",
            )
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return ended.json | {"err": ended.out + ended.err}

    return once("ray", ask)


@pytest.mark.parametrize("kind", ["task", "actor"])
def test_a_worker_has_its_parents_platform(said, kind):
    """`prepare_worker` as setup hook, with the variables of `worker_environment`."""
    assert said["parent"] == said[kind]["platform"][1] == "ShapePlatform"


@pytest.mark.parametrize("kind", ["task", "actor"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_is_called_once_and_takes_effect_in_ray(said, shape, kind):
    """Each general plugin runs once in the worker's process, before the task or actor."""
    expected = {"state": "called", "calls": 1, "effect": SHAPES[shape]["effect"]}
    assert said[kind]["shapes"][shape] == expected


def test_an_actor_with_another_environment_dies_with_both_names(said):
    """The error that the caller gets holds Mainboard's message."""
    kind, text = said["other actor"]
    assert kind == "ActorDiedError"
    names_both(text)


def names_both(text):
    """The message has the platform here, the parent's, and why that one is not used here."""
    assert "chose the platform cpu (built-in: mainboard.platforms.cpu.CpuPlatform)" in text
    assert "its parent chose shape_platform/shape_platform (shape_platform 1.0" in text
    assert "is declined (plugin_declined)" in text


def test_a_task_with_another_environment_does_not_run(said):
    """Ray tells the caller that the worker died, and the driver's terminal why."""
    assert said["other task"][0] == "WorkerCrashedError"
    assert "PlatformConflictError: This worker" in said["err"]


def test_a_task_that_prepares_itself_fails_with_both_names(said):
    """The caller gets Mainboard's own error from a task that calls `prepare_worker` first."""
    kind, text = said["other task that asks"]
    assert kind == "RayTaskError(PlatformConflictError)"
    names_both(text)
