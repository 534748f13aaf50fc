"""The fake device differs from the CPU where real devices do."""

import os
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.install


def test_its_memory_cannot_be_read_by_the_host(run: Callable[..., Any]) -> None:
    """A program that takes a device's address for the host's is killed, as elsewhere."""
    read = "import ctypes, torch; x = torch.ones(4, device='fake'); torch.fake.synchronize();"
    ran = run("-c", read + "ctypes.string_at(x.data_ptr(), 4)")
    assert ran.code == -11
    assert run("-c", read + "print(x.cpu())").out.strip() == "tensor([1., 1., 1., 1.])"


def test_nothing_happens_where_none_is_plugged_in(run: Callable[..., Any]) -> None:
    """Installing the package changes neither torch nor the choice of a platform."""
    program = (
        "import torch, mainboard.platforms as p;"
        "print(p.current_platform.device_type, hasattr(torch, 'fake'));"
        "print([v.code for v in p.survey() if v.name == 'fake'])"
    )
    ran = run("-c", program, FAKE_DEVICES="")
    assert ran.out.split("\n")[:2] == ["cpu False", "['plugin_declined']"], ran.err


PROGRAM = """
import torch
from concurrent.futures import ThreadPoolExecutor
fake = torch.fake

# Its memory has a limit, and comes back.
big = torch.empty(60 << 20, dtype=torch.uint8, device="fake")
try:
    torch.empty(5 << 20, dtype=torch.uint8, device="fake")
    raise SystemExit("more was given out than there is")
except torch.OutOfMemoryError as error:
    assert "fake:0 is out of memory: 5242880 bytes were asked for" in str(error), error
assert torch.empty(5 << 20, dtype=torch.uint8, device="fake:1").device.index == 1
del big
pieces = [torch.empty(1 << 20, dtype=torch.uint8, device="fake") for _ in range(64)]
del pieces[::2], pieces
torch.empty(60 << 20, dtype=torch.uint8, device="fake")  # the pieces are one again

# A tensor that is let go while a stream still reads it is not overwritten.
slow, out = fake.Stream(), torch.zeros(1 << 20, device="fake")
fake.synchronize()
source = torch.full((1 << 20,), 3.0, device="fake")
fake.synchronize()
with fake.stream(slow):
    for _ in range(50):
        out += source
del source
junk = [torch.full((1 << 20,), -1.0, device="fake") for _ in range(8)]
fake.synchronize()
assert out.eq(150).all(), out
del junk

# An error on the device is raised where the host waits, and once.
cache = torch.zeros(1, 16, 1, 32, device="fake")
key = torch.ones(1, 1, 32, device="fake")
slots = torch.zeros(1, dtype=torch.int64, device="fake")
import mainboard.kernels as kernels
kernels.reshape_and_cache(key, key, cache, cache.clone(), slots)
assert cache.sum() == 32

# Views, indexing, saving, and other dtypes.
x = torch.arange(24, device="fake").view(2, 3, 4)
assert x[:, 1:, ::2].tolist() == torch.arange(24).view(2, 3, 4)[:, 1:, ::2].tolist()
assert x.transpose(0, 2).contiguous().cpu().equal(torch.arange(24).view(2, 3, 4).transpose(0, 2))
assert x[torch.tensor([1])].cpu().equal(torch.arange(24).view(2, 3, 4)[[1]])
assert x.unfold(2, 2, 1).sum() == torch.arange(24).view(2, 3, 4).unfold(2, 2, 1).sum()
c = torch.tensor([1 + 2j], device="fake").conj()
assert c.cpu().resolve_conj().tolist() == [1 - 2j]
import io
file = io.BytesIO()
torch.save(x, file)
file.seek(0)
assert torch.load(file).device.type == "fake"
y = x.clone().resize_(5, 7)
assert y.flatten()[:24].tolist() == list(range(24))
p = torch.nn.Parameter(torch.ones(3, device="fake"))
(p * p).sum().backward()
assert p.grad.tolist() == [2, 2, 2] and p.grad.device.type == "fake"

# Mistakes that are errors on other devices too.
for wrong in (
    lambda: torch.cat([x, x.cpu()]),
    lambda: x.float() @ torch.ones(4, 2),
    lambda: x.add_(torch.ones(2, 3, 4, dtype=torch.int64)),
    lambda: x.add_(0.5),
    lambda: torch.stack([x.to("fake:0"), x.to("fake:1")]),
    lambda: torch.empty(1, device="fake", pin_memory=True),
):
    try:
        wrong()
    except RuntimeError:
        continue
    raise SystemExit("a mistake was accepted")

# Random numbers: one seed, one stream of numbers, and the CPU's is another.
torch.manual_seed(3)
a, host = torch.randn(5, device="fake"), torch.randn(5)
torch.manual_seed(3)
assert torch.randn(5).equal(host) and torch.randn(5, device="fake").cpu().equal(a.cpu())

with ThreadPoolExecutor(4) as pool:
    sums = pool.map(lambda n: float(torch.full((999,), float(n), device="fake:1").sum()), range(8))
assert list(sums) == [999.0 * n for n in range(8)]
print("done")
"""


def test_a_program_on_the_device(run: Callable[..., Any]) -> None:
    """Memory, streams, views, gradients, mistakes and random numbers behave as on a device."""
    ran = run("-W", "error", "-c", PROGRAM, FAKE_DEVICE_MEMORY="64")
    assert ran.out.strip() == "done", ran.err + ran.out


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork()")
def test_a_fork_after_the_start(run: Callable[..., Any]) -> None:
    """A child that was forked from a process with a started device is told so."""
    program = """
import os, torch
x = torch.ones(2, device="fake")
if os.fork() == 0:
    try:
        torch.ones(2, device="fake")
    except RuntimeError as error:
        print(error, flush=True)
    del x  # what the parent owns is left alone
    os._exit(0)
os.wait()
print(x.sum().item())
"""
    ran = run("-c", program)
    first, second = ran.out.splitlines()
    assert first.startswith("the fake device was started before this process was forked")
    assert second == "2.0"


@pytest.mark.parametrize(
    ("visible", "expected"), [("1", "1 [1]"), ("1,0", "2 [1, 0]"), ("", "0 []")]
)
def test_visible_devices(run: Callable[..., Any], visible: str, expected: str) -> None:
    """The control variable leaves some devices, in its order, to torch and to the platform."""
    program = (
        "import torch; from fake_device.platform import FakePlatform as P;"
        "print(torch.fake.device_count(), P.visible_physical_ids())"
    )
    assert run("-c", program, FAKE_VISIBLE_DEVICES=visible).out.strip() == expected


def test_the_doctor_finds_nothing_wrong(run: Callable[..., Any]) -> None:
    """Every operator family computes what it should on the device, without autograd."""
    import json

    ran = run("-m", "mainboard", "doctor", "--json", MAINBOARD_PLATFORM="fake")
    report = json.loads(ran.out)
    assert (ran.code, report["problems"]) == (0, [])
    assert {check["device"] for check in report["checks"]} == {"fake"}
    assert len(report["checks"]) >= 12
