"""What `mainboard kernels` learns from torch, in a process of its own."""

from typing import Any

from mainboard.cli.child import Steps
from mainboard.cli.preparation import prepare

__all__ = ["BACKENDS", "MATRIX", "OPERATORS", "steps"]

OPERATORS = "ask the dispatcher"
"""The step whose value is the list of operators."""

MATRIX = "ask for the support of each configuration"
"""The step whose value is the support matrix."""

BACKENDS = "choose an attention backend"
"""The step whose value is every candidate for ordinary attention, with its reasons."""


def steps() -> Steps:
    """The preparation, then who implements each operator."""
    if (yield from prepare()):
        yield OPERATORS, _operators
        yield MATRIX, _matrix
        yield BACKENDS, _backends


def _operators() -> list[dict[str, Any]]:
    from mainboard.kernels.schema import SCHEMAS
    from mainboard.platforms import current_platform

    key = current_platform.dispatch_key
    return [
        {
            "operator": f"mainboard::{name}",
            "dispatch_key": key,
            "served_by": "kernel" if _implemented(f"mainboard::{name}", key) else "reference",
            "schema": name + schema,
        }
        for name, schema in SCHEMAS.items()
    ]


def _matrix() -> list[dict[str, str]]:
    from mainboard.kernels.matrix import matrix
    from mainboard.platforms import current_platform

    return matrix(current_platform.device_type)


def _backends() -> dict[str, Any]:
    from mainboard.kernels.backends.selection import (
        AttentionSelectorConfig,
        select_attention_backend,
    )
    from mainboard.platforms import current_platform

    config = AttentionSelectorConfig(128, current_platform.supported_dtypes[0], "auto", 16)
    return select_attention_backend(config, num_heads=32).to_dict()


def _implemented(operator: str, key: str) -> bool:
    """Whether a kernel is registered for this key itself; without one the reference runs."""
    import torch

    return torch._C._dispatch_has_kernel_for_dispatch_key(operator, key)
