"""Configurations become dataclasses when somebody asks for their fields, and not before."""

import dataclasses
import subprocess
import sys
import threading
import typing

import pytest

from mainboard.plugins.vllm_names.records import Config, InitVar, configuration, field


@pytest.fixture
def made() -> type:
    """A configuration that nobody has asked for anything yet."""

    @configuration
    class Made(Config):
        """For tests."""

        size: int
        name: str = "a"
        kept: list[int] = field(default_factory=list)
        derived: int = field(default=3, init=False)
        once: InitVar[bool] = False

        LIMIT: typing.ClassVar[int] = 7

        def __post_init__(self, once: bool = False) -> None:
            self.derived += once

    return Made


@pytest.mark.multiprocess
def test_importing_them_imports_no_dataclasses() -> None:
    """What is imported with a `vllm` name and never used costs its class bodies only."""
    code = (
        "import sys; from mainboard.plugins import alias; alias.install(); import vllm.config as c;"
        " c.VllmConfig; c.ModelConfig; print('dataclasses' in sys.modules);"
        " c.CacheConfig(); print('dataclasses' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True"]


def test_class_attributes_are_those_of_a_dataclass(made: type) -> None:
    """Before and after: a default is there, and what a factory makes is not."""
    for _ in range(2):
        assert (made.name, made.derived, made.LIMIT) == ("a", 3, 7)
        assert not hasattr(made, "kept") and not hasattr(made, "size")
        assert dataclasses.is_dataclass(made)


def test_fields_are_those_of_a_dataclass(made: type) -> None:
    """Names, order, defaults and kinds; values for the constructor alone are no fields."""
    names = [each.name for each in dataclasses.fields(made)]
    assert names == ["size", "name", "kept", "derived"]
    assert made.__match_args__ == ("size", "name", "kept", "once")
    assert isinstance(made.__dataclass_fields__["once"].type, dataclasses.InitVar)
    assert typing.get_type_hints(made)["size"] is int
    assert made.__dataclass_fields__["kept"].default_factory is list


def test_patterns_match(made: type) -> None:
    """By position, though nobody has asked for a field."""
    match made(5, once=True):
        case made(size, name):
            assert (size, name) == (5, "a")
        case _:
            pytest.fail("it does not match")


@pytest.mark.parametrize("decorate", [dataclasses.dataclass, configuration])
def test_derived_classes_have_the_fields_of_both(made: type, decorate: typing.Any) -> None:
    """A package's own configuration, by the standard decorator or by this one."""

    @decorate
    class Derived(made):  # type: ignore[misc]
        """For tests."""

        more: int = 1

    assert [each.name for each in dataclasses.fields(Derived)][-1] == "more"
    assert [each.name for each in dataclasses.fields(made)][-1] == "derived"
    assert dataclasses.replace(Derived(5), more=2).more == 2


def test_a_class_that_adds_nothing_has_its_bases_fields(made: type) -> None:
    """A plain subclass is a dataclass of the same fields."""
    plain = type("Plain", (made,), {})
    assert dataclasses.fields(plain) == dataclasses.fields(made)
    assert plain(5) != made(5)


def test_threads_that_ask_first_get_the_same(made: type) -> None:
    """It is made once, whoever asks."""
    barrier, found = threading.Barrier(8), []

    def ask() -> None:
        barrier.wait()
        found.append(made.__dataclass_fields__)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and all(each is found[0] for each in found)
