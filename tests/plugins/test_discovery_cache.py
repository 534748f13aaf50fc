"""Discovery on real directories, and a cache that is never trusted over them."""

import importlib.metadata
import os
import sys
import time
import zipfile
from types import SimpleNamespace
from typing import ClassVar

import pytest

from mainboard.plugins.discovery import discover, discover_group, find
from mainboard.plugins.entry_points import normalize, parse

REPORT = """
import json
from mainboard.plugins import report
result = report()
print(json.dumps([[f"{row.distribution}/{row.name}" for row in result.plugins],
                  result.cache_file, result.cache_note]))
"""


def make_distribution(folder, name, version="1.0", entries="", metadata=None, kind="dist-info"):
    """A metadata directory as an installer leaves it, settled for longer than the cache waits."""
    info = folder / f"{name.replace('-', '_')}-{version}.{kind}"
    info.mkdir(parents=True)
    file = "METADATA" if kind == "dist-info" else "PKG-INFO"
    (info / file).write_text(
        metadata or f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    )
    if entries:
        (info / "entry_points.txt").write_text(f"[vllm.general_plugins]\n{entries}\n")
    settle(folder)
    return info


def settle(folder, seconds=60):
    """Set every modification time back, as if nothing had happened for a while."""
    past = time.time() - seconds
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (past, past))


def found(*paths):
    """The (distribution, version, name, value) of every plugin on these paths."""
    entries = find([*map(str, paths)], lambda group: group.startswith("vllm."), b"vllm.").entries
    return [(entry.distribution, entry.version, entry.name, entry.value) for entry in entries]


def test_the_scan_agrees_with_the_standard_library():
    """For every group installed here, names and values are those of importlib.metadata."""
    distributions = importlib.metadata.distributions()
    groups = {entry.group for each in distributions for entry in each.entry_points}
    assert groups
    for group in groups:
        expected = {(e.name, e.value) for e in importlib.metadata.entry_points(group=group)}
        assert {(e.name, e.value) for e in discover_group(group)} == expected


def test_names_versions_and_extras_are_read(tmp_path):
    """The distribution's own spelling, its version, and values with extras and spaces."""
    make_distribution(tmp_path, "My.Odd-Name", "2.1rc1", "a = pkg:run [extra]\nb=pkg.mod:Class.run")
    assert sorted(found(tmp_path)) == [
        ("My.Odd-Name", "2.1rc1", "a", "pkg:run [extra]"),
        ("My.Odd-Name", "2.1rc1", "b", "pkg.mod:Class.run"),
    ]


def test_eggs_and_archives_are_found(tmp_path):
    """Egg-info beside a project, an unpacked egg and a zip file on the path."""
    make_distribution(tmp_path / "project", "developed", "1", "dev = d:f", kind="egg-info")
    egg = tmp_path / "old-3.0.egg"
    (egg / "EGG-INFO").mkdir(parents=True)
    (egg / "EGG-INFO" / "PKG-INFO").write_text("Name: old\nVersion: 3.0\n")
    (egg / "EGG-INFO" / "entry_points.txt").write_text("[vllm.general_plugins]\nold = o:f\n")
    archive = tmp_path / "zipped.zip"
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("zipped-4.dist-info/METADATA", "Name: zipped\nVersion: 4\n")
        out.writestr("zipped-4.dist-info/entry_points.txt", "[vllm.general_plugins]\nzip = z:f\n")
    assert found(tmp_path / "project", egg, archive) == [
        ("developed", "1", "dev", "d:f"),
        ("old", "3.0", "old", "o:f"),
        ("zipped", "4", "zip", "z:f"),
    ]


def test_the_first_on_the_path_hides_the_same_distribution_further_down(tmp_path):
    """As with imports: also when the first has no plugins any more."""
    make_distribution(tmp_path / "one", "some-dist", "2.0")
    make_distribution(tmp_path / "two", "some_dist", "1.0", "old = o:f")
    assert found(tmp_path / "one", tmp_path / "two") == []
    assert found(tmp_path / "two", tmp_path / "one") == [("some_dist", "1.0", "old", "o:f")]


