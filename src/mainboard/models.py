"""Which model class serves which architecture name."""

import os
import threading
from collections.abc import KeysView, Mapping
from types import MappingProxyType
from typing import Any

from mainboard.errors import PluginLoadError

__all__ = ["ModelRegistry"]


class _ModelRegistry:
    """Architecture names and their classes, as classes or as `"module:Class"` not yet imported."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._models: dict[str, type[Any] | str] = {}

    def _after_fork_in_child(self) -> None:
        """The thread that had the lock may not exist in a child."""
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<ModelRegistry of {len(self._models)} architectures>"

    @property
    def models(self) -> Mapping[str, type[Any] | str]:
        """What is registered, as it was registered; a copy."""
        with self._lock:
            return MappingProxyType(dict(self._models))

    def get_supported_archs(self) -> KeysView[str]:
        """The architecture names, in the order of their registration."""
        return self.models.keys()

    def register_model(self, model_arch: str, model_cls: type[Any] | str) -> None:
        """Let `model_cls` serve `model_arch`; a second registration replaces, with a warning.

        Args:
            model_arch: the name under `architectures` in a model's configuration.
            model_cls: the class, or `"module:Class"`, imported when it is first resolved.

        Raises:
            TypeError: when either is of another type.
            ValueError: when the string is not `"module:Class"`.
        """
        if not isinstance(model_arch, str):
            raise TypeError(f"model_arch is {model_arch!r}; expected a string")
        if isinstance(model_cls, str):
            _check_reference(model_arch, model_cls)
        elif not isinstance(model_cls, type):
            raise TypeError(
                f"model_cls of {model_arch!r} is {model_cls!r}; expected a class or 'module:Class'"
            )
        with self._lock:
            before = self._models.get(model_arch)
            self._models[model_arch] = model_cls
        if before is not None and before != model_cls:
            # Not at import: a program that registers each name once needs no logging.
            import logging

            logging.getLogger("mainboard").warning(
                "Model architecture %r was %s and is now %s: the last registration counts.",
                model_arch,
                _describe(before),
                _describe(model_cls),
            )

    def resolve(self, model_arch: str) -> type[Any]:
        """The class that serves `model_arch`, imported now if it was given as a string.

        Raises:
            ValueError: when nothing is registered under that name.
            PluginLoadError: when the class cannot be imported.
        """
        with self._lock:
            model = self._models.get(model_arch)
        if model is None:
            raise ValueError(self._unknown(model_arch))
        if isinstance(model, str):
            return _import(model_arch, model)
        return model

    def _unknown(self, model_arch: str) -> str:
        from difflib import get_close_matches

        names = list(self.models)
        close = get_close_matches(str(model_arch), names, n=3)
        known = f"Close matches: {', '.join(close)}" if close else f"{len(names)} names are known"
        return (
            f"Model architecture {model_arch!r} is not registered. {known}. Register it with"
            " ModelRegistry.register_model, or install the plugin that does."
        )


def _check_reference(model_arch: str, reference: str) -> None:
    module, colon, name = reference.partition(":")
    parts = [*module.split("."), *name.split(".")]
    if not (colon and all(part.isidentifier() for part in parts)):
        raise ValueError(
            f"model_cls of {model_arch!r} is {reference!r}; expected 'package.module:Class'"
        )


def _import(model_arch: str, reference: str) -> type[Any]:
    from importlib import import_module

    module, _, name = reference.partition(":")
    try:
        found: Any = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:
        raise PluginLoadError(
            f"Model architecture {model_arch!r} is registered as {reference!r}, which cannot be"
            f" imported: {type(error).__name__}: {error}. Repair the package that registered it."
        ) from error
    if not isinstance(found, type):
        raise PluginLoadError(
            f"Model architecture {model_arch!r} is registered as {reference!r}, which is"
            f" {found!r}, not a class. Repair the package that registered it."
        )
    return found


def _describe(model: type[Any] | str) -> str:
    return model if isinstance(model, str) else f"{model.__module__}:{model.__qualname__}"


ModelRegistry = _ModelRegistry()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=ModelRegistry._after_fork_in_child)
