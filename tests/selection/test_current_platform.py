"""`current_platform` in one process: when it is resolved, replaced, scoped, and what it costs."""

import json
import subprocess
import sys
import threading

import pytest

from mainboard import platforms
from mainboard.errors import PlatformContractError, PlatformError, PlatformUnavailableError
from mainboard.platforms import Platform, PlatformEnum, resolve, use_platform


class Board(Platform):
    """A platform of these tests."""

    _enum = PlatformEnum.OOT
    device_name = "board"
    device_type = "cpu"


@pytest.fixture(autouse=True)
def unresolved(monkeypatch):
    """Each test starts, and ends, with nothing resolved and nothing asked for."""
    for name in ("MAINBOARD_PLATFORM", "VLLM_TARGET_DEVICE", "VLLM_PLUGINS"):
        monkeypatch.delenv(name, raising=False)
    resolve.forget()
    yield
    resolve.forget()


@pytest.fixture
def plugins(monkeypatch):
    """Let these functions stand for the installed platform plugins."""

    def plugins(**functions):
        monkeypatch.setattr(platforms, "load_plugins_by_group", lambda group: functions)

    plugins()
    return plugins


def in_fresh_interpreter(program):
    """The JSON that a program prints."""
    command = [sys.executable, "-W", "error", "-c", program]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def test_importing_resolves_nothing():
    """The attribute appears with its first use, and is a plain one from then on."""
    program = """
import json, mainboard.platforms as p
before = "current_platform" in vars(p)
first = p.current_platform
print(json.dumps([before, vars(p)["current_platform"] is first is p.current_platform]))
"""
    assert in_fresh_interpreter(program) == [False, True]


def test_every_public_name_is_there():
    """Each name of `__all__` can be read, is listed, and a stranger is an AttributeError."""
    for name in platforms.__all__:
        assert getattr(platforms, name) is not None
    assert set(platforms.__all__) <= set(dir(platforms))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = platforms.no_such_name


def test_the_cpu_is_always_there(monkeypatch, plugins):
    """Asked for by name it is chosen on every machine, and no other built-in is probed."""
    monkeypatch.setenv("MAINBOARD_PLATFORM", "cpu")
    assert platforms.current_platform.device_type == "cpu"
    states = {each.name: str(each.state) for each in platforms.selection().verdicts}
    assert states == {"cuda": "not probed", "rocm": "not probed", "cpu": "activated"}


def test_vllm_target_device_means_the_cpu(monkeypatch, plugins):
    """Without anything being probed, an active plugin included."""
    called = []
    plugins(board=lambda: called.append(1))
    monkeypatch.setenv("VLLM_TARGET_DEVICE", "cpu")
    assert platforms.selection().chosen.name == "cpu"
    assert called == []


def test_a_class_itself_is_an_answer(plugins):
    """A plugin may return its class instead of the path."""
    plugins(board=lambda: Board)
    assert type(platforms.current_platform) is Board
    assert platforms.resolve_current_platform_cls_qualname().endswith("Board")
    assert platforms.selection().chosen.value.endswith(".Board")


@pytest.mark.parametrize("asks", ["current_platform", "selection", "survey"])
def test_asking_while_resolving_is_an_error_not_a_deadlock(plugins, asks):
    """Every way to ask is refused, and the error names the plugin."""

    def register():
        found = getattr(platforms, asks)
        return found() if callable(found) else found

    plugins(careless=register)
    decision = platforms.selection()
    assert decision.chosen.built_in
    [failed] = [each for each in decision.verdicts if each.name == "careless"]
    assert "was asked for by plugin 'careless'" in failed.reason
    assert "while platforms are being resolved" in failed.traceback


