"""The command line in processes of its own, and distributions to run it with."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

BLOCK_TORCH = """
import sys


class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("libtorch.so: file too short", name=name)


sys.meta_path.insert(0, NoTorch())
"""


class Ran(NamedTuple):
    """How one run of the program ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its output, which must be one JSON object and nothing else."""
        return json.loads(self.out)


Program = Callable[..., Ran]


def environment(folder: Path, path: tuple[Path, ...], settings: dict[str, str]) -> dict[str, str]:
    """This environment without settings of Mainboard's, and with `path` before the packages."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("VLLM_", "MAINBOARD_", "NO_COLOR"))
    }
    places = [*map(str, path), kept.get("PYTHONPATH", "")]
    own = {"PYTHONPATH": os.pathsep.join(filter(None, places)), "MAINBOARD_CACHE": "0"}
    return kept | own | {"HOME": str(folder)} | settings


@pytest.fixture(scope="session")
def mainboard(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """Run `python -m mainboard` from a folder that has nothing to do with it."""

    def run(*arguments: str, path: tuple[Path, ...] = (), **settings: str) -> Ran:
        folder = tmp_path_factory.mktemp("elsewhere")
        result = subprocess.run(
            [sys.executable, "-P", "-m", "mainboard", *arguments],
            capture_output=True,
            check=False,
            text=True,
            timeout=300,
            stdin=subprocess.DEVNULL,
            cwd=folder,
            env=environment(folder, path, settings),
        )
        return Ran(result.returncode, result.stdout, result.stderr)

    return run


@pytest.fixture
def without_torch(tmp_path: Path) -> Path:
    """A folder for the path with which torch cannot be imported."""
    folder = tmp_path / "without_torch"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(BLOCK_TORCH)
    return folder


@pytest.fixture
def plugin(tmp_path: Path) -> Callable[..., Path]:
    """Make a folder for the path with distribution `acme-plugin` 1.5, whose plugin runs a body."""

    def make(body: str, group: str = "vllm.general_plugins") -> Path:
        folder = tmp_path / "acme"
        info = folder / "acme_plugin-1.5.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-plugin\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(f"[{group}]\nacme = acme:register\n")
        lines = "".join(f"    {line}\n" for line in body.splitlines())
        (folder / "acme.py").write_text(f"def register():\n{lines}")
        return folder

    return make
