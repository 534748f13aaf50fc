"""Connectors that carry a cache between engines, registered by name."""

from collections.abc import Callable
from importlib import import_module
from typing import Any, ClassVar

__all__ = ["KVConnectorFactory"]


class KVConnectorFactory:
    """Classes of connectors by name, imported when they are asked for."""

    _registry: ClassVar[dict[str, Callable[[], type[Any]]]] = {}

    @classmethod
    def register_connector(cls, name: str, module_path: str, class_name: str) -> None:
        """Let a name stand for a class.

        Raises:
            ValueError: the name is taken.
        """
        if name in cls._registry:
            raise ValueError(f"the connector {name!r} is registered already; choose another name")
        cls._registry[name] = lambda: getattr(import_module(module_path), class_name)

    @classmethod
    def get_connector_class_by_name(cls, connector_name: str) -> type[Any]:
        """The class of this name, imported now.

        Raises:
            ValueError: nothing has that name.
        """
        if connector_name not in cls._registry:
            known = ", ".join(sorted(cls._registry)) or "none"
            raise ValueError(
                f"no connector {connector_name!r} is registered; registered are {known}"
            )
        return cls._registry[connector_name]()
