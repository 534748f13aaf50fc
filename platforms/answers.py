"""Answers that are remembered for as long as the environment that they depend on is the same.

Programs ask a platform the same few questions in their inner loops, and may change a control
variable such as `CUDA_VISIBLE_DEVICES` at any time before the devices start. So every question
first looks at the variables, in the raw form in which that costs least, and then up what is known
for their values. What takes the time is Python's own calls and comparisons: so there is one call
between a question and its answer, nothing is built to be a key, and a variable is asked for by the
very object under which the environment has it.
"""

from __future__ import annotations

from mainboard.light_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, TypeVar

    _Key = TypeVar("_Key")
    _Answer = TypeVar("_Answer")
    _Answers = TypeVar("_Answers")

__all__ = ["Table", "per_state"]


class Table(dict["_Key", "_Answer"]):
    """Answers by what was asked; one that is not there yet is found, and kept unless that fails."""

    __slots__ = ("_find",)

    def __init__(self, find: Callable[[_Key], _Answer]) -> None:
        super().__init__()
        self._find = find

    def __missing__(self, key: _Key) -> _Answer:
        found = self[key] = self._find(key)
        return found


def per_state(
    raw: Mapping[bytes, object], names: Sequence[bytes], new: Callable[[], _Answers]
) -> Callable[[], _Answers]:
    """A function that returns the answers known for the variables' values of this moment.

    Args:
        raw: the environment.
        names: the variables; one and three of them are read without a loop.
        new: makes the object for a state that was not met before.
    """
    known: dict[object, Any] = {}
    if len(names) == 1:
        return _of_one(raw, names, known, new)
    if len(names) == 3:
        return _of_three(raw, names, known, new)
    return lambda: _found(raw, names, known, new)


def _of_one(
    raw: Mapping[bytes, object],
    names: Sequence[bytes],
    known: dict[object, Any],
    new: Callable[[], _Answers],
) -> Callable[[], _Answers]:
    get, (name,) = raw.get, names

    def now() -> _Answers:
        nonlocal name
        try:
            answers: _Answers = known[get(name)]
        except KeyError:
            (name,) = _own(raw, names)
            return _found(raw, names, known, new)
        return answers

    return now


def _of_three(
    raw: Mapping[bytes, object],
    names: Sequence[bytes],
    known: dict[object, Any],
    new: Callable[[], _Answers],
) -> Callable[[], _Answers]:
    get, (first, second, third), unset = raw.get, names, new()

    def now() -> _Answers:
        nonlocal first, second, third
        if third in raw or second in raw or first in raw:
            try:
                answers: _Answers = known[get(first)][get(second)][get(third)]
            except KeyError:
                first, second, third = _own(raw, names)
                return _found(raw, names, known, new)
            return answers
        return unset

    return now


def _found(
    raw: Mapping[bytes, object],
    names: Sequence[bytes],
    known: dict[object, Any],
    new: Callable[[], _Answers],
) -> _Answers:
    """The answers for this state, in as many dictionaries, each in the other, as there are names."""
    *others, last = map(raw.get, names)
    for value in others:
        known = known.setdefault(value, {})
    if last not in known:
        known.setdefault(last, new())
    answers: _Answers = known[last]
    return answers


def _own(raw: Mapping[bytes, object], names: Sequence[bytes]) -> list[bytes]:
    """The names as the environment's own objects, which it compares without looking into them."""
    own = {key: key for key in list(raw)}
    return [own.get(name, name) for name in names]
