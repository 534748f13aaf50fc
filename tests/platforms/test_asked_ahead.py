"""A driver is asked before anything else is done, and nobody notices but by the clock."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mainboard.platforms import ahead, bounded, cuda_probe
from mainboard.platforms.machine import Machine
from mainboard.platforms.verdict import State

ANSWER = "def main(arguments): return '|'.join(arguments)\n"
SLEEP = "import time\ndef main(arguments): time.sleep(60)\n"


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No test leaves a process for the next one."""
    yield
    assert not bounded._ahead


@pytest.fixture
def enter(monkeypatch: pytest.MonkeyPatch) -> Callable[[Machine], ahead.asked_ahead]:
    """The block, as a process that has not been in it sees it, on a given machine."""

    def on(machine: Machine) -> ahead.asked_ahead:
        monkeypatch.setattr(ahead, "_first", [None])
        monkeypatch.setattr(ahead, "this_machine", lambda: machine)
        return ahead.asked_ahead()

    return on


def _script(folder: Path, text: str) -> str:
    path = folder / "question.py"
    path.write_text(text)
    return str(path)


def _is_gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False


def test_answer_is_taken_once(tmp_path: Path) -> None:
    """What was asked ahead is answered by that process; the same question again by another."""
    script = _script(tmp_path, "import os\ndef main(arguments): return str(os.getpid())\n")
    bounded.ask_ahead(script, ["a"])
    (child,) = bounded._ahead.values()
    first, second = bounded.ask(script, ["a"], 30), bounded.ask(script, ["a"], 30)
    assert str(child.pid) == (first.output or "").strip() != (second.output or "").strip()
    assert first.problem is None and second.problem is None


def test_other_question_is_not_answered_by_it(tmp_path: Path) -> None:
    """An answer is that of the very script and arguments."""
    script = _script(tmp_path, ANSWER)
    bounded.ask_ahead(script, ["a"])
    assert "b" == (bounded.ask(script, ["b"], 30).output or "").strip()
    bounded.leave_unasked()


def test_bound_begins_with_the_question(tmp_path: Path) -> None:
    """What is done before the answer is wanted is not taken from the driver's time."""
    script = _script(tmp_path, "import time\ndef main(arguments): time.sleep(0.5); return 'yes'\n")
    bounded.ask_ahead(script, [])
    time.sleep(1)
    assert "yes" == (bounded.ask(script, [], 0.2).output or "").strip()


def test_unasked_process_is_gone(tmp_path: Path) -> None:
    """A process whose answer nobody came for is killed and collected."""
    bounded.ask_ahead(_script(tmp_path, SLEEP), [])
    (child,) = bounded._ahead.values()
    bounded.leave_unasked()
    assert _is_gone(child.pid)


def test_forked_child_asks_for_itself(tmp_path: Path) -> None:
    """A fork in between takes no answer from the process that asked."""
    script = _script(tmp_path, ANSWER)
    bounded.ask_ahead(script, ["a"])
    pid = os.fork()
    if pid == 0:
        os._exit(0 if not bounded._ahead else 1)
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert "a" == (bounded.ask(script, ["a"], 30).output or "").strip()


def test_driver_is_asked_ahead(machines: Any, two_devices: Any, enter: Any) -> None:
    """Where a device is and torch can use it, the probe finds the question asked already."""
    machines.install_torch(cuda="13.0")
    machines.install_nvml(two_devices)
    machine = machines.from_record("nvidia-two-gpus")
    with enter(machine):
        assert 1 == len(bounded._ahead)
        assert State.ACTIVATED == cuda_probe.probe(machine).state
        assert not bounded._ahead


@pytest.mark.parametrize(
    ("record", "environ", "built"),
    [
        ("bare-proc", {}, "13.0"),
        ("nvidia-two-gpus", {}, None),
        ("nvidia-two-gpus", {"CUDA_VISIBLE_DEVICES": ""}, "13.0"),
    ],
)
def test_nothing_to_ask(
    machines: Any, enter: Any, record: str, environ: dict[str, str], built: str | None
) -> None:
    """Without a device, without a torch for it, or with all of them hidden, no process is made."""
    machines.install_torch(cuda=built)
    with enter(machines.from_record(record, environ=environ)):
        assert not bounded._ahead


@pytest.mark.parametrize("name", ["MAINBOARD_PLATFORM", "VLLM_TARGET_DEVICE"])
def test_platform_asked_for_by_name(
    machines: Any, enter: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the user names the platform, no other's driver is asked."""
    machines.install_torch(cuda="13.0")
    monkeypatch.setenv(name, "cpu")
    with enter(machines.from_record("nvidia-two-gpus")):
        assert not bounded._ahead


def test_failure_is_left_to_the_probe(enter: Any) -> None:
    """What goes wrong ahead of time keeps nobody from choosing."""
    with enter(object()):
        assert not bounded._ahead


def test_hanging_driver_that_is_not_wanted(machines: Any, two_devices: Any, enter: Any) -> None:
    """A driver that hangs is not waited for by who does not ask it."""
    machines.install_torch(cuda="13.0")
    machines.install_nvml(two_devices, "hang")
    start = time.monotonic()
    with enter(machines.from_record("nvidia-two-gpus")):
        (child,) = bounded._ahead.values()
    assert time.monotonic() - start < 5
    assert _is_gone(child.pid)
