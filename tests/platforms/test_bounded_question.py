"""A native call is given a bound, in a process or a thread, and its end is told."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mainboard.platforms import asking_process, bounded

# Other tests leave threads that wait for hanging calls; only who asks to be young is forked.
pytestmark = pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")

ECHO = "import sys\ndef main(arguments): return '|'.join(arguments)\n"


@pytest.fixture
def script(tmp_path: Path) -> Any:
    """Write a script; what it does stands in its `main`."""

    def write(text: str) -> str:
        path = tmp_path / "question.py"
        path.write_text(text)
        return str(path)

    return write


@pytest.fixture(params=["new process", "fork", "thread"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every way of asking; the thread is what an embedded interpreter or Windows gets."""
    monkeypatch.setattr(asking_process, "_is_young", lambda: request.param == "fork")
    if request.param == "thread":
        monkeypatch.setattr(sys, "executable", "/usr/sbin/web-server")
    return str(request.param)


def test_answer(script: Any, way: str) -> None:
    """The answer is what main returns for its arguments, blanks and all."""
    outcome = bounded.ask(script(ECHO), ["a b", "c"], 30)
    assert ("a b|c", None) == ((outcome.output or "").strip(), outcome.problem)
    assert outcome.milliseconds > 0


def test_no_answer_in_time(script: Any, way: str) -> None:
    """A call that hangs is given up after its bound."""
    start = time.monotonic()
    text = "import sys, time\ndef main(arguments): time.sleep(60)\n"
    outcome = bounded.ask(script(text), [], 0.3)
    assert time.monotonic() - start < 5
    assert outcome.output is None
    assert "no answer within 0.3 s" in (outcome.problem or "")


def test_failure_is_told(script: Any, way: str) -> None:
    """What the question dies of is in the outcome."""
    text = "import sys\ndef main(arguments): raise OSError('driver in flames')\n"
    outcome = bounded.ask(script(text), [], 30)
    told = f"{outcome.output} {outcome.problem}"
    assert "OSError: driver in flames" in told
    assert outcome.problem


def test_hanging_process_is_gone(script: Any, tmp_path: Path) -> None:
    """A child that is given up is killed and collected, and leaves no zombie."""
    text = f"import sys, os, time\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
    bounded.ask(script(text + "time.sleep(60)\n"), [], 2)
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    pytest.fail(f"process {pid} is still there")


def test_child_that_closes_its_output_and_hangs(script: Any) -> None:
    """An answer does not help if the process that gave it cannot end."""
    text = "import sys, os, time\nprint('half')\nsys.stdout.flush()\nos.close(1); os.close(2)\n"
    outcome = bounded.ask(script(text + "time.sleep(60)\n"), [], 1)
    assert "no answer" in (outcome.problem or "")


def test_large_answer(script: Any) -> None:
    """An answer larger than a pipe holds arrives whole."""
    text = "import sys\ndef main(arguments): return 'x' * 300000\n"
    assert 300000 == len((bounded.ask(script(text), [], 30).output or "").strip())


def test_child_is_alone(script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the user's site nor PYTHONPATH reaches the child, but the library path does."""
    (tmp_path / "json.py").write_text("raise SystemExit('shadowed')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("LD_LIBRARY_PATH", "/somewhere")
    text = (
        "import sys, os\n"
        "def main(arguments):\n"
        "    import json\n"
        "    return json.dumps([os.environ['LD_LIBRARY_PATH'], 'site' in sys.modules])\n"
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    path = elsewhere / "question.py"
    path.write_text(text)
    outcome = bounded.ask(str(path), [], 30)
    assert ["/somewhere", False] == json.loads(outcome.output or "")


@pytest.mark.parametrize("setting", ["soon", "-1", "0", "inf", "nan"])
def test_bound_that_is_none(monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    """A bound that is not a number of seconds is an error that names the variable."""
    monkeypatch.setenv("MAINBOARD_PROBE_TIMEOUT", setting)
    with pytest.raises(ValueError, match=f"MAINBOARD_PROBE_TIMEOUT is '{setting}'"):
        bounded.time_limit()


def test_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unset and empty are the default."""
    monkeypatch.delenv("MAINBOARD_PROBE_TIMEOUT", raising=False)
    assert bounded.DEFAULT_SECONDS == bounded.time_limit()
    monkeypatch.setenv("MAINBOARD_PROBE_TIMEOUT", "")
    assert bounded.DEFAULT_SECONDS == bounded.time_limit()
    monkeypatch.setenv("MAINBOARD_PROBE_TIMEOUT", "2.5")
    assert 2.5 == bounded.time_limit()


@pytest.mark.parametrize(
    ("setting", "value", "kept"),
    [
        ("dont_write_bytecode", False, True),
        ("dont_write_bytecode", True, False),
        ("pycache_prefix", "/elsewhere", False),
    ],
)
def test_bytecode(
    script: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    setting: str,
    value: Any,
    kept: bool,
) -> None:
    """The child keeps its script's bytecode where this process would keep it."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.setattr(sys, "pycache_prefix", None)
    monkeypatch.setattr(sys, setting, value)
    assert "" == (bounded.ask(script(ECHO), [], 30).output or "x").strip()
    assert kept == (tmp_path / "__pycache__").exists()


# Prints whether the question was asked by a fork of this process: a new interpreter has no `site`.
BEFORE_AND_AFTER = """
import sys, {first}
from mainboard.platforms import bounded
{then}
print("not in yet", end=" ")
print(bounded.ask({script!r}, [], 30).output)
"""
WHO = """
import os, sys
def main(arguments):
    descriptors = [each for each in os.listdir("/proc/self/fd") if int(each) > 2]
    return f"{'site' in sys.modules} {len(descriptors)} {os.read(0, 1)!r}"
"""


@pytest.mark.multiprocess
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks for it")
@pytest.mark.parametrize(
    ("first", "then", "forked"),
    [
        ("os", "", True),
        ("ctypes", "", False),
        ("_thread, time", "_thread.start_new_thread(time.sleep, (30,))", False),
    ],
)
def test_who_is_forked(script: Any, first: str, then: str, forked: bool) -> None:
    """A process without threads and native libraries is, and keeps nothing of its parent's open."""
    code = BEFORE_AND_AFTER.format(script=script(WHO), first=first, then=then)
    with open(os.devnull) as kept:
        done = subprocess.run(
            [sys.executable, "-c", code],
            check=True, capture_output=True, text=True, pass_fds=(kept.fileno(),), timeout=60,
        )  # fmt: skip
    *before, was_forked, descriptors, read = done.stdout.split()
    assert (before, was_forked, read) == (["not", "in", "yet"], str(forked), "b''")
    if forked:  # the one is that by which the folder is read
        assert descriptors == "1"


def test_large_answer_of_a_fork(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer larger than a pipe holds arrives whole, with what is no text in it."""
    monkeypatch.setattr(asking_process, "_is_young", lambda: True)
    path = script("def main(arguments): return 'x' * 300000 + chr(0xdc80)\n")
    assert 300001 == len(bounded.ask(path, [], 30).output or "")


def test_hanging_fork_is_gone(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given up after the bound, killed and collected, as a new process is."""
    monkeypatch.setattr(asking_process, "_is_young", lambda: True)
    path = script("import time\ndef main(arguments): time.sleep(60)\n")
    problem = bounded.ask(path, [], 0.3).problem or ""
    assert "no answer within 0.3 s (process " in problem
    pid = int(problem.partition("process ")[2].split()[0])
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    pytest.fail(f"process {pid} is still there")
