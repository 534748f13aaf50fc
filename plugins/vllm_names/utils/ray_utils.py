"""Whether this process is one of Ray's; Ray itself is not imported for the question."""

import sys
from typing import Any

__all__ = ["is_in_ray_actor", "is_ray_initialized"]


def is_ray_initialized() -> bool:
    """Whether this process is connected to a Ray cluster."""
    ray: Any = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def is_in_ray_actor() -> bool:
    """Whether this process runs an actor of Ray."""
    if not is_ray_initialized():
        return False
    ray: Any = sys.modules["ray"]
    return ray.get_runtime_context().get_actor_id() is not None
