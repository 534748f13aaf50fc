"""What NVIDIA's platform must hold on a real device, checked at the driver and written down.

Each check is a fresh process. What comes out, in the folder that is given:

- `doctor.json` and `machine.json`: what `mainboard doctor --json` and `env --record` say here;
- `checks.json`: after the platform is resolved and every property read, no CUDA context exists and
  no library of the driver is loaded; a child forked then uses CUDA; `CUDA_VISIBLE_DEVICES` that
  is changed after import is honoured; what NVML and CUDA say is what torch says;
- `queries.md`: what each question costs.

    python benchmarks/cuda_platform_check.py FOLDER
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

# Every property that is promised not to start a device.
READ_ALL = """
from mainboard.platforms import current_platform as p, selection
p.describe(); p.links(); p.get_device_memory_info(); p.num_compute_units(); p.versions()
for number in range(p.device_count()):
    p.get_device_name(number); p.get_device_uuid(number); p.get_device_capability(number)
    p.get_device_total_memory(number); p.capabilities(number)
p.get_all_gpu_pci_bus_ids(); p.is_fully_connected([0]); p.is_pin_memory_available()
"""

# The driver is loaded only after all was read, to ask it what this process has.
CONTEXT = f"""
import ctypes, json, os, subprocess, sys
{READ_ALL}
maps = open("/proc/self/maps").read()
loaded = [name for name in ("libcuda", "libnvidia-ml", "libtorch") if name in maps]
listed = subprocess.run(
    ["nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader"],
    capture_output=True, text=True,
).stdout.split()
cuda = ctypes.CDLL("libcuda.so.1")
context, flags, active = ctypes.c_void_p(), ctypes.c_uint(), ctypes.c_int(-1)
before = cuda.cuCtxGetCurrent(ctypes.byref(context))
cuda.cuInit(0)
state = cuda.cuDevicePrimaryCtxGetState(0, ctypes.byref(flags), ctypes.byref(active))
after = cuda.cuCtxGetCurrent(ctypes.byref(context))
print(json.dumps({{
    "chosen": selection().chosen.name, "loaded_libraries": loaded, "torch_imported": "torch" in sys.modules,
    "cuCtxGetCurrent_before_cuInit": before, "cuCtxGetCurrent": [after, context.value],
    "primary_context_state": [state, active.value], "in_nvidia_smi": str(os.getpid()) in listed,
}}))
"""

FORK = f"""
import json, os
{READ_ALL}
read, write = os.pipe()
child = os.fork()
if child == 0:
    import torch
    total = float(torch.arange(10, device="cuda").sum())
    os.write(write, json.dumps([total, p.current_device()]).encode())
    os._exit(0)
os.close(write)
print(json.dumps({{"child": json.loads(os.read(read, 100) or "null"), "status": os.waitpid(child, 0)[1]}}))
"""

VISIBLE = """
import json, os
from mainboard.platforms import current_platform as p
uuid = p.get_device_uuid()
seen = [[p.device_count(), p.get_device_capability()]]
for setting in ("", "99", uuid, uuid[:12], "0,0", "0"):
    os.environ["CUDA_VISIBLE_DEVICES"] = setting
    seen.append([p.device_count(), p.get_device_capability()])
del os.environ["CUDA_VISIBLE_DEVICES"]
seen.append([p.device_count(), p.get_device_capability()])
import torch
os.environ["CUDA_VISIBLE_DEVICES"] = ""
print(json.dumps({"seen": seen, "torch_agrees_on_none": torch.cuda.device_count() == p.device_count()}))
"""

AGREES = """
import json
from mainboard.platforms import current_platform as p
from mainboard.platforms.cuda import NonNvmlCudaPlatform as q
before = {"name": p.get_device_name(), "uuid": p.get_device_uuid(),
    "capability": list(p.get_device_capability()), "multiprocessors": p.num_compute_units(),
    "memory": p.get_device_total_memory(), "count": p.device_count()}
driver = {"name": q.get_device_name(), "uuid": q.get_device_uuid(),
    "capability": list(q.get_device_capability()), "multiprocessors": q.num_compute_units(),
    "memory": q.get_device_total_memory(), "count": q.device_count()}
free = p.get_device_memory_info()
import torch
t = torch.cuda.get_device_properties(0)
torchs = {"name": t.name, "uuid": f"GPU-{t.uuid}", "capability": [t.major, t.minor],
    "multiprocessors": t.multi_processor_count, "memory": t.total_memory,
    "count": torch.cuda.device_count()}
print(json.dumps({"nvml": before, "driver": driver, "torch": torchs, "free": free,
    "torch_free": torch.cuda.mem_get_info(), "versions": p.versions()}))
"""

PROGRAMS = {"context": CONTEXT, "fork": FORK, "visible": VISIBLE, "agrees": AGREES}


def run(*command: str) -> dict[str, Any]:
    """A process that prints one JSON object last; its object, or what went wrong."""
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    seconds = round(time.perf_counter() - start, 3)
    try:
        return {"seconds": seconds, **json.loads(done.stdout.splitlines()[-1])}
    except (IndexError, ValueError):
        return {"seconds": seconds, "failed": done.stdout[-2000:] + done.stderr[-4000:]}


def held(checks: dict[str, Any]) -> dict[str, bool]:
    """What each check comes to."""
    context, fork = checks["context"], checks["fork"]
    seen = [count for count, _ in checks["visible"].get("seen", ())]
    names = ("name", "uuid", "capability", "multiprocessors", "count")
    said = [checks["agrees"].get(source, {}) for source in ("nvml", "driver", "torch")]
    return {
        "no CUDA context after every property": context.get("primary_context_state") == [0, 0]
        and context["cuCtxGetCurrent"][1] is None,
        "no driver library, no torch": context.get("loaded_libraries") == []
        and not context["torch_imported"],
        "not in nvidia-smi's list": context.get("in_nvidia_smi") is False,
        "a forked child uses CUDA": fork.get("child") == [45.0, 0] and fork["status"] == 0,
        "changed CUDA_VISIBLE_DEVICES is honoured": seen[1:] == [0, 0, 1, 1, 0, 1, seen[0]],
        "NVML, the driver and torch agree": all(said)
        and all(each[name] == said[0][name] for each in said for name in names),
    }


def main() -> int:
    """Run everything; the exit code says whether every check holds."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    python = sys.executable
    checks: dict[str, Any] = {name: run(python, "-c", text) for name, text in PROGRAMS.items()}
    checks["holds"] = held(checks)
    (folder / "checks.json").write_text(json.dumps(checks, indent=1) + "\n")
    for name, command in {
        "doctor.json": ["-m", "mainboard", "doctor", "--json", "--no-checks"],
        "queries.md": [str(HERE / "platform_queries.py")],
    }.items():
        done = subprocess.run([python, *command], capture_output=True, text=True, check=False)
        (folder / name).write_text(done.stdout or done.stderr)
    recording = ["-m", "mainboard", "env", "--record", str(folder)]
    subprocess.run([python, *recording], check=False, stdout=subprocess.DEVNULL, env=os.environ)
    print(json.dumps(checks["holds"], indent=1))
    return int(not all(checks["holds"].values()))


if __name__ == "__main__":
    raise SystemExit(main())
