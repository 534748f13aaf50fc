"""Dataclasses that are made when somebody asks for their fields.

To import `dataclasses`, and to look through the annotations of some thirty configurations, takes as
long as everything else that the vllm alias imports. Most programs never ask: they read and subclass
the classes. What `dataclass` compiles for each (constructor, comparison, text) is written here once.
"""

from _thread import RLock
from typing import TYPE_CHECKING, Any, ClassVar, dataclass_transform

if TYPE_CHECKING:
    from dataclasses import InitVar, field
else:

    class field:
        """What `dataclasses.field` will be called with."""

        def __init__(self, **options):
            self.options = options

    class InitVar:
        """What `dataclasses.InitVar` will be of."""

        def __init__(self, kind):
            self.kind = kind

        __class_getitem__ = classmethod(lambda cls, kind: cls(kind))


__all__ = ["Config", "InitVar", "Record", "configuration", "field"]

_lock = RLock()


@dataclass_transform()
def configuration(cls: type[Any]) -> Any:
    """Decorate a configuration: its annotations become fields, as `dataclass` makes them."""
    marks = {name: value for name, value in vars(cls).items() if type(value) is field}
    for name, mark in marks.items():
        # On the class itself a field is its default, or is not there.
        if "default" in mark.options:
            setattr(cls, name, mark.options["default"])
        else:
            delattr(cls, name)
    for name in _Later.NAMES:
        setattr(cls, name, _Later(cls, name, marks))
    return cls


class _Later:
    """What `dataclass` gives a class, until it is read; then it is that."""

    NAMES = ("__dataclass_fields__", "__dataclass_params__", "__match_args__", "__replace__")

    def __init__(self, cls: type[Any], name: str, marks: dict[str, Any]) -> None:
        self._cls, self._name, self._marks = cls, name, marks

    def __get__(self, instance: object, owner: type[Any]) -> Any:
        with _lock:
            # Unless another thread was faster.
            if vars(self._cls).get(self._name) is self:
                self._make()
        return getattr(owner if instance is None else instance, self._name)

    def _make(self) -> None:
        import dataclasses

        cls = self._cls
        for name in self.NAMES:
            delattr(cls, name)
        for name, mark in self._marks.items():
            setattr(cls, name, dataclasses.field(**mark.options))
        cls.__annotations__ = {
            name: dataclasses.InitVar(vars(kind)["kind"]) if type(kind) is InitVar else kind
            for name, kind in cls.__annotations__.items()
        }
        dataclasses.dataclass(init=False, repr=False, eq=False)(cls)


class Record:
    """Something with fields, which are read and changed."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __init__(self, *values: Any, **named: Any) -> None:
        from dataclasses import MISSING, InitVar, fields

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
        from dataclasses import fields

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
    from dataclasses import InitVar, fields

    stored = {each.name for each in fields(cls) if each.init}
    return {
        name: each
        for name, each in cls.__dataclass_fields__.items()
        if name in stored or isinstance(each.type, InitVar)
    }


def _default(field: Any) -> Any:
    from dataclasses import MISSING

    return field.default if field.default_factory is MISSING else field.default_factory()
