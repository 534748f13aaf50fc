"""Machines that nobody here has, from their recorded files, and stubs of vendors' libraries in C.

The stubs stand for hardware and drivers that are not here; what they answer, or that they never
answer, is written in each test. They are real libraries, loaded by the same child process as the
real ones, in whose place the loader finds them.
"""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from mainboard.platforms.cuda import CudaPlatform, NonNvmlCudaPlatform
from mainboard.platforms.machine import Machine
from mainboard.platforms.rocm import RocmPlatform

RECORDS = Path(__file__).parent / "machines"

TWO_DEVICES: list[dict[str, Any]] = [
    {"name": "NVIDIA A100", "uuid": "GPU-aaaa1111-0", "capability": (8, 0), "memory": 80 << 30},
    {"name": "NVIDIA L4", "uuid": "GPU-bbbb2222-1", "capability": (8, 9), "memory": 24 << 30},
]

# What stands for AMD's Python package: it calls the stub, as the real one calls its library.
MOCK_AMDSMI = """
import ctypes
library = ctypes.CDLL("libamd_smi.so")
def amdsmi_init():
    code = library.amdsmi_init(ctypes.c_uint64(2))
    if code: raise RuntimeError(f"AMDSMI_STATUS {{code}}")
def amdsmi_get_processor_handles(): return [0, 1]
def amdsmi_get_gpu_vram_usage(handle): return {{"vram_total": 196592, "vram_used": 300}}
def amdsmi_get_gpu_device_bdf(handle): return {addresses}[handle]
def amdsmi_get_gpu_asic_info(handle):
    name = ctypes.create_string_buffer(64)
    library.amdsmi_market_name(handle, name, 64)
    return {{"market_name": name.value.decode()}}
"""


class RecordedMachine(Machine):
    """A machine whose files were written into a folder; permissions are recorded beside them."""

    def __init__(self, root: Path, record: Mapping[str, Any], import_path: Sequence[str]) -> None:
        super().__init__(
            root,
            dict(record.get("environ", {})),
            architecture=record.get("architecture", "x86_64"),
            system=record.get("system", "linux"),
            import_path=import_path,
        )
        self.denied = set(record.get("denied", ()))

    def may_use(self, name: str) -> bool:
        """Whether the record does not deny it: tests may run as a user who may do everything."""
        return name.lstrip("/") not in self.denied and super().may_use(name)


class MachineMaker:
    """Builds machines in a folder, and the packages that are installed on them."""

    def __init__(self, folder: Path, stubs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.stubs, self.monkeypatch = folder, stubs, monkeypatch
        self.site = folder / "site"
        self.site.mkdir()
        self.count = 0

    def from_record(self, name: str, **changes: Any) -> RecordedMachine:
        """The machine of a record, with some of its parts replaced."""
        return self.build({**self.record(name), **changes})

    def record(self, name: str) -> dict[str, Any]:
        """One file of tests/platforms/machines."""
        record: dict[str, Any] = json.loads((RECORDS / f"{name}.json").read_text("utf-8"))
        return record

    def build(self, record: Mapping[str, Any]) -> RecordedMachine:
        """The machine of a record that a test wrote itself."""
        self.count += 1
        root = self.folder / f"root{self.count}"
        root.mkdir()
        for name, content in record["files"].items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = content if isinstance(content, str) else "".join(f"{x}\n" for x in content)
            path.write_text(lines, "utf-8")
        return RecordedMachine(root, record, [str(self.site)])

    def install_torch(self, cuda: str | None = None, hip: str | None = None) -> None:
        """Install a torch that is only the file in which it says what it was built for."""
        package = self.site / "torch"
        package.mkdir(exist_ok=True)
        (package / "__init__.py").write_text("raise AssertionError('torch was imported')\n")
        (package / "version.py").write_text(
            "from typing import Optional\n\n"
            "__all__ = ['__version__', 'debug', 'cuda', 'git_version', 'hip', 'xpu']\n"
            "__version__ = '2.13.0+test'\ndebug = False\n"
            f"cuda: Optional[str] = {cuda!r}\ngit_version = 'abc'\nhip: Optional[str] = {hip!r}\n"
        )

    def install_nvml(
        self,
        devices: Sequence[Mapping[str, Any]] = (),
        init: str = "0",
        cuda: int = 13000,
        more: Sequence[str] = (),
    ) -> None:
        """Install the stub of NVML with these devices; `init` is what its start does."""
        lines = [f"init {init}", f"driver 580.65.06 {cuda}", *more]
        for device in devices:
            major, minor = device["capability"]
            memory = device["memory"] or 0
            lines.append(f"device {device['uuid']} {major} {minor} {memory} {device['name']}")
            lines += ["lost 15"] if device.get("lost") else []
            if "mig" in device:
                lines.append("divided")
                for place, part in device["mig"].items():
                    lines.append(f"slice {place} {part} {5 << 30} 14 MIG 1g.5gb")
        self.install_stub("nvml", "\n".join(lines))

    def install_stub(self, name: str, behaviour: str) -> None:
        """Let the loader find a stub of a vendor's library, and say how it behaves."""
        self.monkeypatch.setenv("LD_LIBRARY_PATH", str(self.stubs / name), prepend=":")
        self.monkeypatch.setenv(f"STUB_{name.upper()}", behaviour)

    def install_amdsmi(self, behaviour: str, addresses: Sequence[str]) -> None:
        """Install AMD's package and the stub of its library."""
        package = self.site / "amdsmi"
        package.mkdir()
        (package / "__init__.py").write_text(MOCK_AMDSMI.format(addresses=list(addresses)))
        self.install_stub("amdsmi", behaviour)


@pytest.fixture(scope="session")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the stubs, compiled."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("stubs")
    names = {"nvml": "libnvidia-ml.so.1", "cuda": "libcuda.so.1", "amdsmi": "libamd_smi.so"}
    for source, library in names.items():
        file = Path(__file__).parent / "stubs" / f"{source}.c"
        (folder / source).mkdir()
        output = str(folder / source / library)
        command = [compiler, "-shared", "-fPIC", "-w", "-o", output, str(file)]
        subprocess.run(command, check=True)
    return folder


@pytest.fixture
def machines(tmp_path: Path, stubs: Path, monkeypatch: pytest.MonkeyPatch) -> MachineMaker:
    """A maker of machines in this test's own folder."""
    return MachineMaker(tmp_path, stubs, monkeypatch)


@pytest.fixture
def two_devices() -> list[dict[str, Any]]:
    """Two unequal devices for the stub."""
    return [dict(device) for device in TWO_DEVICES]


@pytest.fixture
def on_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Machine], None]]:
    """Make every platform of this test believe that it runs on the given machine."""

    def install(machine: Machine) -> None:
        for module in ("cuda", "rocm", "cpu", "interface"):
            monkeypatch.setattr(f"mainboard.platforms.{module}.this_machine", lambda: machine)
        forget()

    def forget() -> None:
        for cls in (CudaPlatform, NonNvmlCudaPlatform, RocmPlatform):
            cls.forget_answers()

    yield install
    monkeypatch.undo()
    forget()


@pytest.fixture
def second_first(
    machines: MachineMaker, two_devices: list[dict[str, Any]], on_machine: Callable[[Machine], None]
) -> Callable[..., None]:
    """A machine of the stub's two devices, the second of which is visible as the first."""

    def install(**second: Any) -> None:
        machines.install_nvml([two_devices[0], {**two_devices[1], **second}])
        environ = {"CUDA_VISIBLE_DEVICES": "1,0"}
        on_machine(machines.from_record("nvidia-two-gpus", environ=environ))

    return install
