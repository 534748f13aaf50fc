"""Every error that Mainboard raises on purpose.

::

    MainboardError
    ├── PluginError                      (RuntimeError)
    │   ├── PluginLoadError              (ImportError)
    │   └── PluginConflictError
    ├── PlatformError                    (RuntimeError)
    │   ├── PlatformConflictError
    │   ├── PlatformUnavailableError
    │   └── PlatformContractError        (TypeError)
    └── KernelError                      (RuntimeError)
        ├── KernelUnavailableError
        └── UnsupportedConfigurationError (ValueError)

A message says what was asked, what is so here, and what to do next.
"""

from __future__ import annotations

from mainboard.light_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "KernelError",
    "KernelUnavailableError",
    "MainboardError",
    "PlatformConflictError",
    "PlatformContractError",
    "PlatformError",
    "PlatformUnavailableError",
    "PluginConflictError",
    "PluginError",
    "PluginLoadError",
    "UnsupportedConfigurationError",
]


class MainboardError(Exception):
    """The root of every error raised here."""


class PluginError(MainboardError, RuntimeError):
    """A plugin, or what it was asked to do, is at fault."""


class PluginLoadError(PluginError, ImportError):
    """A plugin that was named explicitly could not be found, imported or called."""


class PluginConflictError(PluginError):
    """One plugin name means several distributions."""


class PlatformError(MainboardError, RuntimeError):
    """The choice of a platform, or the platform chosen, is at fault."""


class PlatformConflictError(PlatformError):
    """Several out-of-tree platforms are active and no setting decides between them."""


class PlatformUnavailableError(PlatformError):
    """The platform that was asked for by name cannot be used here."""


class PlatformContractError(PlatformError, TypeError):
    """A plugin's answer is not a platform class."""


class KernelError(MainboardError, RuntimeError):
    """A kernel, or the choice between kernels, is at fault."""


class KernelUnavailableError(KernelError):
    """The kernels that were asked for are not compiled in, or cannot run here."""


class UnsupportedConfigurationError(KernelError, ValueError):
    """No kernel serves this configuration; `reasons` holds why, one sentence each."""

    def __init__(self, message: str, reasons: Sequence[str] = ()) -> None:
        super().__init__("\n  - ".join([message, *reasons]))
        self.reasons = tuple(reasons)
