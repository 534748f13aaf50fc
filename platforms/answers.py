"""Answers that are remembered for as long as the environment that they depend on is the same.

Programs ask a platform the same few questions in their inner loops, and may change a control
variable such as `CUDA_VISIBLE_DEVICES` at any time before the devices start. So every question
first makes sure that the variables are as they were. What takes the time is Python's own calls: so
there is one between a question and its answer, and inside it only tests that are none. Which tests
those are depends on which variables are set, so the function is another one for each state.
"""

from __future__ import annotations

from mainboard.light_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import TypeVar

    _Key = TypeVar("_Key")
    _Answer = TypeVar("_Answer")
    _Answers = TypeVar("_Answers")

__all__ = ["Table", "watch"]


class Table(dict["_Key", "_Answer"]):
    """Answers by what was asked; one that is not there yet is found, and kept unless that fails."""

    __slots__ = ("_find",)

    def __init__(self, find: Callable[[_Key], _Answer]) -> None:
        super().__init__()
        self._find = find

    def __missing__(self, key: _Key) -> _Answer:
        found = self[key] = self._find(key)
        return found


def watch(
    raw: Mapping[bytes, object],
    names: Sequence[bytes],
    new: Callable[[], _Answers],
    install: Callable[[Callable[[], _Answers]], None],
) -> None:
    """Install a function that returns what is known while the variables are as they are now.

    Once they are not, it installs another one in its place; a state that comes again finds what
    was known.

    Args:
        raw: the environment.
        names: the variables.
        new: makes the object for a state that was not met before.
        install: puts a function where questions find it.
    """
    known: dict[tuple[object, ...], _Answers] = {}

    def changed() -> _Answers:
        values = tuple(map(raw.get, names))
        if values not in known:
            known.setdefault(values, new())
        # By the environment's own objects, which it compares without looking into them.
        own = {key: key for key in list(raw)}
        watched = {own.get(name, name): value for name, value in zip(names, values, strict=True)}
        install(_while_same(raw, watched, known[values], changed))
        return known[values]

    install(changed)


def _while_same(
    raw: Mapping[bytes, object],
    watched: Mapping[bytes, object],
    answers: _Answers,
    changed: Callable[[], _Answers],
) -> Callable[[], _Answers]:
    """A function that returns `answers` while each variable has its value, or none, and else asks.

    A value that is set again, even to the same, is another object: then asking finds the answers.
    """
    unset = [name for name, value in watched.items() if value is None]
    if len(unset) == len(watched):
        return _while_unset(raw, unset, answers, changed)
    set_to = [(name, value) for name, value in watched.items() if value is not None]
    (name, value), *more = set_to

    def one() -> _Answers:
        try:
            return answers if raw[name] is value else changed()
        except KeyError:
            return changed()

    def one_of_three() -> _Answers:
        try:
            same = raw[name] is value and first not in raw and second not in raw
        except KeyError:
            same = False
        return answers if same else changed()

    def any_of_any() -> _Answers:
        same = all(raw.get(name) is value for name, value in watched.items())
        return answers if same else changed()

    if not more and not unset:
        return one
    if not more and len(unset) == 2:
        first, second = unset
        return one_of_three
    return any_of_any


def _while_unset(
    raw: Mapping[bytes, object],
    names: list[bytes],
    answers: _Answers,
    changed: Callable[[], _Answers],
) -> Callable[[], _Answers]:
    """The same where no variable is set."""
    if len(names) == 1:
        (name,) = names
        return lambda: changed() if name in raw else answers
    if len(names) == 3:
        first, second, third = names
        return lambda: changed() if first in raw or second in raw or third in raw else answers
    return lambda: changed() if any(name in raw for name in names) else answers
