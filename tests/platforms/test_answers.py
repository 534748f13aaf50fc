"""Answers are remembered for as long as the variables that they depend on have the same values."""

import os
import threading
from collections.abc import Callable, Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mainboard.platforms.answers import Table, watch
from mainboard.platforms.machine import Machine

NAMES = [b"MAINBOARD_TEST_A", b"MAINBOARD_TEST_B", b"MAINBOARD_TEST_C", b"MAINBOARD_TEST_D"]


class Watched:
    """What is known for the values of some variables."""

    def __init__(self, raw: Mapping[bytes, object], names: Sequence[bytes]) -> None:
        self._now: Callable[[], list[None]]
        watch(raw, names, list[None], lambda now: setattr(self, "_now", now))

    def __call__(self) -> list[None]:
        """The object for the values of this moment; each is equal to the others."""
        return self._now()


def test_answer_is_found_once() -> None:
    """What was found is kept; what could not be found is looked for again."""
    asked = []

    def find(key: int) -> int:
        asked.append(key)
        return 10 // key

    table = Table(find)
    assert (5, 5, 2) == (table[2], table[2], table[5])
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            table[0]
    assert [2, 5, 0, 0] == asked


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@given(
    changes=st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from([None, "", "0", "1"])), max_size=12
    )
)
def test_same_state_same_answers(count: int, changes: list[tuple[int, str | None]]) -> None:
    """Each state of the environment has one object of answers, whichever way it was reached."""
    environ: dict[bytes, str] = {}
    now = Watched(environ, NAMES[:count])
    met: dict[tuple[str | None, ...], list[None]] = {(None,) * count: now()}
    for place, value in changes:
        name = bytes(bytearray(NAMES[place]))  # equal to the variable's name, and another object
        environ.pop(name, None)
        if value is not None:
            environ[name] = value
        state = tuple(environ.get(each) for each in NAMES[:count])
        assert met.setdefault(state, now()) is now()
    assert len({id(answers) for answers in met.values()}) == len(met)


@pytest.mark.parametrize("environ", [None, {}])
def test_environment_of_a_machine(
    environ: Mapping[str, str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process's own environment is read as it is now, and so is one that a machine was given."""
    machine = Machine("/nowhere", environ)
    variables: dict[str, str] = machine.environ  # type: ignore[assignment]
    now = Watched(machine.raw_environ, NAMES[:1])
    name = os.fsdecode(NAMES[0])
    first = now()
    monkeypatch.setitem(variables, name, "1")
    second = now()
    monkeypatch.setitem(variables, name, "2")
    assert now() is not second is not first
    monkeypatch.setitem(variables, name, "1")
    assert now() is second and NAMES[0] in machine.raw_environ
    monkeypatch.delitem(variables, name)
    assert now() is first and NAMES[0] not in machine.raw_environ


def test_threads_get_one_object() -> None:
    """Threads that meet a new state at the same time get the same answers."""
    environ = {NAMES[0]: "x"}
    now, together = Watched(environ, NAMES[:3]), threading.Barrier(8)
    got: list[list[None]] = []

    def ask() -> None:
        together.wait()
        got.append(now())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {id(now())} == {id(answers) for answers in got}