def test_leftovers_of_an_upgrade_are_passed_over(tmp_path):
    """Of two versions in one directory the newer files count; pip's ~backups never do."""
    older = make_distribution(tmp_path, "some-dist", "1.10", "old = o:f")
    make_distribution(tmp_path, "some-dist", "1.9", "new = n:f")
    make_distribution(tmp_path, "~ome-dist", "1.8", "backup = b:f")
    os.utime(older, (1, 1))
    assert found(tmp_path) == [("some-dist", "1.9", "new", "n:f")]


def test_missing_paths_and_unreadable_metadata_are_passed_over(tmp_path):
    """Nothing there, a file where a folder should be, bytes that are no text: all found empty."""
    (tmp_path / "flat-1.dist-info").touch()
    info = make_distribution(tmp_path, "binary", "1", "x = y:z")
    (info / "METADATA").write_bytes(b"\xff\xfe\x00")
    assert found(tmp_path / "nowhere", tmp_path) == [("binary", "1", "x", "y:z")]


def test_a_line_without_a_value_is_kept_as_such():
    """So that loading can say that it is malformed; comments and blank lines are not entries."""
    text = "# note\n; note\n\n[g]\na = b:c\nrubbish\n[h]\n d = e : f \n"
    assert list(parse(text)) == [("g", "a", "b:c"), ("g", "rubbish", ""), ("h", "d", "e : f")]


def test_spellings_of_a_distribution_are_one():
    """As the packaging specification says: case and runs of separators do not matter."""
    assert {normalize(name) for name in ("A.b_C", "a-B.c", "a__b--c")} == {"a-b-c"}


@pytest.fixture
def cached(run, tmp_path):
    """Report the plugins of a folder through a cache; returns (names, cache file, note)."""
    site = tmp_path / "site"
    make_distribution(site, "first", entries="one = a:b")

    def cached(**environment):
        environment.setdefault("MAINBOARD_CACHE", str(tmp_path / "cache"))
        return run(REPORT, path=(site,), **environment).json

    cached.site = site
    return cached


def test_the_second_process_uses_the_cache(cached):
    """What the first wrote, the second reads, with the same answer."""
    names, file, note = cached()
    assert (names, note) == (["first/one"], "absent; written")
    assert os.path.exists(file)
    assert cached() == [["first/one"], file, "used"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param(
            lambda site: make_distribution(site, "second", entries="two = a:b"),
            ["first/one", "second/two"],
            id="installed",
        ),
        pytest.param(
            lambda site: next(site.glob("*.dist-info")).rename(site / "first-1.0.gone"),
            [],
            id="uninstalled",
        ),
        pytest.param(
            lambda site: next(site.rglob("entry_points.txt")).write_text(
                "[vllm.general_plugins]\nnew = c:d\n"
            ),
            ["first/new"],
            id="edited in place",
        ),
    ],
)
def test_a_stale_cache_is_ignored(cached, change, expected):
    """Whatever changes on disk is seen, though every modification time is put back."""
    cached()
    change(cached.site)
    settle(cached.site)
    names, _, note = cached()
    assert names == expected
    assert note.startswith("ignored: stale")
    assert cached()[::2] == [expected, "used"]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda text: text[: len(text) // 2], id="cut off"),
        pytest.param(lambda text: b"", id="empty"),
        pytest.param(lambda text: b"\x80\x04rubbish\nmore", id="rubbish"),
        pytest.param(lambda text: text.replace(b"first", b"fir5t"), id="changed"),
        pytest.param(lambda text: text.replace(b"cache 1", b"cache 0"), id="another version"),
    ],
)
def test_a_damaged_cache_is_ignored_and_replaced(cached, damage):
    """The answer comes from the directories, and the next process has a good cache again."""
    _, file, _ = cached()
    with open(file, "rb") as stream:
        text = stream.read()
    with open(file, "wb") as stream:
        stream.write(damage(text))
    names, _, note = cached()
    assert names == ["first/one"]
    assert note == "ignored: damaged, or written by another version; written"
    assert cached()[2] == "used"


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
def test_a_cache_that_others_can_write_is_ignored(cached):
    """Its lines say what code is run, so a file open to other users is not believed."""
    _, file, _ = cached()
    os.chmod(file, 0o666)
    names, _, note = cached()
    assert names == ["first/one"]
    assert note.startswith("ignored: it belongs to, or can be written by, another user")


