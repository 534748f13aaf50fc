"""`TYPE_CHECKING` and `NamedTuple` without `typing`.

Importing `typing`, and the code that its `NamedTuple` compiles for each class, is half of the time
that choosing a platform may take. To type checkers both names are those of `typing`.
"""

from __future__ import annotations

from operator import itemgetter

__all__ = ["TYPE_CHECKING", "NamedTuple"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NamedTuple
else:

    class NamedTuple(tuple):
        """A tuple whose fields are the annotations of its class, with their defaults."""

        __slots__ = ()

        def __init_subclass__(cls):
            """Turn each annotation into a field."""
            cls._fields = cls.__match_args__ = tuple(cls.__annotations__)
            cls._field_defaults = {
                name: cls.__dict__[name] for name in cls._fields if name in cls.__dict__
            }
            for position, name in enumerate(cls._fields):
                setattr(cls, name, property(itemgetter(position)))

        def __new__(cls, *values, **named):
            """The fields by position or by name.

            Raises:
                TypeError: a field is missing, unknown, or given twice.
            """
            if named or len(values) != len(cls._fields):
                values = _complete(cls, values, named)
            return tuple.__new__(cls, values)

        def __repr__(self):
            fields = ", ".join(f"{name}={value!r}" for name, value in self._asdict().items())
            return f"{type(self).__name__}({fields})"

        def __setattr__(self, name, value):
            raise AttributeError(f"{type(self).__name__} cannot be changed; use _replace({name}=…)")

        def __getnewargs__(self):
            return tuple(self)

        def _asdict(self):
            return dict(zip(self._fields, self, strict=True))

        def _replace(self, **named):
            return type(self)(**{**self._asdict(), **named})

    def _complete(cls, values, named):
        """Every field's value, in order."""
        if len(values) > len(cls._fields):
            raise TypeError(
                f"{cls.__name__} has {len(cls._fields)} fields, and {len(values)} values were given"
            )
        given = dict(zip(cls._fields, values, strict=False))
        for name in named:
            if name in given or name not in cls._fields:
                problem = "given twice" if name in given else "not a field"
                raise TypeError(f"{name!r} is {problem}; {cls.__name__} has {cls._fields}")
        given = {**cls._field_defaults, **given, **named}
        missing = [name for name in cls._fields if name not in given]
        if missing:
            raise TypeError(f"{cls.__name__} lacks {', '.join(missing)}")
        return [given[name] for name in cls._fields]
