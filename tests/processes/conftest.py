"""Distributions in the shapes of real plugins, and programs that start processes with them."""

import json
import os
import subprocess
import sys
import time
import tomllib
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

HERE = Path(__file__).parent
SHAPES: dict[str, dict[str, Any]] = tomllib.loads((HERE / "shapes.toml").read_text())


class Ended(NamedTuple):
    """How a program ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The last line of its output."""
        assert self.code == 0, self.err
        return json.loads(self.out.splitlines()[-1])


Program = Callable[..., Ended]


def install(site: Path, module: str, group: str, entry: str) -> None:
    """Leave in `site` what pip leaves there of a distribution with one module."""
    info = site / f"{module}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{module} = {entry}\n")
    (site / f"{module}.py").write_text((HERE / "shapes" / f"{module}.py").read_text())


@pytest.fixture(scope="session")
def general_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every general plugin, and one that needs vLLM's engine."""
    site = tmp_path_factory.mktemp("general")
    entries = {name: shape["entry"] for name, shape in SHAPES.items()}
    entries["shape_patches_engine"] = "shape_patches_engine:register"
    for name, entry in entries.items():
        install(site, name, "vllm.general_plugins", entry)
    return site


@pytest.fixture(scope="session")
def platform_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the one platform plugin."""
    site = tmp_path_factory.mktemp("platform")
    install(site, "shape_platform", "vllm.platform_plugins", "shape_platform:register")
    return site


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """Run one of programs/ with the given folders on the path."""

    def run(
        name: str, *arguments: str, path: tuple[Path, ...], strict: bool = True, **more: str
    ) -> Ended:
        command = [sys.executable, "-P", *(("-W", "error") if strict else ())]
        command += [str(HERE / "programs" / name), *arguments]
        ran = subprocess.run(
            command,
            capture_output=True,
            check=False,
            text=True,
            timeout=600,
            cwd=tmp_path_factory.mktemp("elsewhere"),
            env=environment(path, **more),
        )
        return Ended(ran.returncode, ran.stdout, ran.stderr)

    return run


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Callable[..., Any]:
    """Compute something slow in one worker of a parallel run, and let the others read it."""
    base = tmp_path_factory.getbasetemp()
    root = base if worker_id == "master" else base.parent

    def once(name: str, compute: Callable[[], Any]) -> Any:
        folder = root / f"once-{name}"
        answer = folder / "answer.json"
        try:
            folder.mkdir()
        except FileExistsError:
            deadline = time.monotonic() + 900
            while not answer.exists():
                assert time.monotonic() < deadline, f"another worker did not finish {name}"
                time.sleep(0.1)
        else:
            draft = folder / "draft.json"
            draft.write_text(json.dumps(_attempt(compute)))
            draft.rename(answer)
        found, failure = json.loads(answer.read_text())
        assert failure is None, failure
        return found

    return once


def _attempt(compute: Callable[[], Any]) -> tuple[Any, str | None]:
    """The result, or how it failed: the workers that wait for it must hear of that too."""
    try:
        return compute(), None
    except Exception as error:  # noqa: BLE001
        return None, "".join(traceback.format_exception(error))


def environment(path: tuple[Path, ...], **more: str) -> dict[str, str]:
    """This environment without settings of Mainboard's, with `path` before the packages."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("VLLM_", "MAINBOARD_", "SHAPE_", "RAY_"))
    }
    places = [str(HERE / "programs"), *map(str, path), kept.get("PYTHONPATH", "")]
    own = {"PYTHONPATH": os.pathsep.join(filter(None, places)), "MAINBOARD_CACHE": "0"}
    return kept | own | more
