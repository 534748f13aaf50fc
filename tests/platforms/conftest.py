"""Machines that nobody here has, from their recorded files, and a pynvml that is a mock.

The mock stands for hardware and drivers that are not here; what it answers is written in each
test. It is a real module in a real folder, imported by the same child process as the real one.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from mainboard.platforms.machine import Machine

RECORDS = Path(__file__).parent / "machines"

TWO_DEVICES: list[dict[str, Any]] = [
    {"name": "NVIDIA A100", "uuid": "GPU-aaaa1111-0", "capability": (8, 0), "memory": 80 << 30},
    {"name": "NVIDIA L4", "uuid": "GPU-bbbb2222-1", "capability": (8, 9), "memory": 24 << 30},
]

MOCK_PYNVML = """
import time
class NVMLError(Exception): pass
class NVMLError_NotSupported(NVMLError): pass
class NVMLError_NotFound(NVMLError): pass
class NVMLError_FunctionNotFound(NVMLError): pass
class NVMLError_LibraryNotFound(NVMLError): pass
class NVMLError_DriverNotLoaded(NVMLError): pass
class NVMLError_LibRmVersionMismatch(NVMLError): pass
class NVMLError_NoPermission(NVMLError): pass
class NVMLError_GpuIsLost(NVMLError): pass
class NVMLError_Unknown(NVMLError): pass
DEVICES = {devices!r}
class _Of:
    def __init__(self, **values): self.__dict__.update(values)
def nvmlInit():
    {on_init}
def nvmlSystemGetDriverVersion(): return b"580.65.06"
def nvmlSystemGetCudaDriverVersion(): return {cuda}
def nvmlDeviceGetCount(): return len(DEVICES)
def nvmlDeviceGetHandleByIndex(index):
    if DEVICES[index].get("lost"): raise NVMLError_GpuIsLost("GPU is lost")
    return DEVICES[index]
def nvmlDeviceGetName(device): return device["name"]
def nvmlDeviceGetUUID(device): return device["uuid"]
def nvmlDeviceGetAttributes(device): return _Of(multiprocessorCount=device["multiprocessors"])
def nvmlDeviceGetTopologyCommonAncestor(first, second): return 50
def nvmlDeviceGetP2PStatus(first, second, index):
    return 0 if second["uuid"] in first.get("nvlink", ()) or index == 0 else 4
def nvmlDeviceGetCudaComputeCapability(device): return device["capability"]
def nvmlDeviceGetPciInfo(device): return _Of(busId="00000000:%02X:00.0" % DEVICES.index(device))
def nvmlDeviceGetMemoryInfo(device):
    if device["memory"] is None: raise NVMLError_NotSupported("Not Supported")
    return _Of(total=device["memory"], free=device["memory"] // 2)
def nvmlDeviceGetMigMode(device):
    if "mig" not in device: raise NVMLError_NotSupported("Not Supported")
    return [1, 1]
def nvmlDeviceGetMaxMigDeviceCount(device): return 7
def nvmlDeviceGetMigDeviceHandleByIndex(device, number):
    if number not in device["mig"]: raise NVMLError_NotFound("Not Found")
    return dict(device["mig"][number], memory=5 << 30, name="MIG 1g.5gb", multiprocessors=14)
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

    def __init__(self, folder: Path) -> None:
        self.folder = folder
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
        on_init: str = "pass",
        cuda: int = 13000,
    ) -> None:
        """Install the mock; `on_init` is the statement that its initialisation runs."""
        text = MOCK_PYNVML.format(devices=list(devices), on_init=on_init, cuda=cuda)
        (self.site / "pynvml.py").write_text(text)


@pytest.fixture
def machines(tmp_path: Path) -> MachineMaker:
    """A maker of machines in this test's own folder."""
    return MachineMaker(tmp_path)


@pytest.fixture
def two_devices() -> list[dict[str, Any]]:
    """Two unequal devices for the mock."""
    return [dict(device) for device in TWO_DEVICES]


@pytest.fixture
def on_machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[Machine], None]:
    """Make every platform of this test believe that it runs on the given machine."""

    def install(machine: Machine) -> None:
        for module in ("cuda", "rocm", "cpu", "interface"):
            monkeypatch.setattr(f"mainboard.platforms.{module}.this_machine", lambda: machine)

    return install
