"""Loading: isolation, once per process, order, threads, forks, filters."""

import sys

import pytest

from mainboard import plugins

COUNT = """
import json, logging
from mainboard.plugins import load_general_plugins, report
load_general_plugins()
load_general_plugins()
import counter_one, counter_two
rows = {f"{row.distribution}/{row.name}": row.to_dict() for row in report().plugins}
print(json.dumps([len(counter_one.calls), len(counter_two.calls), rows]))
"""


def test_each_function_is_called_once_and_failures_stay_apart(run):
    """Two distributions with one name both run; a raising and a re-entering one harm nobody."""
    outcome = run(COUNT, "counter-one", "counter-two", "lazy-entry")
    one, two, rows = outcome.json
    assert (one, two) == (1, 1)
    assert {name: row["state"] for name, row in rows.items()} == {
        "counter-one/count": "called",
        "counter-two/again": "failed",
        "counter-two/count": "called",
        "counter-two/raising": "failed",
        "lazy-entry/lazy": "called",
    }
    assert rows["counter-one/count"]["also_from"] == ["counter-two"]
    assert rows["counter-two/count"]["also_from"] == ["counter-one"]
    raising = rows["counter-two/raising"]
    assert raising["error"] == "ValueError: no such model"
    assert raising["code"] == "plugin_raised"
    assert "in fail" in raising["traceback"]
    assert "pip uninstall counter-two" in raising["remedy"]
    assert raising["milliseconds"] > 0
    assert outcome.stderr.count("ValueError: no such model") == 2  # its line, and its traceback
    assert (
        "load_general_plugins() was called by plugin 'again'" in rows["counter-two/again"]["error"]
    )


def test_report_finds_plugins_without_loading_them(run):
    """Before anything is loaded every plugin is found, with where it comes from."""
    program = """
import json, sys
from mainboard.plugins import report
rows = report().to_dict()
assert "counter_one" not in sys.modules
print(json.dumps(rows))
"""
    [row] = run(program, "counter-one").json["plugins"]
    assert row.pop("milliseconds") == 0
    assert {name: value for name, value in row.items() if value} == {
        "group": "vllm.general_plugins",
        "name": "count",
        "distribution": "counter-one",
        "version": "1.0",
        "value": "counter_one:register",
        "state": "found",
    }


def test_two_distributions_with_one_name_are_both_in_the_dictionary(run):
    """The second is under `distribution/name`; a call is made once and its result kept."""
    program = """
import json
from mainboard.plugins import load_plugins_by_group
plugins = load_plugins_by_group("vllm.platform_plugins")
first = plugins["acme"](), plugins["acme"]()
import acme
print(json.dumps([sorted(plugins), first[0], first[1], len(acme.calls)]))
"""
    path = "acme.platform.AcmePlatform"
    answer = run(program, "acme", "acme-fork").json
    assert answer == [["acme", "acme-fork/acme"], path, path, 1]


def test_a_failed_plugin_is_left_out_of_the_dictionary(run):
    """What cannot be imported is not there; the rest is."""
    program = """
import json
from mainboard.plugins import load_plugins_by_group
print(json.dumps(sorted(load_plugins_by_group("vllm.platform_plugins"))))
"""
    assert run(program, "acme", "import-error", "import-exit").json == ["acme"]


def test_a_failing_function_raises_when_its_host_calls_it(run):
    """Called through the dictionary, a failure is an error with its cause, every time."""
    program = """
import json
from mainboard.plugins import load_plugins_by_group
function = load_plugins_by_group("vllm.platform_plugins")["broken"]
texts = []
for _ in range(2):
    try:
        function()
    except RuntimeError as error:
        texts.append([str(error), repr(error.__cause__)])
print(json.dumps(texts))
"""
    first, second = run(program, "raises").json
    assert first == second
    assert "plugin 'broken' of raises 0.1" in first[0]
    assert "driver 5.2 is too old" in first[0]
    assert first[1] == "OSError('driver 5.2 is too old')"


