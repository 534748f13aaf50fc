"""`mainboard env --record`: a machine's report that can be replayed as a test."""

import json

from mainboard.platforms.recording import Replay, facts_of


def test_env_record_can_be_replayed(mainboard, tmp_path) -> None:
    """The file that is written gives, when it is replayed, the facts that it states."""
    folder = tmp_path / "new" / "folder"
    ran = mainboard("env", "--json", "--record", str(folder))
    assert ran.code == 0
    assert ran.json["recording"]["file"] == str(folder / "machine.json")
    record = json.loads((folder / "machine.json").read_text())
    assert record["origin"].startswith("recorded by mainboard")
    assert json.loads(json.dumps(facts_of(Replay(record)))) == record["facts"]
    assert record["facts"]["cpu"]["model"] == ran.json["cpu"]["model"]
    assert "recording" not in mainboard("env", "--json").json


def test_env_record_that_cannot_be_written(mainboard, tmp_path) -> None:
    """A folder that cannot be made fails the command, and the rest of the report is there."""
    file = tmp_path / "file"
    file.touch()
    ran = mainboard("env", "--json", "--record", str(file))
    assert ran.code == 1
    assert "File exists" in ran.json["recording"]["failure"]["message"]
    assert ran.json["cpu"]["recommended_threads"] >= 1
