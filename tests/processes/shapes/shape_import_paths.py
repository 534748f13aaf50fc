"""Reaches the registry by each of its three import paths."""

import os

import vllm
from vllm.model_executor.models import ModelRegistry as of_models
from vllm.model_executor.models.registry import ModelRegistry as of_registry

calls = []


class Model:
    """What is registered."""


def register():
    """The plugin."""
    calls.append(os.getpid())
    for number, registry in enumerate((vllm.ModelRegistry, of_models, of_registry)):
        registry.register_model(f"ImportPath{number}", f"{__name__}:Model")


def effect():
    """What the plugin did."""
    from mainboard import ModelRegistry

    archs = [arch for arch in ModelRegistry.get_supported_archs() if arch.startswith("ImportPath")]
    return [archs, all(ModelRegistry.resolve(arch) is Model for arch in archs)]
