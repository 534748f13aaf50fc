"""The steps that come first in every child process: torch, plugins, the platform, its kernels."""

from collections.abc import Callable, Generator, Mapping
from types import MappingProxyType
from typing import Any

from mainboard.cli.attempt import Attempt

__all__ = ["KERNELS", "PLATFORM", "PREPARATION", "TORCH", "prepare"]

TORCH = "import torch"
PLATFORM = "resolve the platform"
KERNELS = "load the kernels"


def prepare() -> Generator[tuple[str, Callable[[], Any]], Attempt, bool]:
    """Every step of the preparation, in order, until one fails.

    Returns:
        Whether all of them went well; if not, nothing after them can.
    """
    for name, function in PREPARATION.items():
        outcome = yield name, function
        if outcome.failure:
            return False
    return True


def _torch() -> dict[str, Any]:
    import torch

    return {"version": torch.__version__, "threads": torch.get_num_threads()}


def _plugins() -> None:
    # They may bring operators. One that fails is the matter of `mainboard plugins`.
    from mainboard.plugins import load_general_plugins

    load_general_plugins()


def _platform() -> dict[str, Any]:
    from mainboard.platforms import current_platform

    cls = type(current_platform)
    dtypes = [str(dtype).removeprefix("torch.") for dtype in current_platform.supported_dtypes]
    return {
        "class": f"{cls.__module__}.{cls.__qualname__}",
        "device_type": current_platform.device_type,
        "device_name": current_platform.get_device_name(),
        "dispatch_key": current_platform.dispatch_key,
        "dtypes": dtypes,
    }


def _kernels() -> dict[str, Any]:
    from mainboard.kernels import status
    from mainboard.platforms import current_platform

    current_platform.import_kernels()
    return status()


PREPARATION: Mapping[str, Callable[[], Any]] = MappingProxyType(
    {
        TORCH: _torch,
        "load the general plugins": _plugins,
        PLATFORM: _platform,
        KERNELS: _kernels,
    }
)