def test_an_unwritable_cache_is_no_error(cached, tmp_path):
    """A cache folder that cannot be made costs a scan, and the report says why."""
    (tmp_path / "file").touch()
    names, _, note = cached(MAINBOARD_CACHE=str(tmp_path / "file" / "below"))
    assert names == ["first/one"]
    assert note.startswith("absent; not written: ")
    assert "Not a directory" in note or "cannot find the path" in note


def test_the_cache_can_be_off_and_is_below_the_users_cache_folder(cached, tmp_path):
    """`MAINBOARD_CACHE=0` writes nothing; unset, XDG_CACHE_HOME says where."""
    assert cached(MAINBOARD_CACHE="0") == [["first/one"], None, "off"]
    home = tmp_path / "xdg"
    _, file, note = cached(MAINBOARD_CACHE="", XDG_CACHE_HOME=str(home))
    if os.name == "posix" and os.uname().sysname == "Linux":
        assert file.startswith(str(home / "mainboard" / "plugins"))
        assert note == "absent; written"


def test_a_directory_that_has_just_changed_is_not_cached(run, tmp_path):
    """A second change within the same tick of the clock would not be seen."""
    make_distribution(tmp_path / "site", "first", entries="one = a:b")
    os.utime(tmp_path / "site")
    cache = str(tmp_path / "cache")
    names, file, note = run(REPORT, path=(tmp_path / "site",), MAINBOARD_CACHE=cache).json
    assert names == ["first/one"]
    assert note.endswith("not written: a directory on sys.path changed a moment ago")
    assert not os.path.exists(file)


def test_old_cache_files_are_forgotten(run, tmp_path):
    """Each folder a program starts from gives a file; their number is bounded."""
    folder = tmp_path / "cache" / "plugins"
    folder.mkdir(parents=True)
    for number in range(80):
        (folder / f"{number}.txt").touch()
        os.utime(folder / f"{number}.txt", (number, number))
    _, file, _ = run(REPORT, MAINBOARD_CACHE=str(tmp_path / "cache")).json
    left = os.listdir(folder)
    assert os.path.basename(file) in left
    assert len(left) == 32
    assert "0.txt" not in left


def test_what_is_no_string_on_the_path_is_passed_over(monkeypatch, tmp_path):
    """As an import passes over it."""
    make_distribution(tmp_path, "first", entries="one = a:b")
    monkeypatch.setattr(sys, "path", [tmp_path, b"bytes", str(tmp_path)])
    assert [entry.name for entry in discover_group("vllm.general_plugins")] == ["one"]


class Frozen:
    """A finder with distributions of its own, as a frozen program has."""

    class Known:
        """One distribution."""

        metadata: ClassVar = {"Name": "Frozen_In"}
        version = "7"
        entry_points = (SimpleNamespace(group="vllm.general_plugins", name="cold", value="a:b"),)

    def find_spec(self, *_):
        """Find no module."""

    def find_distributions(self, context):
        """Find the one distribution."""
        yield self.Known()


@pytest.fixture
def frozen():
    """The finder on `sys.meta_path`, in place: importlib-metadata puts its own there for good."""
    finder = Frozen()
    sys.meta_path.append(finder)
    yield finder
    sys.meta_path.remove(finder)


@pytest.mark.usefixtures("frozen")
def test_finders_of_other_kinds_are_asked_and_nothing_is_cached(monkeypatch, tmp_path):
    """What they know has no directory whose change could be seen."""
    monkeypatch.setenv("MAINBOARD_CACHE", str(tmp_path))
    for _ in range(2):
        result = discover()
        assert ("Frozen_In", "7", "cold") in {
            (e.distribution, e.version, e.name) for e in result.entries
        }
        assert (result.cache_file, result.cache_note) == (None, "off")
    assert os.listdir(tmp_path) == []
