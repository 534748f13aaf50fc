"""Architecture names and the classes that serve them."""

import collections
import logging
import sys

import pytest

import mainboard
from mainboard.errors import PluginLoadError
from mainboard.models import ModelRegistry, _ModelRegistry


@pytest.fixture
def registry():
    """A registry of its own: the real one is shared by the process."""
    return _ModelRegistry()


def test_the_package_offers_the_one_registry():
    """`from mainboard import ModelRegistry` is the registry that plugins register with."""
    assert mainboard.ModelRegistry is ModelRegistry


def test_a_class_and_a_reference_are_resolved(registry):
    """Both forms give the class; the order of registration is kept."""
    registry.register_model("B", collections.OrderedDict)
    registry.register_model("A", "collections:Counter")
    assert list(registry.get_supported_archs()) == ["B", "A"]
    assert registry.resolve("B") is collections.OrderedDict
    assert registry.resolve("A") is collections.Counter
    assert registry.models == {"B": collections.OrderedDict, "A": "collections:Counter"}


def test_a_reference_is_imported_when_it_is_resolved(registry, tmp_path, monkeypatch):
    """Registration imports nothing; nested classes can be named."""
    (tmp_path / "lazily_registered.py").write_text("class A:\n    class B: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry.register_model("A", "lazily_registered:A.B")
    assert "lazily_registered" not in sys.modules
    assert registry.resolve("A").__qualname__ == "A.B"
    del sys.modules["lazily_registered"]


@pytest.mark.parametrize(
    "reference", ["", "module", "module.Class", ":Class", "module:", "a:b:c", "a b:C", "a..b:C"]
)
def test_a_malformed_reference_is_refused_at_registration(registry, reference):
    """The error has the architecture, the reference and the expected form."""
    with pytest.raises(ValueError, match=r"'Arch'.*'package\.module:Class'") as raised:
        registry.register_model("Arch", reference)
    assert repr(reference) in str(raised.value)
    assert list(registry.get_supported_archs()) == []


@pytest.mark.parametrize(("arch", "model"), [(1, "a:B"), ("Arch", 42), ("Arch", print)])
def test_other_types_are_refused(registry, arch, model):
    """A name is a string, a model a class or a string."""
    with pytest.raises(TypeError, match="expected a"):
        registry.register_model(arch, model)


def test_replacing_warns_with_both_and_repeating_does_not(registry, caplog):
    """The last registration counts; the same again, as after a fork, is silent."""
    with caplog.at_level(logging.DEBUG, "mainboard"):
        registry.register_model("Arch", "one:Model")
        registry.register_model("Arch", "one:Model")
        assert caplog.records == []
        registry.register_model("Arch", collections.Counter)
    [record] = caplog.records
    assert record.levelname == "WARNING"
    for words in ("'Arch'", "one:Model", "collections:Counter"):
        assert words in record.getMessage()
    assert registry.resolve("Arch") is collections.Counter


def test_an_unknown_name_is_answered_with_close_matches(registry):
    """A typing mistake finds what was meant; a stranger finds how many there are."""
    registry.register_model("LlamaForCausalLM", "a:B")
    with pytest.raises(ValueError, match="Close matches: LlamaForCausalLM"):
        registry.resolve("LLamaForCasualLM")
    with pytest.raises(ValueError, match=r"'Zzz' is not registered\. 1 names are known"):
        registry.resolve("Zzz")


@pytest.mark.parametrize(
    ("reference", "cause"),
    [
        ("no_such_module_here:Model", "ModuleNotFoundError"),
        ("collections:NoSuch", "AttributeError"),
        ("collections:namedtuple", "not a class"),
    ],
)
def test_a_reference_that_cannot_be_imported_says_why(registry, reference, cause):
    """The error has architecture, reference and cause, and is an ImportError."""
    registry.register_model("Arch", reference)
    with pytest.raises(PluginLoadError, match=cause) as raised:
        registry.resolve("Arch")
    assert "'Arch'" in str(raised.value)
    assert repr(reference) in str(raised.value)
    assert isinstance(raised.value, ImportError)
