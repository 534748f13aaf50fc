"""The stand-in for vLLM: reads, writes, what is not in it, and the modules made for it."""

import ast
import json
import logging
from importlib import import_module
from pathlib import Path
from unittest import mock

import pytest

from mainboard.plugins import alias, alias_table
from mainboard.plugins.alias_table import ALIASES
from mainboard.plugins.vllm_names import envs
from mainboard.plugins.vllm_names import logger as logger_module
from mainboard.plugins.vllm_names.logging_utils import ColoredFormatter, NewLineFormatter

START = "import json, sys, mainboard.plugins; mainboard.plugins.report()\n"


@pytest.mark.parametrize("name", sorted(ALIASES))
def test_every_entry_of_the_table_leads_somewhere(name):
    """Targets and names exist, parents of every module are in the table, and reasons are given."""
    entry = ALIASES[name]
    assert entry.reason
    parent = name.rpartition(".")[0]
    assert not parent or parent in ALIASES
    if entry.target:
        assert import_module(entry.target)
    for place in (*entry.names.values(), *entry.writes.values()):
        module, _, attribute = place.partition(":")
        assert hasattr(import_module(module), attribute)


def test_the_document_names_every_module_that_has_names():
    """Those with nothing in them, and those that vLLM no longer has, are left out."""
    text = (Path(__file__).parents[2] / "docs" / "vllm.md").read_text()
    named = {
        name for name, entry in ALIASES.items() if (entry.target or entry.names) and not entry.moved
    }
    assert {name for name in named if f"`{name}`" not in text} == set()


def test_the_same_objects_under_both_names(run):
    """What is imported by a vllm name is what Mainboard itself uses."""
    program = (
        START
        + """
import importlib, mainboard, mainboard.platforms.interface as ours
import vllm.envs, vllm.platforms.interface
from vllm import ModelRegistry, envs
from vllm.model_executor.models import ModelRegistry as second
from vllm.model_executor.models.registry import ModelRegistry as third
from vllm.platforms import Platform
from vllm.envs import environment_variables
print(json.dumps([
    ModelRegistry is second is third is mainboard.ModelRegistry,
    Platform is vllm.platforms.interface.Platform is ours.Platform,
    envs is vllm.envs is sys.modules["vllm.envs"] is importlib.import_module("vllm.envs"),
    envs.environment_variables is environment_variables,
    vllm.__version__.startswith("0.33.0+"), vllm.__spec__.name, vllm.__file__,
    "ModelRegistry" in dir(vllm), "Platform" in dir(vllm.platforms)]))
"""
    )
    answer = run(program).json
    file = answer.pop(6)
    assert answer == [True, True, True, True, True, "vllm", True, True]
    assert file == alias_table.__file__


def test_writes_and_patches_take_effect(run):
    """Variables, functions and the platform that are put into vllm modules are the ones used."""
    program = (
        START
        + """
from unittest import mock
import vllm.envs, vllm.platforms
from vllm.platforms.interface import Platform

vllm.envs.environment_variables.update({"VLLM_ACME": lambda: "from acme"})
seen = [vllm.envs.VLLM_ACME]

class Mine(Platform):
    device_name = "mine"

def plugins(group):
    return {"patched": lambda: Mine}

with mock.patch("vllm.platforms.load_plugins_by_group", plugins):
    from mainboard.platforms import selection
    seen += [vllm.platforms.current_platform.device_name, selection().chosen.name]

vllm.platforms._current_platform = None
seen.append(vllm.platforms._current_platform)
with mock.patch("vllm.platforms._current_platform", Mine()):
    seen.append(vllm.platforms.current_platform.device_name)
seen.append(vllm.platforms._current_platform)
seen.append(vllm.platforms.current_platform.device_name == "mine")
vllm.platforms._current_platform = mine = Mine()
import mainboard.platforms
seen.append(mainboard.platforms.current_platform is mine)
vllm.platforms.something_else = 5
seen += [mainboard.platforms.something_else, hasattr(vllm.platforms, "something_else")]
del vllm.platforms.something_else
seen.append(hasattr(mainboard.platforms, "something_else"))
print(json.dumps(seen))
"""
    )
    answer = run(program).json
    assert answer[:3] == ["from acme", "mine", "patched"]
    assert answer[3:6] == [None, "mine", None]
    assert answer[6:] == [False, True, 5, True, False]


