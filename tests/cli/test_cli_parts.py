"""The pieces under the commands: guarded probes, child processes, screens."""

import io
import sys
from pathlib import Path

import pytest

from mainboard.cli.attempt import attempt
from mainboard.cli.child import START, run_steps
from mainboard.cli.screen import Mark, Screen

STEPS = """
import os, time

def steps():
    outcome = yield "add", lambda: 1 + 1
    yield "use the answer", lambda: outcome.value * 21
    yield "raise", lambda: {}["missing"]
    yield "last", lambda: %s
    yield "never", lambda: None
"""


def raise_with_a_cause() -> None:
    """Fail as a library does that wraps the error of another."""
    try:
        raise OSError("no such device")
    except OSError as error:
        raise RuntimeError("cannot start") from error


def test_a_failed_attempt_keeps_the_whole_cause() -> None:
    """The failure names the exception, its cause, and where it was raised."""
    result = attempt(raise_with_a_cause)
    assert result.value is None
    assert result.cause == "RuntimeError: cannot start; because of OSError: no such device"
    assert "in raise_with_a_cause" in result.failure["traceback"]


def test_an_attempt_survives_an_exit_but_not_an_interrupt() -> None:
    """SystemExit is an answer; KeyboardInterrupt is the user's and passes."""
    assert attempt(lambda: sys.exit(3)).failure["type"] == "SystemExit"

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attempt(interrupt)


@pytest.fixture
def steps_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Make an importable module whose last step is an expression."""

    def make(last: str) -> str:
        (tmp_path / "steps_of_a_test.py").write_text(STEPS % last)
        monkeypatch.syspath_prepend(str(tmp_path))
        return "steps_of_a_test"

    return make


def test_steps_get_the_answers_of_earlier_ones(steps_module) -> None:
    """Every step's value comes back, failures among them, and later steps can use earlier ones."""
    steps = run_steps(steps_module("'done'"), "steps")
    assert [step.name for step in steps] == ["add", "use the answer", "raise", "last", "never"]
    assert [step.value for step in steps] == [2, 42, None, "done", None]
    assert steps[2].failure["type"] == "KeyError"


@pytest.mark.parametrize(
    ("last", "limit", "kind"),
    [
        ("os.abort()", 60, "SIGABRT"),
        ("os._exit(3)", 60, "ChildProcessError"),
        ("time.sleep(60)", 3, "TimeoutError"),
    ],
)
def test_a_step_that_ends_or_blocks_its_process(
    steps_module, last: str, limit: float, kind: str
) -> None:
    """The step in which the process ended is the last one, with how it ended."""
    steps = run_steps(steps_module(last), "steps", limit)
    assert [step.name for step in steps] == ["add", "use the answer", "raise", "last"]
    assert steps[-1].failure["type"] == kind


def test_a_child_that_does_not_start() -> None:
    """A child that dies before its first step says so."""
    (step,) = run_steps("no_such_module_anywhere", "steps")
    assert (step.name, step.failure["type"]) == (START, "ChildProcessError")


def test_a_table_in_a_pipe_has_one_line_per_row() -> None:
    """Without a width nothing is broken, columns are aligned, and no line ends in blanks."""
    stream = io.StringIO()
    Screen(stream).table(("state", "reason"), [("ok", "word " * 60), (Mark("failed", "bad"), "")])
    header, row, short = stream.getvalue().splitlines()
    assert header.index("reason") == row.index("word")
    assert short == "  failed"


def test_a_table_on_a_terminal_breaks_its_last_column() -> None:
    """With a width the last column is broken under itself, and colours do not count."""
    stream = io.StringIO()
    Screen(stream, width=50, colour=True).table((), [(Mark("failed", "bad"), "word " * 20)])
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("  \x1b[31;1mfailed\x1b[0m  word")
    assert all(line.startswith(" " * 10 + "word") for line in lines[1:])
    assert all(len(line) <= 50 for line in lines[1:])
