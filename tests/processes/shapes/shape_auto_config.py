"""Registers with Transformers, which refuses a second registration."""

import os

calls = []


def register():
    """The plugin."""
    from transformers import AutoConfig, PretrainedConfig

    class ShapeConfig(PretrainedConfig):
        model_type = "mainboard_shape"

    calls.append(os.getpid())
    AutoConfig.register("mainboard_shape", ShapeConfig)


def effect():
    """What the plugin did."""
    from transformers import AutoConfig

    return AutoConfig.for_model("mainboard_shape").model_type
