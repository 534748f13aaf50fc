"""Dataclasses whose constructor, comparison and text are here, not compiled for each class.

Compiling them for some thirty configurations takes longer than everything else that the vllm alias
imports.
"""

from dataclasses import MISSING, InitVar, dataclass, fields
from functools import partial
from typing import Any, ClassVar, dataclass_transform

__all__ = ["Config", "Record", "configuration"]

_dataclass = partial(dataclass, init=False, repr=False, eq=False)


@dataclass_transform()
def configuration(cls: type[Any]) -> Any:
    """Decorate a configuration: its annotations become fields, as `dataclass` makes them."""
    return _dataclass(cls)


class Record:
    """Something with fields, which are read and changed."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __init__(self, *values: Any, **named: Any) -> None:
        takes = _arguments(type(self))
        given = dict(zip(takes, values, strict=False))
        wrong = [name for name in named if name in given or name not in takes]
        if wrong or len(values) > len(takes):
            raise TypeError(
                f"{type(self).__name__} was given {', '.join(wrong) or f'{len(values)} values'};"
                f" it takes, once each, {', '.join(takes)}"
            )
        given |= named
        once = []
        for name, each in takes.items():
            value = given[name] if name in given else _default(each)
            if value is MISSING:
                raise TypeError(f"{type(self).__name__} needs {name}")
            if isinstance(each.type, InitVar):
                once.append(value)
            else:
                setattr(self, name, value)
        for each in fields(self):
            if not each.init and (value := _default(each)) is not MISSING:
                setattr(self, each.name, value)
        self.__post_init__(*once)

    def __post_init__(self) -> None:
        """Check and complete what was given; the default accepts it."""

    def __repr__(self) -> str:
        shown = (f"{name}={value!r}" for name, value in self._values("repr"))
        return f"{type(self).__name__}({', '.join(shown)})"

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._values("compare") == other._values("compare")

    __hash__ = None  # type: ignore[assignment]

    def _values(self, use: str) -> list[tuple[str, Any]]:
        return [
            (each.name, getattr(self, each.name)) for each in fields(self) if getattr(each, use)
        ]


class Config(Record):
    """A configuration, whose fields platforms read and change."""

    def compute_hash(self) -> str:
        """A text that differs between configurations that differ."""
        from hashlib import sha256

        return sha256(repr(self._values("compare")).encode()).hexdigest()


def _arguments(cls: type[Any]) -> dict[str, Any]:
    """What the constructor takes, in order: fields, and values for `__post_init__` alone."""
    stored = {each.name for each in fields(cls) if each.init}
    return {
        name: each
        for name, each in cls.__dataclass_fields__.items()
        if name in stored or isinstance(each.type, InitVar)
    }


def _default(field: Any) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()
