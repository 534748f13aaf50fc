"""What a GPU's compiler calls it: `sm_90`, `gfx942`."""

import functools

import torch

__all__ = ["architecture"]


@functools.cache
def architecture(index: int) -> str:
    """The architecture of the device with this number; asking starts the device."""
    if torch.version.hip:
        # As in gfx90a:sramecc+:xnack-
        name: str = torch.cuda.get_device_properties(index).gcnArchName
        return name.partition(":")[0]
    major, minor = torch.cuda.get_device_capability(index)
    return f"sm_{major}{minor}"
