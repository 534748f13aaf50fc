"""Real distributions, installed once per test run with pip, and fresh interpreters to use them."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

HERE = Path(__file__).parent
GROUPS = {"general": "vllm.general_plugins", "platform": "vllm.platform_plugins"}

# One process for all installations: pip's own start-up is most of the time of each.
PIP_LOOP = """
import runpy, sys
for target, source in (line.split("\\t") for line in sys.stdin.read().splitlines()):
    sys.argv = ["pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile",
                "--no-build-isolation", "--disable-pip-version-check", "--target", target, source]
    try:
        runpy.run_module("pip", run_name="__main__", alter_sys=True)
    except SystemExit as done:
        if done.code:
            raise
"""


class Outcome(NamedTuple):
    """What a program in a fresh interpreter printed."""

    stdout: str
    stderr: str
    returncode: int

    @property
    def json(self) -> Any:
        """The last line of its output."""
        assert self.returncode == 0, self.stderr
        return json.loads(self.stdout.splitlines()[-1])


Run = Callable[..., Outcome]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses installed distributions, so that it can be left out."""
    for item in items:
        if Path(item.path).parent == HERE and "installed" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.install)


def make_wheel(folder: Path, name: str, spec: dict[str, Any]) -> Path:
    """A wheel of the distribution that the table describes."""
    stem = f"{name.replace('-', '_')}-{spec['version']}"
    info = f"{stem}.dist-info"
    sections = (f"[{GROUPS[kind]}]\n" + "\n".join(spec[kind]) for kind in GROUPS if kind in spec)
    files = {
        **spec["files"],
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {spec['version']}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "\n".join(sections) + "\n",
    }
    rows = [f"{path},{record_hash(text)},{len(text.encode())}" for path, text in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,"]) + "\n"
    wheel = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return wheel


def record_hash(text: str) -> str:
    """A file's hash as a wheel's RECORD has it."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"sha256={digest.rstrip('=')}"


def install_all(root: Path) -> None:
    """Install every distribution of the table, and the two real projects, each on its own."""
    tables = [tomllib.loads(file.read_text()) for file in sorted(HERE.glob("*.toml"))]
    table = {name: spec for each in tables for name, spec in each.items()}
    jobs = [(name, make_wheel(root, name, spec)) for name, spec in table.items()]
    # setuptools writes into the folder it builds.
    projects = shutil.copytree(HERE / "projects", root / "projects")
    jobs += [(project.name, project) for project in sorted(projects.iterdir())]
    lines = "".join(f"{root / 'installed' / name}\t{source}\n" for name, source in jobs)
    subprocess.run([sys.executable, "-c", PIP_LOOP], input=lines, text=True, check=True)


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The folder with one installation per distribution; workers of one run share it."""
    base = tmp_path_factory.getbasetemp()
    root = (base if worker_id == "master" else base.parent) / "distributions"
    done = root / "done"
    try:
        root.mkdir()
    except FileExistsError:
        deadline = time.monotonic() + 300
        while not done.exists():
            assert time.monotonic() < deadline, "another worker did not finish the installations"
            time.sleep(0.1)
    else:
        install_all(root)
        done.touch()
    return root / "installed"


@pytest.fixture
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Run]:
    """Run a program in a fresh interpreter with the named distributions on its path."""

    def run(
        program: str, *distributions: str, path: tuple[Path | str, ...] = (), **environment: str
    ) -> Outcome:
        installed = request.getfixturevalue("installed") if distributions else Path()
        folders = [*path, *(installed / name for name in distributions)]
        assert all(os.path.exists(folder) for folder in folders)
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("VLLM_", "MAINBOARD_"))
        }
        places = [*map(str, folders), os.environ.get("PYTHONPATH", "")]
        inherited["PYTHONPATH"] = os.pathsep.join(filter(None, places))
        result = subprocess.run(
            # -P: the working folder is not on the path, so that it cannot make a cache stale.
            [sys.executable, "-P", "-W", "error", "-c", program],
            capture_output=True,
            check=False,
            text=True,
            timeout=120,
            cwd=tmp_path,
            env={**inherited, "MAINBOARD_CACHE": "0", **environment},
        )
        return Outcome(result.stdout, result.stderr, result.returncode)

    yield run
