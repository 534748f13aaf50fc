"""torchrun: each rank loads its plugins and has the platform that the launcher chose."""

import pytest

torch = pytest.importorskip("torch.distributed")
pytestmark = [
    pytest.mark.multiprocess,
    pytest.mark.skipif(not torch.is_gloo_available(), reason="this torch has no gloo"),
]


def launch(program, *sites, who):
    """Two ranks of which `who` has another environment."""
    return program(
        "launch.py", who, path=sites, strict=False, VLLM_PLUGINS="shape_skips_known,shape_platform"
    )


def test_ranks_have_their_plugins_and_the_launchers_platform(program, general_site, platform_site):
    """Two processes, each with its plugin called once, and collectives between them."""
    said = launch(program, general_site, platform_site, who="nobody").json
    assert said["sum"] == 2
    assert [(name, calls) for _, name, calls in said["ranks"]] == [
        ("ShapePlatform", [pid]) for pid, _, _ in said["ranks"]
    ]
    assert len({pid for pid, _, _ in said["ranks"]}) == 2


def test_a_rank_with_another_environment_ends_the_job(program, general_site, platform_site):
    """The launcher fails, and its output has the error that names both platforms."""
    ended = launch(program, general_site, platform_site, who="1")
    assert ended.code != 0
    assert "PlatformConflictError: This worker" in ended.err
    assert "its parent chose shape_platform/shape_platform (shape_platform 1.0" in ended.err
