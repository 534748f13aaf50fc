"""Puts an attention backend of its own behind the custom name (turboquant, spyre)."""

import os

calls = []


class Backend:
    """What is registered."""


def register():
    """The plugin."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    calls.append(os.getpid())
    register_backend(AttentionBackendEnum.CUSTOM, "shape_attention.Backend")


def effect():
    """What the plugin did."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    return AttentionBackendEnum.CUSTOM.get_class() is Backend