@pytest.mark.parametrize(
    ("statement", "missing"),
    [
        ("import vllm.v1.core", "vllm.v1.core"),
        ("from vllm.v1.core import sched", "vllm.v1.core"),
        ("from vllm import LLM", "vllm.LLM"),
        ("from vllm.platforms.interface import _Frontend", "vllm.platforms.interface._Frontend"),
        ("from vllm.config import NoSuchConfig", "vllm.config.NoSuchConfig"),
        ("from vllm.model_executor.models import llama", "vllm.model_executor.models.llama"),
    ],
)
def test_a_name_outside_the_table_is_an_import_error_that_says_so(run, statement, missing):
    """The message has the name, that vLLM is absent, the table's file, and what to do."""
    program = (
        START
        + f"""
try:
    {statement}
except ImportError as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""
    )
    kind, text = run(program).json
    assert kind in ("ImportError", "ModuleNotFoundError")
    assert "vLLM is not installed" in text
    assert "Install vLLM, or add the name to" in text
    assert alias_table.__file__ in text
    assert text.startswith(f"{missing} was asked for")


def test_retired_names_are_told_once_with_the_line_that_used_them(run):
    """Outside of a plugin the file and line are named; `dir` does not show them."""
    program = (
        START
        + """
import vllm.utils
for _ in range(2):
    from vllm.utils import cdiv
print(json.dumps([cdiv(7, 2), "cdiv" in dir(vllm.utils), "random_uuid" in dir(vllm.utils)]))
"""
    )
    outcome = run(program)
    assert outcome.json == [4, False, True]
    [line] = outcome.stderr.splitlines()
    assert line == (
        "vllm.utils.cdiv was used by <string>:5. vLLM 0.33.0 no longer has it; Mainboard still"
        " does. Use vllm.utils.math_utils.cdiv."
    )


def test_submodules_are_attributes_and_names_come_with_a_star(run):
    """`import vllm` is enough for `vllm.envs`, and `*` brings what the module offers."""
    program = (
        START
        + """
import importlib, vllm
before = "vllm.config" in sys.modules
from vllm.logger import *
from vllm.config import *
print(json.dumps([before, vllm.envs.VLLM_PORT, vllm.config.cache.__name__,
    callable(init_logger) and CacheConfig is vllm.config.CacheConfig,
    importlib.reload(vllm.envs) is sys.modules["vllm.envs"]]))
"""
    )
    assert run(program).json == [False, None, "vllm.config.cache", True, True]


def test_absent_attributes_are_absent(run):
    """`hasattr` and `getattr` with a default answer as they do for any module."""
    program = (
        START
        + """
import vllm.envs, vllm.platforms
modules = (vllm, vllm.envs, vllm.platforms)
print(json.dumps([[hasattr(module, "no_such"), getattr(module, "no_such", 1)] for module in modules]))
"""
    )
    assert run(program).json == [[False, 1]] * 3


def test_the_stand_in_can_be_switched_off(run):
    """`MAINBOARD_VLLM_ALIAS=0`: vllm is as absent as it is without Mainboard."""
    program = START + "import importlib.util; print(json.dumps(importlib.util.find_spec('vllm')))"
    assert run(program, MAINBOARD_VLLM_ALIAS="0").json is None


def test_the_finder_is_the_last_and_only_once(monkeypatch):
    """Installing again changes nothing; other finders come first."""
    path = [object()]
    monkeypatch.setattr("sys.meta_path", path)
    monkeypatch.delenv("MAINBOARD_VLLM_ALIAS", raising=False)
    alias.install()
    alias.install()
    assert len(path) == 2
    assert type(path[-1]).__name__ == "_Finder"
    assert path[-1].find_spec("numpy") is None


def test_logging_configuration_is_a_dictionary_that_plugins_can_edit(run):
    """It has the keys that plugins copy, names an importable formatter, and spares stdout."""
    program = (
        START
        + """
import logging, logging.config
from vllm.logger import DEFAULT_LOGGING_CONFIG, _DATE_FORMAT, _VllmLogger, init_logger, logger
handlers = [type(handler).__name__ for handler in logging.getLogger("vllm").handlers]
DEFAULT_LOGGING_CONFIG["formatters"]["vllm"]["class"] = "vllm.logging_utils.ColoredFormatter"
DEFAULT_LOGGING_CONFIG["loggers"]["acme"] = dict(DEFAULT_LOGGING_CONFIG["loggers"]["vllm"])
logging.config.dictConfig(DEFAULT_LOGGING_CONFIG)
init_logger("acme.part").info("configured")
print(json.dumps([handlers, type(DEFAULT_LOGGING_CONFIG).__name__]))
"""
    )
    outcome = run(program)
    assert outcome.json == [["StreamHandler"], "dict"]
    assert "configured" in outcome.stderr
    assert len(outcome.stdout.splitlines()) == 1
    for part in ("formatters", "handlers", "loggers"):
        assert "vllm" in logger_module.DEFAULT_LOGGING_CONFIG[part]


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_once_is_once(caplog, level):
    """The same text is logged once, from the caller's line; another text again."""
    target = logger_module.init_logger(f"mainboard.tests.once.{level}")
    log = getattr(target, f"{level}_once")
    with caplog.at_level(logging.DEBUG):
        for value in (1, 1, 2):
            log("value %d", value, scope="global")
    assert [record.getMessage() for record in caplog.records] == ["value 1", "value 2"]
    assert {record.funcName for record in caplog.records} == {"test_once_is_once"}
    assert {record.levelname for record in caplog.records} == {level.upper()}


def test_once_is_ours_where_every_logger_has_one(caplog, monkeypatch):
    """Methods of the same names on `logging.Logger`, as Transformers adds them, do not interfere."""
    monkeypatch.setattr(logging.Logger, "info_once", logging.Logger.info, raising=False)
    log = logger_module.init_logger("mainboard.tests.once.patched")
    with caplog.at_level(logging.DEBUG):
        log.info_once("value", scope="local")
        log.info_once("value", scope="local")
    assert [record.getMessage() for record in caplog.records] == ["value"]


def test_formatters_repeat_the_prefix_and_leave_the_record_alone():
    """Every line of a message has its prefix; colours are for this formatter's text only."""
    record = logging.makeLogRecord({"msg": "a\nb", "levelname": "INFO"})
    assert NewLineFormatter("%(levelname)s %(message)s").format(record) == "INFO a\nINFO b"
    colored = ColoredFormatter("%(levelname)s %(asctime)s %(message)s").format(record)
    assert colored.startswith("\033[32mINFO\033[0m \033[90m")
    assert record.levelname == "INFO"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("VLLM_PORT", None, None),
        ("VLLM_PORT", "8000", 8000),
        ("VLLM_USE_MODELSCOPE", "True", True),
        ("VLLM_USE_MODELSCOPE", "0", False),
        ("VLLM_WORKER_MULTIPROC_METHOD", None, "fork"),
        ("VLLM_PLUGINS", None, None),
        ("VLLM_PLUGINS", "a, b", ["a", "b"]),
        ("CUDA_VISIBLE_DEVICES", "", ""),
    ],
)
def test_variables_are_read_when_they_are_asked_for(monkeypatch, name, text, value):
    """Each has its type and default, and follows the environment."""
    if text is None:
        monkeypatch.delenv(name, raising=False)
    else:
        monkeypatch.setenv(name, text)
    assert getattr(envs, name) == value
    assert envs.is_set(name) is (text is not None)
    assert name in dir(envs)


