"""Replaces functions inside vLLM's engine, which is not here (prime-rl, expert-kit)."""

import os

calls = []


def register():
    """The plugin."""
    calls.append(os.getpid())
    from vllm.v1.engine.core import EngineCore

    EngineCore.step = None


def effect():
    """Nothing: the plugin fails."""
