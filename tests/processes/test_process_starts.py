"""Workers of the standard library: plugins in each of them, and the platform of the parent."""

import multiprocessing

import pytest

pytestmark = pytest.mark.multiprocess

METHODS = multiprocessing.get_all_start_methods()
SHAPE = "shape_platform/shape_platform (shape_platform 1.0: shape_platform.ShapePlatform)"


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_worker_has_its_plugins_and_its_parents_platform(
    program, general_site, platform_site, method
):
    """Process, Pool and ProcessPoolExecutor: the plugin called in the worker, the platform same."""
    if method not in METHODS:
        pytest.skip(f"this system has no {method}")
    said = program(
        "starts.py",
        method,
        path=(general_site, platform_site),
        strict=method != "fork",  # from 3.12 on, Python warns of a fork beside threads
        VLLM_PLUGINS="shape_skips_known,shape_platform",
    ).json
    assert list(said) == ["parent", "process", "pool", "executor"]
    assert len({pid for pid, _, _ in said.values()}) == 4
    assert {tuple(rest) for _, *rest in said.values()} == {("ShapePlatform", 1)}


def test_a_worker_with_another_environment_is_refused(program, platform_site):
    """The function gets an error that names both; an executor's initializer breaks the executor."""
    ended = program("differs.py", "SHAPE_DEVICES=", path=(platform_site,))
    parent, (kind, text), outside = ended.json
    assert (parent, kind, outside) == ("ShapePlatform", "PlatformConflictError", "broken")
    assert f"its parent chose {SHAPE}" in text
    assert "chose the platform cpu (built-in: mainboard.platforms.cpu.CpuPlatform)" in text
    assert "Here shape_platform/shape_platform is declined (plugin_declined)" in text
    assert f"PlatformConflictError: {text.partition('(')[0]}" in ended.err


def test_a_worker_without_the_package_says_so(program, platform_site):
    """The parent's plugin is filtered in the worker, or not installed there at all."""
    _, (_, filtered), _ = program("differs.py", "VLLM_PLUGINS=", path=(platform_site,)).json
    assert "Here shape_platform/shape_platform is filtered (left_out_by_vllm_plugins)" in filtered


def test_a_worker_that_can_choose_nothing_is_refused(program, platform_site):
    """Its own reason stands beside the parent's platform."""
    _, (kind, text), _ = program(
        "differs.py", "MAINBOARD_PLATFORM=warp", path=(platform_site,)
    ).json
    assert kind == "PlatformConflictError"
    assert f"can choose no platform; its parent chose {SHAPE}" in text
    assert "MAINBOARD_PLATFORM=warp was asked for, but no platform has that name" in text


@pytest.mark.skipif("forkserver" not in METHODS, reason="this system has no forkserver")
def test_a_fork_server_that_ran_before_the_choice_needs_the_parents_variables(
    program, platform_site
):
    """`worker_environment()` brings the settings along, and with them the choice and its check."""
    said = program("late.py", path=(platform_site,)).json
    assert said["given"] == {
        "MAINBOARD_PARENT_PLATFORM": "cpu (built-in: mainboard.platforms.cpu.CpuPlatform)",
        "MAINBOARD_PLATFORM": "cpu",
    }
    assert said["without"] == "ShapePlatform"
    assert said["with"] == "CpuPlatform"
    kind, text = said["error"]
    assert kind == "PlatformConflictError"
    assert "its parent chose acme/acme (acme 1.2: acme.AcmePlatform)" in text
    assert "Here no installed package offers acme/acme" in text


def test_settings_that_come_too_late_are_an_error(program, general_site):
    """What a worker has found by its own settings is not passed off as its parent's."""
    kind, text, kept = program("too_late.py", path=(general_site,), VLLM_PLUGINS="").json
    assert (kind, kept) == ("PluginError", "")
    assert "was given its parent's MAINBOARD_PLATFORM, VLLM_PLUGINS, but this worker" in text


@pytest.mark.skipif("fork" not in METHODS, reason="this system has no fork")
def test_a_child_forked_while_a_model_is_registered_registers_its_own(program, general_site):
    """The lock of the registry is not left in the hands of a thread that the child has not."""
    said = program(
        "forked.py", path=(general_site,), strict=False, VLLM_PLUGINS="shape_skips_known"
    ).json
    assert said == ["Before", "SkipsKnown"]
