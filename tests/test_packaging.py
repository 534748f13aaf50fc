"""What ships: sdist, wheel and a zip of the repository, installed and used without the sources.

The archives are built here without the compiled kernels, which takes seconds; the reference serves
the operators. `MAINBOARD_WHEEL` names a complete wheel to test in the same way.
"""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WHEEL = os.environ.get("MAINBOARD_WHEEL")

pytestmark = pytest.mark.install

USE = """
import os, sys
import torch
import mainboard, mainboard.build_info
from mainboard.kernels import attention, status
from mainboard.platforms import current_platform

assert os.path.dirname(os.path.dirname(mainboard.__file__)) == sys.argv[1], mainboard.__file__
q = torch.randn(3, 2, 64)
offsets = torch.tensor([0, 3], dtype=torch.int32)
out = attention(q, q, q, cu_seqlens_q=offsets, cu_seqlens_k=offsets, max_seqlen_q=3, max_seqlen_k=3)
expected = torch.nn.functional.scaled_dot_product_attention(
    *[q.transpose(0, 1)] * 3, is_causal=True
).transpose(0, 1)
torch.testing.assert_close(out, expected)
print(current_platform.device_name, status()["level"], len(mainboard.build_info.libraries()))
"""


def command(*words: str | Path, cwd: Path, **settings: str) -> str:
    """Run a program of this Python without what the environment says about packages."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name != "PYTHONPATH" and not name.startswith(("MAINBOARD_", "VLLM_"))
    }
    ran = subprocess.run(
        [sys.executable, "-P", *words],
        capture_output=True,
        check=False,
        text=True,
        cwd=cwd,
        env=environment | settings,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def pip_wheel(source: Path, into: Path) -> Path:
    """Build a wheel from a source folder or archive; nothing is fetched, nothing compiled."""
    flags = ["--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    words = ["-m", "pip", "wheel", *flags, "--wheel-dir", into, source]
    command(*words, cwd=into, MAINBOARD_BUILD_KERNELS="0")
    (wheel,) = into.glob("*.whl")
    return wheel


def install_and_use(wheel: Path, folder: Path) -> str:
    """Install a wheel in a folder of its own, and run an operator from an empty one."""
    target, elsewhere = folder / "installed", folder / "elsewhere"
    elsewhere.mkdir()
    flags = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    command("-m", "pip", "install", *flags, "--target", target, wheel, cwd=elsewhere)
    return command("-c", USE, target, cwd=elsewhere, PYTHONPATH=str(target)).strip()


def copy_of_the_sources(into: Path) -> Path:
    """The files that git tracks or would track, as they are now."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    ran = subprocess.run(listed, capture_output=True, check=False, cwd=ROOT)
    if ran.returncode != 0:
        pytest.skip("this is no git checkout")
    for name in filter(None, ran.stdout.decode().split("\0")):
        source, copy = ROOT / name, into / name
        if not source.exists():
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            # As zip archives and systems without links have them: a file that holds the target.
            copy.write_text(str(source.readlink()))
        else:
            copy.write_bytes(source.read_bytes())
            copy.chmod(source.stat().st_mode)
    return into


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository in which links are text files."""
    return copy_of_the_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def sdist(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution."""
    folder = tmp_path_factory.mktemp("sdist")
    build = f"import setuptools.build_meta as b; b.build_sdist({str(folder)!r})"
    command("-c", build, cwd=sources)
    (archive,) = folder.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from the sdist."""
    return pip_wheel(sdist, tmp_path_factory.mktemp("wheel"))


def test_the_sdist_mirrors_the_repository(sources: Path, sdist: Path) -> None:
    """Every source, test and document that is in the repository is in the sdist."""
    with tarfile.open(sdist) as archive:
        shipped = {name.partition("/")[2] for name in archive.getnames()}
    kept = ("kernels", "platforms", "plugins", "csrc", "tests", "docs", "examples", "benchmarks")
    files = [path for folder in kept for path in (sources / folder).rglob("*") if path.is_file()]
    expected = {path.relative_to(sources).as_posix() for path in files}
    assert expected - shipped == set()
    assert {"setup.py", "pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE"} <= shipped
    assert len(expected) > 100


def test_a_wheel_from_the_sdist_works_alone(wheel: Path, tmp_path: Path) -> None:
    """Sdist to wheel to installation: an operator runs, with no source in reach."""
    assert install_and_use(wheel, tmp_path).endswith("reference 0")


def test_a_zip_of_the_repository_installs(sources: Path, tmp_path: Path) -> None:
    """`pip install repository.zip` works, though links in it are text files."""
    archive = tmp_path / "repository.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sources.rglob("*"):
            file.write(path, Path("repository") / path.relative_to(sources))
    (tmp_path / "wheel").mkdir()
    built = pip_wheel(archive, tmp_path / "wheel")
    assert install_and_use(built, tmp_path).endswith("reference 0")


def names_in(wheel: Path) -> list[str]:
    """The files of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    """One top-level package with all its rooms; no tests, no sources of libraries, no links."""
    names = names_in(wheel)
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"mainboard"}
    parts = {part for name in names for part in Path(name).parts}
    assert not parts & {"tests", "csrc", "benchmarks", "examples", "docs", "setup.py"}
    rooms = {f"mainboard/{room}/__init__.py" for room in ("kernels", "platforms", "plugins", "cli")}
    assert rooms | {"mainboard/py.typed"} <= set(names)


def test_every_module_of_the_sources_is_in_the_wheel(sources: Path, wheel: Path) -> None:
    """No package was forgotten in the mapping from folders to packages."""
    homes = {"mainboard/": sources / "src" / "mainboard"}
    homes |= {f"mainboard/{room}/": sources / room for room in ("kernels", "platforms", "plugins")}
    expected = {
        prefix + path.relative_to(home).as_posix()
        for prefix, home in homes.items()
        for path in home.rglob("*.py")
    }
    assert expected == {name for name in names_in(wheel) if name.endswith(".py")}


@pytest.mark.skipif(WHEEL is None, reason="MAINBOARD_WHEEL names no complete wheel")
def test_the_complete_wheel_works_alone(tmp_path: Path) -> None:
    """The wheel with the compiled kernels runs an operator through them, and is small."""
    assert WHEEL is not None
    wheel = Path(WHEEL)
    libraries = sum(name.endswith(".so") for name in names_in(wheel))
    assert libraries >= 1
    assert install_and_use(wheel, tmp_path).endswith(f"compiled {libraries}")
    assert "-abi3-" in wheel.name
    assert wheel.stat().st_size < 25e6
