"""A platform plugin that is active everywhere."""


def dummy_platform_plugin():
    """Name the platform class."""
    return "vllm_add_dummy_platform.dummy_platform.DummyPlatform"