def test_threads_wait_for_the_one_that_resolves(plugins):
    """Everybody gets the one object, and the plugin was called once."""
    calls, seen, start = [], [], threading.Barrier(32)

    def register():
        calls.append(threading.get_ident())
        return Board

    def read():
        start.wait()
        seen.append(platforms.current_platform)

    plugins(board=register)
    threads = [threading.Thread(target=read) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 32
    assert len({id(each) for each in seen}) == 1
    assert len(calls) == 1


def test_a_failed_resolution_can_be_repaired(monkeypatch, plugins):
    """The error is raised as often as it is asked for, and goes away with its cause."""
    monkeypatch.setenv("MAINBOARD_PLATFORM", "board")
    for _ in range(2):
        with pytest.raises(PlatformUnavailableError, match="no platform has that name"):
            _ = platforms.current_platform
    assert platforms.selection().chosen is None
    plugins(board=lambda: Board)
    assert type(platforms.current_platform) is Board


def test_the_cause_comes_out_of_a_from_import():
    """Not "cannot import name": the platform error itself."""
    program = """
import json, os
os.environ["MAINBOARD_PLATFORM"] = "gpu9"
try:
    from mainboard.platforms import current_platform
except Exception as error:
    print(json.dumps([type(error).__name__, str(error).startswith("MAINBOARD_PLATFORM=gpu9")]))
"""
    assert in_fresh_interpreter(program) == ["PlatformUnavailableError", True]


def test_a_scope_restores_what_was_there(plugins):
    """By name or object, nested, after an exception, and when nothing was resolved before."""
    with use_platform("cpu") as inner:
        assert platforms.current_platform is inner
        assert platforms.selection().request.setting == "use_platform('cpu')"
        mine = Board()
        with use_platform(mine):
            assert platforms.current_platform is mine
            assert platforms.selection().rule == "given"
        assert platforms.current_platform is inner
    assert "current_platform" not in vars(platforms)
    plugins(board=lambda: Board)
    outer = platforms.current_platform
    with pytest.raises(KeyError), use_platform("cpu"):
        raise KeyError
    assert platforms.current_platform is outer


def test_a_scope_for_an_unusable_platform_changes_nothing(plugins):
    """The error says what is wrong, and the platform stays."""
    plugins(odd=lambda: 42)
    before = platforms.current_platform
    with pytest.raises(PlatformContractError, match="returned 42"), use_platform("odd"):
        pytest.fail("the block must not run")
    assert platforms.current_platform is before


def test_a_survey_probes_every_candidate_and_chooses_nothing(plugins):
    """For people who want to know about the ones that the choice did not need."""
    plugins(board=lambda: Board)
    verdicts = {each.name: str(each.state) for each in platforms.survey()}
    assert verdicts["board"] == verdicts["cpu"] == "activated"
    assert "not probed" not in verdicts.values()
    assert "current_platform" not in vars(platforms)


def test_explain_prints_the_decision(plugins, capsys):
    """The choice, why, and each candidate with its reason and code."""
    plugins(board=lambda: Board, none=lambda: None)
    platforms.explain()
    text = capsys.readouterr().out
    assert text.startswith("Platform: (unknown)/board (")
    assert "Why: (unknown)/board is the one active out-of-tree platform" in text
    assert "plugin_declined" in text
    assert "The choice did not depend on it." in text


@pytest.mark.parametrize(
    "raised", [OSError("a"), SystemExit(2), MemoryError(), GeneratorExit(), PlatformError("b")]
)
def test_whatever_a_plugin_raises_is_its_own_failure(plugins, raised, caplog):
    """The built-ins go on; KeyboardInterrupt, the user's own, passes."""

    def register():
        raise raised

    plugins(odd=register)
    assert platforms.selection().chosen.built_in
    assert any("plugin 'odd'" in record.getMessage() for record in caplog.records)

    def interrupted():
        raise KeyboardInterrupt

    plugins(odd=interrupted)
    resolve.forget()
    with pytest.raises(KeyboardInterrupt):
        _ = platforms.current_platform
    plugins(odd=lambda: Board)
    assert type(platforms.current_platform) is Board


@pytest.mark.parametrize("path", ["{0}.Board", "{0}:Board", "{0}.Outer.Inner"])
def test_a_path_names_a_class_with_a_dot_or_a_colon(plugins, path, monkeypatch):
    """Both spellings; a nested class needs the colon, and without it the error says what is not."""
    monkeypatch.setitem(sys.modules, "board_module", sys.modules[__name__])
    plugins(board=lambda: path.format("board_module"))
    decision = platforms.selection()
    if path.endswith("Inner"):
        [failed] = [each for each in decision.verdicts if each.name == "board"]
        assert failed.code in ("module_missing", "class_import_failed")
        assert "board_module.Outer" in failed.reason
    else:
        assert type(platforms.current_platform) is Board


def test_resolve_obj_by_qualname():
    """As vLLM's function of that name, but a missing name is an ImportError that says which."""
    assert platforms.resolve_obj_by_qualname("threading.Thread") is threading.Thread
    for path, words in [("threading.Tread", "has no 'Tread'"), ("alone", "names no module")]:
        with pytest.raises(ImportError, match=words):
            platforms.resolve_obj_by_qualname(path)


def test_built_ins_are_functions_of_the_plugin_protocol():
    """Each answers with its class's path or None, and the CPU always with its path."""
    functions = platforms.builtin_platform_plugins
    assert list(functions) == ["cuda", "rocm", "cpu"]
    assert functions["cpu"]() == "mainboard.platforms.cpu.CpuPlatform"
    for name in ("cuda", "rocm"):
        assert functions[name]() in (None, f"mainboard.platforms.{name}.{name.title()}Platform")