@pytest.mark.parametrize(
    ("setting", "called"),
    [
        (None, ["counter-one/count", "counter-two/count"]),
        ("", []),
        (" , ", []),
        ("count", ["counter-one/count", "counter-two/count"]),
        (" other , count ", ["counter-one/count", "counter-two/count"]),
        ("counter-two/count", ["counter-two/count"]),
        ("Counter_Two/count", ["counter-two/count"]),
        ("nothing-has-this-name", []),
    ],
)
def test_vllm_plugins_says_what_may_run(run, setting, called):
    """Unset is all, empty is none, a list is only those, blanks and spelling do not matter."""
    program = """
import json
from mainboard.plugins import load_general_plugins, report
load_general_plugins()
rows = report()
print(json.dumps([[f"{row.distribution}/{row.name}" for row in rows.plugins
                   if row.state == "called"], rows.unmatched]))
"""
    environment = {} if setting is None else {"VLLM_PLUGINS": setting}
    outcome = run(program, "counter-one", "counter-two", **environment)
    done, unmatched = outcome.json
    assert done == called
    expected = [name.strip() for name in (setting or "").split(",") if "o" in name]
    assert unmatched == [name for name in expected if not name.lower().endswith("count")]
    for name in unmatched:
        assert f"VLLM_PLUGINS lists {name!r}, which no installed distribution" in outcome.stderr
        assert "counter-one/count" in outcome.stderr


def test_threads_load_general_plugins_once(run):
    """Eight threads ask at the same time; every function runs once and all wait for it."""
    program = """
import json, threading
from mainboard.plugins import load_general_plugins
barrier, done = threading.Barrier(8), []
def load():
    barrier.wait()
    load_general_plugins()
    import counter_one
    done.append(len(counter_one.calls))
threads = [threading.Thread(target=load) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(json.dumps(done))
"""
    assert run(program, "counter-one").json == [1] * 8


@pytest.mark.multiprocess
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
def test_a_forked_child_loads_its_own(run):
    """A child calls each function again, though its parent had, even while a lock was held."""
    program = """
import json, os, threading
from mainboard.plugins import load_general_plugins, turn
load_general_plugins()
import counter_one
held, leave = threading.Event(), threading.Event()
def hold():
    with turn.turn():
        held.set()
        leave.wait()
thread = threading.Thread(target=hold)
thread.start()
held.wait()
reader, writer = os.pipe()
import warnings
warnings.simplefilter("ignore")
child = os.fork()
if child == 0:
    load_general_plugins()
    load_general_plugins()
    os.write(writer, json.dumps([pid == os.getpid() for pid in counter_one.calls]).encode())
    os._exit(0)
os.waitpid(child, 0)
leave.set()
thread.join()
print(os.read(reader, 1000).decode())
"""
    assert run(program, "counter-one").json == [False, True]


def test_keyboard_interrupt_passes_and_the_plugin_can_be_tried_again(run, tmp_path):
    """The user's interruption is not a plugin's failure."""
    (tmp_path / "hurried.py").write_text(
        "tries = []\ndef register():\n"
        "    tries.append(1)\n    if len(tries) == 1: raise KeyboardInterrupt\n"
    )
    info = tmp_path / "hurried-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: hurried\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[vllm.general_plugins]\nhurried = hurried:register\n")
    program = """
import json
from mainboard.plugins import load_general_plugins, report
try:
    load_general_plugins()
except KeyboardInterrupt:
    before = str(report().plugins[0].state)
load_general_plugins()
print(json.dumps([before, str(report().plugins[0].state)]))
"""
    outcome = run(program, path=(tmp_path,))
    assert outcome.json == ["loaded", "called"]
    assert outcome.stderr == ""


def test_a_plugin_of_another_group_comes_as_it_is(run, tmp_path):
    """Groups that hold classes give the class, and groups outside the protocol are found too."""
    info = tmp_path / "other-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: other\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[vllm.stat_logger_plugins]\nlog = collections:OrderedDict\n"
        "[some.other_group]\nnumber = fractions:Fraction\n"
    )
    program = """
import json, collections, fractions
from mainboard.plugins import load_plugins_by_group
loggers = load_plugins_by_group("vllm.stat_logger_plugins")
others = load_plugins_by_group("some.other_group")
print(json.dumps([loggers["log"] is collections.OrderedDict,
                  others["number"] is fractions.Fraction,
                  load_plugins_by_group("vllm.nothing")]))
"""
    assert run(program, path=(tmp_path,)).json == [True, True, {}]


def test_importing_leaves_heavy_modules_out(run):
    """Neither importing nor resolving imports torch or the standard library's metadata reader."""
    program = """
import json, sys
import mainboard, mainboard.plugins, mainboard.platforms
early = [name for name in ("torch", "importlib.metadata", "importlib_metadata", "asyncio")
         if name in sys.modules]
mainboard.platforms.current_platform
print(json.dumps([early, "torch" in sys.modules, "importlib.metadata" in sys.modules]))
"""
    assert run(program).json == [[], False, False]


def test_every_public_name_is_there():
    """Each name of `__all__` can be read and is listed; a stranger is an AttributeError."""
    for name in plugins.__all__:
        assert getattr(plugins, name) is not None
    assert set(plugins.__all__) <= set(dir(plugins))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = plugins.no_such_name
