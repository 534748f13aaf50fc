"""Logical, visible and physical ids, and the ways between them."""

from collections.abc import Iterator

import pytest

from mainboard.platforms.device_ids import (
    DeviceIds,
    get_assigned_physical_gpu_ids,
    set_assigned_physical_gpu_ids,
)

CONTROL = "MAINBOARD_TEST_VISIBLE_DEVICES"


class Ids(DeviceIds):
    """A platform that is only its ids."""

    device_name = "test"
    device_control_env_var = CONTROL


@pytest.fixture(autouse=True)
def no_assignment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test starts, and leaves, without an assignment and without the variable."""
    monkeypatch.delenv(CONTROL, raising=False)
    yield
    set_assigned_physical_gpu_ids(None)


def test_without_any_setting_all_ids_are_equal() -> None:
    """Nothing set: logical, visible and physical are the same number."""
    assert Ids.visible_physical_ids() is None
    assert 5 == Ids.visible_device_id_to_physical_device_id(5)
    assert 5 == Ids.device_id_to_physical_device_id(5)
    assert 5 == Ids.logical_device_id_to_visible_device_id(5)


def test_control_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable gives visible ids to physical devices, in its order."""
    monkeypatch.setenv(CONTROL, "6, 2,4")
    assert [6, 2, 4] == Ids.visible_physical_ids()
    assert 2 == Ids.visible_device_id_to_physical_device_id(1)
    assert 2 == Ids.device_id_to_physical_device_id(1)
    assert 1 == Ids.logical_device_id_to_visible_device_id(1)


def test_assignment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Assigned devices are logical ids, found again among the visible ones."""
    monkeypatch.setenv(CONTROL, "6,2,4")
    set_assigned_physical_gpu_ids([4, 6])
    assert [4, 6] == get_assigned_physical_gpu_ids()
    assert 4 == Ids.device_id_to_physical_device_id(0)
    assert 2 == Ids.logical_device_id_to_visible_device_id(0)
    assert 0 == Ids.logical_device_id_to_visible_device_id(1)


def test_assignment_without_control_variable() -> None:
    """Where nothing is hidden, the visible id is the physical one."""
    set_assigned_physical_gpu_ids([3])
    assert 3 == Ids.logical_device_id_to_visible_device_id(0)


def test_device_beyond_the_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too great a number is an error that shows what there is, and -1 is not the last one."""
    monkeypatch.setenv(CONTROL, "1,0")
    for wrong in (2, -1):
        with pytest.raises(IndexError, match=rf"device {wrong} .* 2 are visible .*\[1, 0\]"):
            Ids.visible_device_id_to_physical_device_id(wrong)


def test_empty_control_variable_hides_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set and empty means none, not all."""
    monkeypatch.setenv(CONTROL, "")
    assert [] == Ids.visible_physical_ids()
    with pytest.raises(IndexError, match=f"0 are visible through {CONTROL}"):
        Ids.device_id_to_physical_device_id(0)


def test_device_beyond_the_assigned() -> None:
    """The error says that it is the assignment that is shorter."""
    set_assigned_physical_gpu_ids([7])
    with pytest.raises(IndexError, match=r"1 are assigned to this process: \[7\]"):
        Ids.device_id_to_physical_device_id(1)


def test_assigned_but_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that is assigned and hidden is an error that shows both settings."""
    monkeypatch.setenv(CONTROL, "0,1")
    set_assigned_physical_gpu_ids([3])
    with pytest.raises(ValueError, match=rf"physical device 3, which {CONTROL}='0,1' hides"):
        Ids.logical_device_id_to_visible_device_id(0)


def test_entry_that_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """A platform that knows numbers only says so, with the entry and the variable."""
    monkeypatch.setenv(CONTROL, "GPU-1234")
    with pytest.raises(ValueError, match=f"{CONTROL} has the entry 'GPU-1234'"):
        Ids.visible_physical_ids()
