"""Registers a model by name, unless somebody has (dllm, and vLLM's own example)."""

import os

calls = []


class Model:
    """What is registered."""


def register():
    """The plugin."""
    from vllm import ModelRegistry

    calls.append(os.getpid())
    if "SkipsKnown" not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model("SkipsKnown", "shape_skips_known:Model")


def effect():
    """What the plugin did."""
    from mainboard import ModelRegistry

    return ModelRegistry.resolve("SkipsKnown").__qualname__
