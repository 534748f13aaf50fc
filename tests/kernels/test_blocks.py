"""copy_blocks and swap_blocks against their meaning."""

import pytest
import torch

from mainboard.kernels import copy_blocks, reference, swap_blocks
from mainboard.kernels.backends.cpu import CpuAttentionBackend

DTYPES = [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.uint8]


def bytes_of(x: torch.Tensor) -> torch.Tensor:
    """What is stored, NaN included."""
    return x.contiguous().view(torch.uint8)


def cache_pair(dtype: torch.dtype, pages: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Key and value caches in the backend's layout, full of drawn bytes."""
    kv = torch.randint(0, 100, CpuAttentionBackend.get_kv_cache_shape(pages, 16, 3, 40))
    key, value = CpuAttentionBackend.split_kv_cache(kv.to(dtype))
    return key, value


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_pages_are_copied_in_every_cache(dtype: torch.dtype, compiled: bool) -> None:
    """Each pair's page is copied in all caches; skipped pairs and other pages stay."""
    caches = [*cache_pair(dtype), torch.randint(0, 100, (9, 32, 5)).to(dtype)]
    before = [cache.clone() for cache in caches]
    pairs = torch.tensor([[3, 4], [3, 8], [-1, 5], [6, -1], [0, 7]])
    (copy_blocks if compiled else reference.copy_blocks)(caches, pairs)
    sources = {4: 3, 8: 3, 7: 0}
    for got, was in zip(caches, before, strict=True):
        for page in range(was.shape[0]):
            want = was[sources.get(page, page)]
            assert torch.equal(bytes_of(got[page]), bytes_of(want))


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_pages_are_swapped_to_another_cache(dtype: torch.dtype, compiled: bool) -> None:
    """Pages go to the other cache, which need not have as many; its other pages stay."""
    src, dst = cache_pair(dtype)[0], cache_pair(dtype, 5)[1]
    was = dst.clone()
    pairs = torch.tensor([[3, 0], [4, 1], [11, 4]])
    (swap_blocks if compiled else reference.swap_blocks)(src, dst, pairs)
    wanted = {0: src[3], 1: src[4], 4: src[11], 2: was[2], 3: was[3]}
    for page, want in wanted.items():
        assert torch.equal(bytes_of(dst[page]), bytes_of(want))


def test_no_pairs_change_nothing() -> None:
    """An empty mapping is legal."""
    cache = torch.randn(3, 16, 8)
    was, none = cache.clone(), torch.empty(0, 2, dtype=torch.int64)
    copy_blocks([cache], none)
    swap_blocks(torch.randn(3, 16, 8), cache, none)
    assert torch.equal(cache, was)


BAD = {
    "no caches": (ValueError, "caches is empty", lambda c, m: copy_blocks([], m)),
    "int32 mapping": (TypeError, "int64", lambda c, m: copy_blocks([c], m.int())),
    "flat mapping": (ValueError, r"\[pairs, 2\]", lambda c, m: copy_blocks([c], m.flatten())),
    "page too large": (
        (RuntimeError, ValueError), "out of range|expected", lambda c, m: copy_blocks([c], m + 9),
    ),
    "gaps in a page": (ValueError, "dense", lambda c, m: copy_blocks([c[:, ::2]], m)),
    "another dtype": (TypeError, "dst has dtype", lambda c, m: swap_blocks(c, c.half(), m)),
    "other pages": (ValueError, "dst has pages", lambda c, m: swap_blocks(c, c[:, :8].clone(), m)),
    "no page of src": (ValueError, "page of src", lambda c, m: swap_blocks(c, c.clone(), m + 9)),
    "no page of dst": (ValueError, "page of dst", lambda c, m: swap_blocks(c, c[:1].clone(), m)),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name: str) -> None:
    """What does not fit is refused with the argument's name, and nothing is written."""
    error, words, call = BAD[name]
    with pytest.raises(error, match=words):
        call(torch.zeros(4, 16, 6), torch.tensor([[0, 1], [2, 3]]))
