"""Looks at a switch, vLLM's version and the platform first (Arctic, vllm-lens, ATOM)."""

import os

calls = []
found = []


def register():
    """The plugin."""
    if os.environ.get("SHAPE_CONDITIONS_DISABLE") == "1":
        return
    import vllm
    from vllm.platforms import current_platform

    calls.append(os.getpid())
    found.append([vllm.__version__.split(".")[0].isdigit(), current_platform.device_type])


def effect():
    """What the plugin saw."""
    return found[-1]
