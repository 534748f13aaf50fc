"""What the vllm alias needs that has no other home in Mainboard.

Field names, arguments and defaults are those of vLLM 0.33. Nothing here runs an engine: a
configuration can be built, read and changed, a registration is kept and can be asked for.
"""

from importlib import import_module
from typing import Any

__all__ = ["VERSION", "current_platform"]

# The release whose names and signatures are followed. The local part says that it is not vLLM.
VERSION = "0.33.0+mainboard"


def current_platform() -> Any:
    """The platform of this process; by name, because plugins know no platforms."""
    return import_module("mainboard.platforms").current_platform
