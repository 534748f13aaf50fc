"""The fake device and the broken platform, built and installed by pip once, outside the tests."""

import fcntl
import hashlib
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

ROOT = Path(__file__).parents[2]
PROJECTS = (ROOT / "examples/fake_device", Path(__file__).parent / "projects/broken_platform")


class Ran(NamedTuple):
    """What became of a program."""

    code: int
    out: str
    err: str


def _key() -> str:
    """What a build depends on."""
    digest = hashlib.sha256(f"{torch.__version__} {sys.version}".encode())
    for project in PROJECTS:
        for path in sorted(project.rglob("*")):
            if path.suffix in (".cpp", ".h", ".py", ".toml") and "build" not in path.parts:
                digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@pytest.fixture(scope="session")
def site(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both distributions, kept between runs while nothing of them changes."""
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        pytest.skip("compiling the fake device needs Python's headers, which are not installed")
    kept = pytestconfig.cache.mkdir("fake_device") if pytestconfig.cache else None
    folder = (kept or tmp_path_factory.getbasetemp().parent) / _key()
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one of several workers builds
        if not (folder / "done").exists():
            _install(folder, tmp_path_factory.mktemp("sources"))
            (folder / "done").touch()
    return folder


def _install(folder: Path, scratch: Path) -> None:
    """Install from copies: a build leaves files beside the sources."""
    import shutil

    sources = []
    for project in PROJECTS:
        ignored = shutil.ignore_patterns("build", "*.so", "*.egg-info", "__pycache__")
        sources.append(shutil.copytree(project, scratch / project.name, ignore=ignored))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--disable-pip-version-check", "--target", str(folder)]
    scripts = Path(sys.executable).parent  # where ninja is
    path = f"{scripts}{os.pathsep}{os.environ['PATH']}"
    subprocess.run([*command, *map(str, sources)], check=True, env={**os.environ, "PATH": path})


@pytest.fixture
def run(site: Path, tmp_path: Path) -> Callable[..., Ran]:
    """Run Python with both distributions installed and two fake devices plugged in."""

    def run(*arguments: str, **environment: str) -> Ran:
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("MAINBOARD_", "VLLM_", "FAKE_", "PYTEST_"))
        }
        clean |= {"PYTHONPATH": str(site), "FAKE_DEVICES": "2", "MAINBOARD_CACHE": "0"}
        ran = subprocess.run(
            [sys.executable, "-P", *arguments],
            capture_output=True,
            check=False,
            text=True,
            cwd=tmp_path,
            env=clean | environment,
            timeout=600,
        )
        return Ran(ran.returncode, ran.stdout, ran.stderr)

    return run
