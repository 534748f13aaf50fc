"""Modules by name: whether they are there, stand-ins for those that are not, imports put off."""

import sys
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "LazyLoader",
    "PlaceholderModule",
    "has_deep_gemm",
    "has_triton_kernels",
    "import_from_path",
    "resolve_obj_by_qualname",
]


def resolve_obj_by_qualname(qualname: str) -> Any:
    """The object that `package.module.name` names.

    Raises:
        ImportError: when the module, or the name in it, does not exist.
    """
    return import_module("mainboard.platforms.resolve").resolve_obj_by_qualname(qualname)


def import_from_path(module_name: str, file_path: "str | Path") -> ModuleType:
    """Import a file as the module of this name."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location(module_name, file_path)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"{file_path} is no Python file", name=module_name)
    module = sys.modules[module_name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def _is_installed(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None


def has_triton_kernels() -> bool:
    """Whether the package `triton_kernels` is installed."""
    return _is_installed("triton_kernels")


def has_deep_gemm() -> bool:
    """Whether the package `deep_gemm` is installed."""
    return _is_installed("deep_gemm")


def _missing(placeholder: Any, *rest: Any) -> NoReturn:
    """What any use of a placeholder does: try the import, whose error says what is missing."""
    name, path = object.__getattribute__(placeholder, "_place")
    import_module(name)
    raise ImportError(
        f"{name}{path} was asked for where {name} was not importable before, and it is now; restart"
        " the program",
        name=name,
    )


# Python looks these up on the type, and so not through `__getattr__`.
_OPERATIONS = (
    "lt le eq ne gt ge hash bool call len getitem setitem delitem add sub mul matmul truediv"
    " floordiv mod divmod pow lshift rshift and xor or neg pos abs invert index round trunc floor"
    " ceil enter exit"
)


class _Placeholder:
    """Something of a module that is not installed; using it says so."""

    def __init__(self, name: str, path: str = "") -> None:
        object.__setattr__(self, "_place", (name, path))

    def placeholder_attr(self, attr_path: str) -> "_Placeholder":
        """A stand-in for something in it, which can be named without being used."""
        name, path = object.__getattribute__(self, "_place")
        return _Placeholder(name, f"{path}.{attr_path}")

    def __getattr__(self, name: str) -> NoReturn:
        _missing(self)


for _operation in _OPERATIONS.split():
    setattr(_Placeholder, f"__{_operation}__", _missing)


class PlaceholderModule(_Placeholder):
    """Stands for a module that is not installed, until it is used."""

    def __init__(self, name: str) -> None:
        super().__init__(name)


class LazyLoader(ModuleType):
    """A module that is imported when something of it is first read."""

    def __init__(self, local_name: str, parent_module_globals: dict[str, Any], name: str) -> None:
        super().__init__(name)
        self._local_name, self._scope = local_name, parent_module_globals

    def _load(self) -> ModuleType:
        module = import_module(self.__name__)
        self._scope[self._local_name] = sys.modules[self._local_name] = module
        self.__dict__.update(module.__dict__)
        return module

    def __getattr__(self, item: str) -> Any:
        return getattr(self._load(), item)

    def __dir__(self) -> list[str]:
        return dir(self._load())