def test_folders_follow_xdg(monkeypatch, tmp_path):
    """The cache folder is vLLM's own variable, else below XDG's, else below the home folder."""
    for name in ("VLLM_CACHE_ROOT", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert envs.VLLM_CACHE_ROOT == str(tmp_path / ".cache" / "vllm")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert envs.VLLM_CACHE_ROOT == str(tmp_path / "x" / "vllm")
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "own"))
    assert envs.VLLM_CACHE_ROOT == str(tmp_path / "own")


def test_unknown_variables_are_errors_and_are_reported(monkeypatch, capsys):
    """An attribute that is no variable is an AttributeError; a stray variable is named."""
    with pytest.raises(AttributeError, match="VLLM_NO_SUCH"):
        _ = envs.VLLM_NO_SUCH
    with pytest.raises(AttributeError, match="VLLM_NO_SUCH"):
        envs.is_set("VLLM_NO_SUCH")
    for name in ("VLLM_SERVICE_HOST", "VLLM_PORT_8000_TCP", "VLLM_ACME"):
        monkeypatch.setenv(name, "1")
    envs.validate_environ()
    assert capsys.readouterr().err.splitlines() == [
        "VLLM_ACME is set, but no vLLM variable has that name"
    ]
    with mock.patch.dict(envs.environment_variables, {"VLLM_ACME": lambda: 1}):
        envs.validate_environ(hard_fail=True)
    with pytest.raises(ValueError, match="VLLM_ACME"):
        envs.validate_environ(hard_fail=True)


def test_the_table_is_plain_data():
    """Only imports, one class and assignments: it can be read, and edited, without running it."""
    with open(alias_table.__file__, encoding="utf-8") as source:
        tree = ast.parse(source.read())
    kinds = {type(node).__name__ for node in tree.body}
    assert kinds <= {"Expr", "ImportFrom", "Assign", "AnnAssign", "ClassDef"}
    assert json.dumps({name: entry.reason for name, entry in ALIASES.items()})
