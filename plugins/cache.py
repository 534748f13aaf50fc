"""What the last discovery found, kept on disk for the next process.

A cache answers only for the interpreter, the `sys.path` and the very state of each directory that
it was written for; the directories are always asked first. Anything else about it (damage, another
user's file, no permission) means a scan, never an error.
"""

from __future__ import annotations

import os
import sys
import time
import zlib

from mainboard.light_typing import TYPE_CHECKING, NamedTuple
from mainboard.plugins.entry_points import EntryPoint, read
from mainboard.plugins.log import debug

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Cache", "Findings", "directory", "signature"]

_TITLE = "mainboard plugin cache 1"
_KEPT_FILES = 64
# A directory that changes again within one tick of its file system's clock looks unchanged.
_SETTLED_SECONDS = 2.0


class Findings(NamedTuple):
    """What a scan found, and the files inside the directories that it also depends on."""

    entries: tuple[EntryPoint, ...]
    watched: tuple[str, ...]


def signature(path: str) -> str:
    """What changes when the file or directory does.

    `st_ctime_ns` is there for images and stores that give every file one constant mtime.
    """
    try:
        stat = os.stat(path)
    except OSError:
        return "-"
    return f"{stat.st_ino}:{stat.st_mtime_ns}:{stat.st_ctime_ns}:{stat.st_size}"


def directory() -> str | None:
    """Where caches are kept: `MAINBOARD_CACHE` (0 is nowhere), or the platform's usual place."""
    asked = os.environ.get("MAINBOARD_CACHE", "")
    if asked == "0":
        return None
    if asked:
        return os.path.abspath(os.path.expanduser(asked))
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA", "")
    elif sys.platform == "darwin":
        base = os.path.expanduser("~/Library/Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME", "") or os.path.expanduser("~/.cache")
    return os.path.join(base, "mainboard") if os.path.isabs(base) else None


class Cache:
    """The cache for one `sys.path`; `note` says what became of it."""

    def __init__(self, folder: str | None, paths: Sequence[str]) -> None:
        self.note = "off"
        self.file: str | None = None
        self._paths = tuple(paths)
        interpreter = f"{sys.implementation.cache_tag} {sys.prefix}"
        self._key: list[tuple[str, ...]] = [("interpreter", interpreter)]
        self._key += [("path", signature(path), path) for path in paths]
        if folder is not None:
            name = "\n".join((interpreter, *paths)).encode("utf-8", "surrogateescape")
            self.file = os.path.join(folder, "plugins", f"{zlib.crc32(name):08x}.txt")

    def load(self) -> Findings | None:
        """What was found when everything was as it is now, or None."""
        if self.file is None:
            return None
        findings, self.note = self._read(self.file)
        debug("plugin cache %s: %s", self.file, self.note)
        return findings

    def _read(self, file: str) -> tuple[Findings | None, str]:
        content = read(file)
        if content is None:
            return None, "absent"
        if not _is_ours(file):
            return None, "ignored: it belongs to, or can be written by, another user"
        head, _, body = content.partition(b"\n")
        if head != f"{_TITLE} {zlib.crc32(body):08x}".encode():
            return None, "ignored: damaged, or written by another version"
        text = body.decode("utf-8", "surrogateescape")
        rows = [tuple(line.split("\t")) for line in text.split("\n")]
        if rows[: len(self._key)] != self._key:
            return None, "ignored: stale, a directory on sys.path has changed"
        entries, watched = [], []
        for kind, *fields in rows[len(self._key) :]:
            if kind == "entry":
                entries.append(EntryPoint(*fields))
            elif kind == "watch":
                if signature(fields[1]) != fields[0]:
                    return None, f"ignored: stale, {fields[1]} has changed"
                watched.append(fields[1])
        return Findings(tuple(entries), tuple(watched)), "used"

    def store(self, findings: Findings) -> None:
        """Keep what was found, if it can be kept and will still mean something later."""
        if self.file is None:
            return
        rows = list(self._key)
        rows += [("watch", signature(path), path) for path in findings.watched]
        rows += [("entry", *entry) for entry in findings.entries]
        if any("\t" in field or "\n" in field for row in rows for field in row):
            self.note += "; not written: a path or name has a tab or line break in it"
        elif not _settled((*self._paths, *findings.watched)):
            self.note += "; not written: a directory on sys.path changed a moment ago"
        else:
            body = "\n".join(map("\t".join, rows))
            self.note += _write(self.file, body.encode("utf-8", "surrogateescape"))
        debug("plugin cache %s: %s", self.file, self.note)


def _is_ours(file: str) -> bool:
    """Whether nobody but this user can have written it: its lines say what code is run."""
    if not hasattr(os, "geteuid"):
        return True
    try:
        stat = os.stat(file)
    except OSError:
        return False
    return stat.st_uid == os.geteuid() and not stat.st_mode & 0o022


def _settled(paths: Iterable[str]) -> bool:
    limit = time.time() - _SETTLED_SECONDS
    for path in paths:
        try:
            if os.stat(path).st_mtime > limit:
                return False
        except OSError:
            continue
    return True


def _write(file: str, body: bytes) -> str:
    folder = os.path.dirname(file)
    temporary = f"{file}.{os.getpid()}"
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        with open(os.open(temporary, flags, 0o600), "wb") as stream:
            stream.write(f"{_TITLE} {zlib.crc32(body):08x}\n".encode() + body)
        os.replace(temporary, file)
        _prune(folder)
    except OSError as error:
        return f"; not written: {error}"
    return "; written"


def _prune(folder: str) -> None:
    """Forget the oldest files: every folder a script is started from gives one more."""
    files = [entry for entry in os.scandir(folder) if entry.is_file()]
    if len(files) > _KEPT_FILES:
        files.sort(key=lambda entry: entry.stat().st_mtime_ns)
        for entry in files[: len(files) - _KEPT_FILES // 2]:
            try:
                os.unlink(entry.path)
            except FileNotFoundError:  # another process was faster
                continue
