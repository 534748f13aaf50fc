"""Registers a model at every call, without a look (jina, gcu)."""

import os

from vllm import ModelRegistry

calls = []


def register():
    """The plugin."""
    calls.append(os.getpid())
    ModelRegistry.register_model("RegistersAgain", "a_module_not_yet_there:Model")


def effect():
    """What the plugin did: the module is not asked for until the model is."""
    return ModelRegistry.models["RegistersAgain"]
