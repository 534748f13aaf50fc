"""Memory for caches: what was asked of the system, and who touched it first."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mainboard.kernels import host_memory, library
from mainboard.kernels.backends.cpu import CpuAttentionBackend

HUGE_PAGE = 2 << 20
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not library.loaded("cpu").loaded, reason="Linux and the CPU library"
)


def faults_by_thread() -> dict[str, int]:
    """Pages that each thread of this process has touched first, so far."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        after_name = (task / "stat").read_text().rpartition(")")[2].split()
        found[task.name] = int(after_name[7])
    return found


def mapping_of(address: int) -> dict[str, str]:
    """What the kernel says of the mapping that an address is in."""
    inside = False
    facts: dict[str, str] = {}
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if not first.endswith(":"):
            begin, end = (int(part, 16) for part in first.split("-"))
            inside = begin <= address < end
        elif inside:
            name, _, value = line.partition(":")
            facts[name] = value.strip()
    return facts


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Two of torch's threads, whatever there were."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.skipif(not SETTING.exists(), reason="a kernel without huge pages")
def test_a_cache_is_on_pages_that_may_be_huge() -> None:
    """The middle of a cache is in a mapping that is marked for huge pages, and reads as zeros."""
    cache = CpuAttentionBackend.allocate_kv_cache(64, 128, 8, 128, torch.bfloat16)
    assert cache.shape == CpuAttentionBackend.get_kv_cache_shape(64, 128, 8, 128)
    facts = mapping_of(cache.data_ptr() + cache.nbytes // 2)
    assert "hg" in facts["VmFlags"].split()
    assert not cache.any()


@pytest.mark.usefixtures("two_threads")
def test_each_thread_touches_its_share_first() -> None:
    """At least two threads take page faults for a new cache, each for a good part of it."""
    host_memory.zeros((16 * HUGE_PAGE,), torch.uint8)  # the threads exist from here on
    before = faults_by_thread()
    kept = host_memory.zeros((64 * HUGE_PAGE,), torch.uint8)
    taken = [count - before.get(name, 0) for name, count in faults_by_thread().items()]
    assert kept.count_nonzero() == 0
    assert sorted(taken)[-2] >= 16, taken


@pytest.mark.parametrize("size", [0, 1, HUGE_PAGE - 1, 3 * HUGE_PAGE + 5])
def test_every_byte_is_zero(size: int) -> None:
    """Whatever the size is a multiple of."""
    assert not host_memory.zeros((size,), torch.uint8).any()
