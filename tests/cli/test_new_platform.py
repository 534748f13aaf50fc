"""`mainboard new-platform`: what it writes, what it refuses, and that its projects work."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = {
    ".github/workflows/ci.yml",
    ".gitignore",
    "README.md",
    "pyproject.toml",
    "src/blue_chip/__init__.py",
    "src/blue_chip/devices.py",
    "src/blue_chip/operators.py",
    "src/blue_chip/platform.py",
    "src/blue_chip/simulator.py",
    "tests/conftest.py",
    "tests/test_conformance.py",
    "tests/test_operators.py",
    "tests/test_selection.py",
}


@pytest.fixture(scope="module")
def project(mainboard, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project as the command writes it."""
    into = tmp_path_factory.mktemp("projects")
    ran = mainboard("new-platform", "blue_chip", "--into", str(into), "--json")
    assert set(ran.json["files"]) == FILES
    return into / "blue_chip"


def test_every_file_is_written_with_the_name_in_it(project: Path) -> None:
    """No placeholder is left, and each spelling of the name is where it belongs."""
    files = {path.relative_to(project).as_posix() for path in project.rglob("*") if path.is_file()}
    assert files == FILES
    texts = {name: (project / name).read_text() for name in FILES}
    assert [name for name, text in texts.items() if "${" in text.replace("${{", "")] == []
    assert "class BlueChipPlatform(Platform):" in texts["src/blue_chip/platform.py"]
    assert "BLUE_CHIP_VISIBLE_DEVICES" in texts["src/blue_chip/platform.py"]
    assert "${{ matrix.python }}" in texts[".github/workflows/ci.yml"]
    assert "Blue Chip" in texts["README.md"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Blue-Chip", "use lower-case letters, digits and _, for example blue_chip"),
        ("9", "use lower-case letters, digits and _"),
        ("xpu", "torch has devices called 'xpu'"),
        ("json", "'json' means something else in Python"),
        ("class", "'class' means something else in Python"),
    ],
)
def test_a_name_that_cannot_be_is_a_wrong_argument(mainboard, name: str, reason: str) -> None:
    """Exit status 2, with a name to use instead where there is one."""
    ran = mainboard("new-platform", name)
    assert ran.code == 2
    assert reason in " ".join(ran.err.split())


def test_a_folder_that_is_there_is_left_alone(mainboard, tmp_path: Path) -> None:
    """Nothing is overwritten, and the exit status is 1."""
    (tmp_path / "acme").mkdir()
    ran = mainboard("new-platform", "acme", "--into", str(tmp_path))
    assert ran.code == 1
    assert "is there already. Nothing was written" in " ".join(ran.out.split())
    assert list((tmp_path / "acme").iterdir()) == []


@pytest.mark.install
@pytest.mark.multiprocess
@pytest.mark.slow
def test_the_project_passes_its_own_tests(project: Path, tmp_path: Path) -> None:
    """Installed by pip beside Mainboard, with its conformance tests among them."""
    flags = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--no-compile"]
    site, copy = str(tmp_path / "site"), shutil.copytree(project, tmp_path / "blue_chip")
    command = [sys.executable, "-P", "-m", "pip", "install", *flags, "--target", site, str(copy)]
    subprocess.run(command, check=True, cwd=tmp_path)
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("VLLM_", "MAINBOARD_", "BLUE_CHIP_", "PYTEST_"))
    }
    paths = os.pathsep.join(filter(None, [site, kept.get("PYTHONPATH", "")]))
    ran = subprocess.run(
        [Path(sys.executable).with_name("pytest"), "-p", "no:cacheprovider", "-p", "no:xdist"],
        capture_output=True,
        check=False,
        text=True,
        cwd=copy,
        env=kept | {"PYTHONPATH": paths, "MAINBOARD_CACHE": "0"},
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "operators.py ..." in ran.stdout
    assert "test_conformance.py" in ran.stdout
