"""The shape of the repository: folders, links, and which way imports and names point."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mainboard
from mainboard import errors

ROOT = Path(__file__).parents[1]
ROOMS = ("kernels", "platforms", "plugins")
VENDORS = ("cuda", "rocm", "xpu", "tpu", "hip", "nvidia", "amd")

# A question that only the platform's own module may ask, and let its answer decide.
_NAMES = "|".join(VENDORS)
ASKS_VENDOR = re.compile(
    rf"\bis_({_NAMES})(_alike)?\(|PlatformEnum\.[A-Z]+\b|[!=]= [\"']({_NAMES})[\"']"
)


def run(program: str, *flags: str, cwd: Path = ROOT) -> str:
    """What a program in a fresh interpreter prints, with `cwd` on its path unless flags say no."""
    command = [sys.executable, *flags, "-c", program]
    unsafe = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    ran = subprocess.run(command, capture_output=True, check=False, text=True, cwd=cwd, env=unsafe)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def package_files() -> Iterator[Path]:
    """Every Python file of the package, by its real path in the repository."""
    for folder in (*ROOMS, "src/mainboard"):
        for path in (ROOT / folder).rglob("*.py"):
            if not any(part.is_symlink() for part in path.parents):
                yield path


@pytest.mark.parametrize("room", ROOMS)
def test_a_link_leads_to_each_room(room: str) -> None:
    """Editors find each room under src/mainboard; in a zip's checkout the link is a text file."""
    link = ROOT / "src" / "mainboard" / room
    target = f"../../{room}"
    if link.is_symlink():
        assert link.readlink() == Path(target)
        assert link.resolve() == ROOT / room
    else:
        assert link.read_text().strip() == target
    assert (ROOT / room / "__init__.py").is_file()


def test_setup_maps_every_room() -> None:
    """The build takes each room from its real folder, not through a link."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    (homes,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "HOMES"
    ]
    rooms = {f"mainboard.{room}": room for room in ROOMS}
    assert homes == {"mainboard": "src/mainboard"} | rooms


def test_the_checkout_offers_no_bare_folder() -> None:
    """A program in the checkout that uses Mainboard imports no `kernels` and the like."""
    program = (
        "import sys\n"
        "import mainboard.kernels.ops, mainboard.plugins\n"
        "from mainboard.platforms import current_platform\n"
        "mainboard.plugins.load_general_plugins()\n"
        "print(*sys.modules)\n"
    )
    loaded = set(run(program).split())
    assert "mainboard.kernels.ops" in loaded
    assert not loaded & {*ROOMS, "src", "csrc", "tests"}


def test_each_file_is_one_module() -> None:
    """No file of the package is loaded under two names, though links give it two paths."""
    program = (
        "import os, sys\n"
        "import mainboard.kernels.ops, mainboard.plugins, mainboard.platforms.cpu\n"
        "files = [os.path.realpath(m.__file__) for n, m in sys.modules.items()\n"
        "         if n.partition('.')[0] == 'mainboard' and m.__file__]\n"
        "print(len(files), len(set(files)))\n"
    )
    loaded, distinct = map(int, run(program, "-P").split())
    assert loaded == distinct > 10


@pytest.mark.parametrize(
    "module", ["mainboard", "mainboard.plugins", "mainboard.platforms", "mainboard.kernels"]
)
def test_importing_a_room_does_not_import_torch(module: str) -> None:
    """Importing the package or a room leaves torch alone."""
    assert run(f"import sys, {module}; print('torch' in sys.modules)", "-P").strip() == "False"


def test_imports_are_absolute() -> None:
    """No relative import: with links in the tree it would give one file two identities."""
    for path in package_files():
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.ImportFrom) and node.level), path


def test_only_a_vendors_module_asks_for_the_vendor() -> None:
    """Outside platforms/<vendor>*.py nothing branches on which vendor's device this is."""
    allowed = {"interface.py", "values.py"}  # where the questions themselves are defined
    asked = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in package_files()
        if path.name not in allowed and not path.name.startswith((*VENDORS, "cpu"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if ASKS_VENDOR.search(line)
    ]
    assert asked == []


def test_the_vendor_rule_sees_what_it_should() -> None:
    """The pattern finds the calls it is for, and leaves torch's own names alone."""
    for line in (
        "if p.is_cuda():",
        "p.is_cuda_alike()",
        "p._enum is PlatformEnum.ROCM",
        'x == "cuda"',
    ):
        assert ASKS_VENDOR.search(line)
    assert not ASKS_VENDOR.search("if tensor.is_cuda:")


def test_every_error_is_exported() -> None:
    """`mainboard.errors.__all__` names every error of the module, in order."""
    defined = [
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception)
    ]
    assert list(errors.__all__) == sorted(defined)


def test_every_error_has_one_root_and_stands_in_the_tree() -> None:
    """Every error derives from MainboardError, and the module's docstring shows it."""
    for name in errors.__all__:
        assert issubclass(getattr(errors, name), errors.MainboardError)
        assert re.search(rf"\b{name}\b", errors.__doc__)


def test_the_face_offers_what_it_says() -> None:
    """Every name of `mainboard.__all__` is there, and an unknown one is an AttributeError."""
    for name in mainboard.__all__:
        assert getattr(mainboard, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = mainboard.no_such_name


def test_the_version_is_said_once() -> None:
    """pyproject.toml and the package name the same version."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == mainboard.__version__


def test_imports_point_one_way() -> None:
    """The contract on imports in pyproject.toml is kept."""
    lint = pytest.importorskip("importlinter.cli", reason="import-linter is not installed")
    program = f"import sys; from {lint.__name__} import lint_imports; sys.exit(lint_imports())"
    ran = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, check=False, text=True, cwd=ROOT
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "1 kept, 0 broken" in ran.stdout


def test_no_module_is_long() -> None:
    """No module of the package exceeds 450 lines."""
    lengths = {path: len(path.read_text().splitlines()) for path in package_files()}
    assert {path: lines for path, lines in lengths.items() if lines > 450} == {}


def test_sources_and_tests_are_no_packages() -> None:
    """The tests are files, not a package, and no conftest.py at the root puts it on the path."""
    packages = {path.relative_to(ROOT).parts for path in (ROOT / "tests").rglob("__init__.py")}
    assert [parts for parts in packages if "projects" not in parts] == []
    assert not (ROOT / "conftest.py").exists()


def test_test_files_have_names_of_their_own() -> None:
    """No two test files share a name, so that a report's line names one file."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
    assert len(names) > 5
