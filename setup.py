"""Say where each package lives, and build the compiled kernels with CMake."""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

HOMES = {
    "mainboard": "src/mainboard",
    "mainboard.plugins": "plugins",
    "mainboard.platforms": "platforms",
    "mainboard.kernels": "kernels",
}


def packages() -> list[str]:
    """Every package under every home, by its dotted name; a link and its target are one."""
    below = (f"{package}.{sub}" for package, home in HOMES.items() for sub in find_packages(home))
    return sorted({*HOMES, *below})


class CMakeBuild(build_ext):
    """Configure, build and install the kernel libraries beside `mainboard.kernels`."""

    def get_ext_filename(self, fullname: str) -> str:
        """A plain shared object: it has no CPython API, so no interpreter in its name."""
        return os.path.join(*fullname.split(".")) + ".so"

    def build_extension(self, ext: Extension) -> None:
        """Let CMake write every library next to where setuptools expects this one."""
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve()
        # Fresh: pip built this folder before with another CMake, which is gone with its environment.
        configure = ["cmake", "--fresh", "-G", "Ninja", "-S", ".", "-B", str(build)]
        configure += ["-DCMAKE_BUILD_TYPE=Release", *os.environ.get("CMAKE_ARGS", "").split()]
        subprocess.check_call(configure)
        subprocess.check_call(["cmake", "--build", str(build)])
        subprocess.check_call(["cmake", "--install", str(build), "--prefix", str(target)])

    def copy_extensions_to_source(self) -> None:
        """For an editable install: every library, and what is written about it."""
        for file in Path(self.build_lib, "mainboard", "kernels").glob("libmainboard_*"):
            self.copy_file(str(file), HOMES["mainboard.kernels"])


# The libraries call torch's stable C ABI only; other systems run the reference in PyTorch.
COMPILED = sys.platform == "linux" and os.environ.get("MAINBOARD_BUILD_KERNELS", "1") != "0"

setup(
    packages=packages(),
    package_dir=HOMES,
    ext_modules=[Extension("mainboard.kernels.libmainboard_cpu", sources=[])] if COMPILED else [],
    cmdclass={"build_ext": CMakeBuild},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if COMPILED else {},
)
