"""Registers classes themselves, with an alias for each (hcx, t5gemma2, VibeVoice)."""

import os

calls = []


class Encoder:
    """One model."""


class Decoder(Encoder):
    """Another, derived from it."""


def register_all():
    """The plugin."""
    from vllm import ModelRegistry

    calls.append(os.getpid())
    known = ModelRegistry.get_supported_archs()
    for model in (Encoder, Decoder):
        for arch in (f"{model.__name__}Model", f"{model.__name__}ForCausalLM"):
            if arch not in known:
                ModelRegistry.register_model(arch, model)


def effect():
    """What the plugin did."""
    from mainboard import ModelRegistry

    archs = ("EncoderModel", "EncoderForCausalLM", "DecoderModel", "DecoderForCausalLM")
    return [ModelRegistry.resolve(arch).__name__ for arch in archs]
