"""The light named tuple does what `typing.NamedTuple` does."""

import copy
import pickle
import typing

import pytest

from mainboard import light_typing


class Light(light_typing.NamedTuple):
    """A point, light."""

    x: int
    y: int = 2


class Standard(typing.NamedTuple):
    """A point, as the standard library makes it."""

    x: int
    y: int = 2


@pytest.fixture(params=[Light, Standard])
def point(request: pytest.FixtureRequest) -> typing.Any:
    """Either class."""
    return request.param


def test_fields_and_defaults(point: typing.Any) -> None:
    """Fields by position, by name and by default; a tuple, with names."""
    made = point(1)
    assert (1, 2) == made == point(y=2, x=1) == point(*made)
    assert (1, 2) == (made.x, made.y)
    assert {"x": 1, "y": 2} == made._asdict()
    assert (1, 5) == made._replace(y=5)
    assert ("x", "y") == point._fields == point.__match_args__
    assert {"y": 2} == point._field_defaults
    assert f"{point.__name__}(x=1, y=2)" == repr(made)


def test_copies(point: typing.Any) -> None:
    """Copies and pickles are equal and of the same class."""
    made = point(1, 3)
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert made == other and type(other) is point


def test_fields_cannot_be_changed(point: typing.Any) -> None:
    """A field cannot be assigned, and none can be added."""
    made = point(1)
    for name in ("x", "z"):
        with pytest.raises(AttributeError):
            setattr(made, name, 7)


@pytest.mark.parametrize(
    ("values", "named"), [((), {}), ((1, 2, 3), {}), ((1,), {"x": 1}), ((1,), {"z": 1})]
)
def test_wrong_fields(point: typing.Any, values: tuple[int, ...], named: dict[str, int]) -> None:
    """A field that is missing, unknown or given twice is a TypeError."""
    with pytest.raises(TypeError):
        point(*values, **named)
