"""What NVIDIA's platform must hold on a real device, checked at the driver and written down.

Each check is a fresh process. What comes out, in the folder that is given:

- `doctor.json` and `machine.json`: what `mainboard doctor --json` and `env --record` say here;
- `checks.json`: after the platform is resolved and every property read, no CUDA context exists and
  no library of the driver is loaded; a child forked then uses CUDA; `CUDA_VISIBLE_DEVICES` that
  is changed after import is honoured; every setting of it that is tried means the devices that
  CUDA's driver gives a fresh process; what NVML and CUDA say of each device, and of each pair, is
  what torch says;
- `queries.md`: what each question costs.

    python benchmarks/cuda_platform_check.py FOLDER
"""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
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

# The driver is loaded only after all was read, to ask it what this process has. At the end a context
# is made, which the same questions must show.
CONTEXT = f"""
import ctypes, json, os, subprocess, sys
{READ_ALL}
def listed():
    command = ["nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True).stdout.split()
maps = open("/proc/self/maps").read()
loaded = [name for name in ("libcuda", "libnvidia-ml", "libtorch") if name in maps]
processes = listed()
cuda = ctypes.CDLL("libcuda.so.1")
context, flags, active = ctypes.c_void_p(), ctypes.c_uint(), ctypes.c_int(-1)
def states():
    return [[cuda.cuDevicePrimaryCtxGetState(n, ctypes.byref(flags), ctypes.byref(active)), active.value]
        for n in range(p.device_count())]
before = cuda.cuCtxGetCurrent(ctypes.byref(context))
cuda.cuInit(0)
after = cuda.cuCtxGetCurrent(ctypes.byref(context))
said = {{
    "chosen": selection().chosen.name, "loaded_libraries": loaded, "torch_imported": "torch" in sys.modules,
    "cuCtxGetCurrent_before_cuInit": before, "cuCtxGetCurrent": [after, context.value],
    "primary_context_states": states(), "in_nvidia_smi": str(os.getpid()) in processes,
}}
cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
said["with_a_context"] = {{"primary_context_states": states(),
    "in_nvidia_smi": str(os.getpid()) in listed(), "new_in_nvidia_smi": len(listed()) - len(processes)}}
print(json.dumps(said))
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
def said(by):
    return [{"name": by.get_device_name(n), "uuid": by.get_device_uuid(n),
        "capability": list(by.get_device_capability(n)), "multiprocessors": by.num_compute_units(n),
        "memory": by.get_device_total_memory(n)} for n in range(by.device_count())]
nvml, driver, links = said(p), said(q), [link._asdict() for link in p.links()]
driver_links = [link._asdict() for link in q.links()]
connected = p.is_fully_connected(list(range(p.device_count())))
free = [p.get_device_memory_info(n) for n in range(p.device_count())]
import torch
numbers = range(torch.cuda.device_count())
def torchs(t):
    return {"name": t.name, "uuid": f"GPU-{t.uuid}", "capability": [t.major, t.minor],
        "multiprocessors": t.multi_processor_count, "memory": t.total_memory}
print(json.dumps({"nvml": nvml, "driver": driver,
    "torch": [torchs(torch.cuda.get_device_properties(n)) for n in numbers],
    "links": links, "links_without_nvml": driver_links, "fully_connected": connected,
    "peers": [[a, b, p.can_access_peer(a, b)] for a in numbers for b in numbers if a != b],
    "torch_peers": [[a, b, torch.cuda.can_device_access_peer(a, b)]
        for a in numbers for b in numbers if a != b],
    "free": free, "torch_free": [torch.cuda.mem_get_info(n) for n in numbers],
    "versions": p.versions()}))
"""

# Settings of the control variable, with `{0}` and `{1}` for the ids of the first and last device.
SETTINGS = [
    # numbers
    "", "0", "1", "1,0", "0,1", "99", "-1", "0,99,1", "0,-1,1", "0,0", "1,0,1", "0,99,0", "0,-1,0",
    "0,x,0", "0,0,99", "0,1,2", "1,,0", ",0", "0,,1", "0,",
    # how numbers are written
    " 0", "0 ,1", " 1 , 0 ", "\t0", "0\n,1", "0;1", "0 1", "0x0", "0x1", "00", "01", "0,00", "0abc",
    "+0", "-0", "+ 0", "--0", "4294967296", "4294967297", "2147483648", "18446744073709551616",
    "-4294967295", "-99999999999999999999",
    # ids
    "{0}", "{1}", "{1},{0}", "{0},{0}", "{0},{1},0", "{1},0", "0,{1}", "0,{0},0", "MIG-{0}/0/0",
    "GPU-00000000-0000-0000-0000-000000000000,0",
    # how ids are written
    "{1:.12},{0:.12}", "{0:.5}", "GPU-", "{0:.39}", "{0},{0:.12}", "{1:.12},{1:.9}", "{0}x", "{0}ab",
    "{0:.8}zz", "{0} ,{1}", " {0}", "{0}\n", "{0:.12} ,{1}", "{0:.12}\n", "gpu{0}", "GPU-{0}",
    # no setting at all
    "NoDevFiles", "all", "none",
]  # fmt: skip

