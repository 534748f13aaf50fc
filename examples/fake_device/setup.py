"""Compile the fake device against the headers of the torch that is installed."""

import os
from pathlib import Path

# The device is no part of what compiling needs, and an older one may be installed.
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

SOURCES = sorted(path.as_posix() for path in Path("csrc").glob("*.cpp"))

setup(
    ext_modules=[CppExtension("fake_device._C", SOURCES, extra_compile_args=["-O1", "-g0"])],
    cmdclass={"build_ext": BuildExtension},
)
