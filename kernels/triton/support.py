"""What the Triton kernels do not serve, and why."""

import torch

from mainboard.kernels.architecture import architecture
from mainboard.kernels.library import interpreted
from mainboard.kernels.support import Request
from mainboard.kernels.triton.tiles import family, padded

__all__ = ["refuses"]

LARGEST_DIM = 256
LARGEST_LATENT = 512
LARGEST_ROTARY = 128


def refuses(request: Request) -> list[str]:
    """The reasons against a request; none if the kernels serve it."""
    reasons = []
    value_dim = request.head_dim if request.value_dim is None else request.value_dim
    if request.operator == "attention":
        for name, dim in (("head", request.head_dim), ("value", value_dim)):
            if padded(dim) > LARGEST_DIM:
                reasons.append(f"{name} dimension {dim} is more than {LARGEST_DIM}")
    elif request.operator == "mla_decode":
        if padded(value_dim) > LARGEST_LATENT:
            reasons.append(f"latent dimension {value_dim} is more than {LARGEST_LATENT}")
        if request.head_dim - value_dim > LARGEST_ROTARY:
            rotary = request.head_dim - value_dim
            reasons.append(f"rotary dimension {rotary} is more than {LARGEST_ROTARY}")
    if interpreted() or not torch.cuda.is_available():
        return reasons
    name = architecture(request.device_index)
    if family(name) is None:
        reasons.append(f"there are no tiles for {name}")
    elif name == "sm_75" and request.dtype is torch.bfloat16:
        reasons.append("sm_75 has no bfloat16 arithmetic")
    return reasons