OURS = """
import json, os, sys
from mainboard.platforms import current_platform as p
answers = {}
for setting in json.loads(sys.argv[1]):
    os.environ["CUDA_VISIBLE_DEVICES"] = setting
    answers[setting] = [p.get_device_uuid(n) for n in range(p.device_count())]
print(json.dumps({"answers": answers}))
"""

DRIVERS = """
import ctypes, json
cuda, count, uuids = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(0), []
code = cuda.cuInit(0)
cuda.cuDeviceGetCount(ctypes.byref(count))
for number in range(count.value):
    raw = ctypes.create_string_buffer(16)
    cuda.cuDeviceGetUuid(raw, number)
    digits = raw.raw.hex()
    cut = [digits[a:b] for a, b in ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32))]
    uuids.append("GPU-" + "-".join(cut))
print(json.dumps({"cuInit": code, "devices": uuids}))
"""

PROGRAMS = {"context": CONTEXT, "fork": FORK, "visible": VISIBLE, "agrees": AGREES}


def run(*command: str, **environ: str) -> dict[str, Any]:
    """A process that prints one JSON object last; its object, or what went wrong."""
    start = time.perf_counter()
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        env={**os.environ, **environ},
    )
    seconds = round(time.perf_counter() - start, 3)
    try:
        return {"seconds": seconds, **json.loads(done.stdout.splitlines()[-1])}
    except (IndexError, ValueError):
        return {"seconds": seconds, "failed": done.stdout[-2000:] + done.stderr[-4000:]}


def settings() -> dict[str, Any]:
    """What each setting means here, and which devices CUDA's driver gives a process that has it."""
    found = run(sys.executable, "-c", DRIVERS, CUDA_DEVICE_ORDER="PCI_BUS_ID").get("devices", [])
    if not found:
        return {"failed": "CUDA's driver lists no device"}
    # Without a second device, a setting that names it means the first one again.
    texts = [text.format(found[0], found[-1]) for text in SETTINGS]
    texts = list(dict.fromkeys([*texts, found[0].upper(), found[0].lower()]))
    with ThreadPoolExecutor(8) as pool:
        asked = pool.map(
            lambda text: run(
                *(sys.executable, "-c", DRIVERS),
                CUDA_VISIBLE_DEVICES=text,
                CUDA_DEVICE_ORDER="PCI_BUS_ID",
            ).get("devices"),
            texts,
        )
        driver = dict(zip(texts, asked, strict=True))
    ours = run(sys.executable, "-c", OURS, json.dumps(texts)).get("answers", {})
    rows = {text: {"here": ours.get(text), "driver": driver[text]} for text in texts}
    differ = [text for text, row in rows.items() if row["here"] != row["driver"]]
    return {"devices": found, "rows": rows, "differ": differ}


def held(checks: dict[str, Any]) -> dict[str, bool]:
    """What each check comes to."""
    context, fork, agrees = checks["context"], checks["fork"], checks["agrees"]
    seen = [count for count, _ in checks["visible"].get("seen", ())]
    names = ("name", "uuid", "capability", "multiprocessors")
    said = [agrees.get(source) for source in ("nvml", "driver", "torch")]
    facts = [[[each[name] for name in names] for each in devices or ()] for devices in said]
    states = context.get("primary_context_states")
    return {
        "no CUDA context after every property": bool(states)
        and states == [[0, 0]] * len(states)
        and context["cuCtxGetCurrent"][1] is None,
        "a context would be seen": bool(states)
        and context["with_a_context"]["primary_context_states"][0] == [0, 1],
        "no driver library, no torch": context.get("loaded_libraries") == []
        and not context["torch_imported"],
        "not in nvidia-smi's list": context.get("in_nvidia_smi") is False,
        "a forked child uses CUDA": fork.get("child") == [45.0, 0] and fork["status"] == 0,
        "changed CUDA_VISIBLE_DEVICES is honoured": seen[1:] == [0, 0, 1, 1, 0, 1, *seen[:1]],
        "each setting means what the driver takes it for": checks["settings"].get("differ") == [],
        "NVML, the driver and torch agree": all(facts) and facts == [facts[0]] * len(facts),
        "access between devices is torch's": agrees.get("peers") is not None
        and agrees["peers"] == agrees["torch_peers"],
    }


def main() -> int:
    """Run everything; the exit code says whether every check holds."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    python = sys.executable
    checks: dict[str, Any] = {name: run(python, "-c", text) for name, text in PROGRAMS.items()}
    checks["settings"] = settings()
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
