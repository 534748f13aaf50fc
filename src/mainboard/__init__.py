"""The board that other people's silicon plugs into.

`mainboard.platforms.current_platform` is what this program runs on, and
`mainboard.kernels.attention` runs attention on its compiled kernels. Importing this package
imports neither torch nor any plugin.
"""

# Type checkers take this for true. `typing` itself would be most of what the import costs.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from mainboard.models import ModelRegistry as ModelRegistry

__version__ = "0.1.0"

__all__ = ["ModelRegistry", "__version__"]


def __getattr__(name: str) -> "Any":
    if name == "ModelRegistry":
        from mainboard.models import ModelRegistry

        return ModelRegistry
    raise AttributeError(f"module 'mainboard' has no attribute {name!r}")
