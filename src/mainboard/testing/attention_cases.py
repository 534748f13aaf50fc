"""One attention case: its inputs, its float64 answer, its cost and its tolerance.

The same object is a row of the tests, of a benchmark and of a report. Inputs are hostile where the
operator promises not to look: unused cache slots hold NaN, and table entries past the last used page
hold rubbish.
"""

import random
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mainboard.kernels import attention, library, reference
from mainboard.kernels.support import Request

__all__ = ["AttentionCase", "AttentionInputs", "assert_close", "check_case", "draw_case"]

RUBBISH_PAGE = -(2**31)

# Half a unit in the last place of the output's format, and the float32 arithmetic before it.
RELATIVE = {torch.float32: 1e-5, torch.bfloat16: 1.01 * 2**-8, torch.float16: 1.01 * 2**-11}
ABSOLUTE = 1e-5


@dataclass
class AttentionInputs:
    """Tensors and options of one call of `mainboard.kernels.attention`."""

    q: Tensor
    k: Tensor
    v: Tensor
    options: dict[str, Any] = field(default_factory=dict)


def _strided(shape: tuple[int, ...], dtype: torch.dtype, device: str, strided: bool) -> Tensor:
    """Random values; with `strided`, a view into a wider tensor."""
    unit = 40.0 if dtype is torch.int8 else 1.0
    if not strided:
        return (torch.randn(shape, device=device) * unit).to(dtype)
    wide = (torch.randn((*shape[:-1], shape[-1] + 8), device=device) * unit).to(dtype)
    return wide[..., : shape[-1]]


def _offsets(lengths: tuple[int, ...], device: str) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32).to(device)


@dataclass(frozen=True)
class AttentionCase:
    """Sequences of `queries[i]` new tokens at the end of `keys[i]` keys."""

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    heads: int = 8
    kv_heads: int = 2
    head_dim: int = 64
    value_dim: int | None = None  # as head_dim
    dtype: torch.dtype = torch.float32
    cache_dtype: torch.dtype | None = None  # as dtype
    page_size: int | None = None  # dense keys
    causal: bool | tuple[bool, ...] = True  # or one for each sequence
    window: tuple[int, int] = (-1, -1)
    softcap: float = 0.0
    alibi: bool = False
    sinks: bool = False
    scaled_cache: bool = False
    strided: bool = False
    deterministic: bool = False
    seed: int = 0

    @property
    def values(self) -> int:
        """The values' dimension."""
        return self.head_dim if self.value_dim is None else self.value_dim

    @property
    def flops(self) -> float:
        """Multiply-adds times two of both products, over the keys that each query sees."""
        left, right = self.window
        seen = 0
        for i, (q, k) in enumerate(zip(self.queries, self.keys, strict=True)):
            causal = self.causal[i] if isinstance(self.causal, tuple) else self.causal
            position = torch.arange(k - q, k)
            first = (position - left).clamp(min=0) if left >= 0 else torch.zeros_like(position)
            last = torch.full_like(position, k - 1)
            if causal or right >= 0:
                last = (position + (0 if causal else right)).clamp(max=k - 1)
            seen += int((last - first + 1).clamp(min=0).sum())
        return 2.0 * self.heads * (self.head_dim + self.values) * seen

    @property
    def bytes(self) -> int:
        """Keys and values, read once."""
        size = (self.cache_dtype or self.dtype).itemsize
        return sum(self.keys) * self.kv_heads * (self.head_dim + self.values) * size

    def request(self, operator: str = "attention", device: str = "cpu") -> Request:
        """The case as a question to the support matrix."""
        asked = {
            "window": self.window != (-1, -1),
            "softcap": self.softcap > 0,
            "alibi": self.alibi,
            "sinks": self.sinks,
            "causal_flags": isinstance(self.causal, tuple),
        }
        return Request(
            operator, device, self.dtype, self.cache_dtype, self.head_dim, self.page_size,
            frozenset(name for name, has in asked.items() if has), self.value_dim, self.heads,
            self.kv_heads, max(self.queries, default=0), self.deterministic,
        )  # fmt: skip

    def inputs(self, device: str = "cpu") -> AttentionInputs:
        """Draw the tensors from `seed`."""
        torch.manual_seed(self.seed)
        shape = (sum(self.queries), self.heads, self.head_dim)
        q = _strided(shape, self.dtype, device, self.strided)
        options: dict[str, Any] = {
            "cu_seqlens_q": _offsets(self.queries, device),
            "max_seqlen_q": max(self.queries, default=0),
            "max_seqlen_k": max(self.keys, default=0),
            "causal": self.causal,
            "window": self.window,
            "softcap": self.softcap,
            "deterministic": self.deterministic,
        }
        if isinstance(self.causal, tuple):
            options["causal"] = torch.tensor(self.causal, dtype=torch.bool, device=device)
        if self.alibi:
            options["alibi_slopes"] = torch.rand(self.heads, device=device) * 0.5
        if self.sinks:
            options["sinks"] = torch.randn(self.heads, device=device)
        if self.scaled_cache:
            unit = 1.0 / 40 if self.cache_dtype is torch.int8 else 1.0
            options["k_scale"] = (torch.rand(self.kv_heads, device=device) + 0.5) * unit
            options["v_scale"] = (torch.rand(1, device=device) + 0.5) * unit
        place = self._dense if self.page_size is None else self._paged
        k, v = place(device, options)
        return AttentionInputs(q, k, v, options)

    def _dense(self, device: str, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
        options["cu_seqlens_k"] = _offsets(self.keys, device)
        stored = self.cache_dtype or self.dtype
        k, v = (
            _strided((sum(self.keys), self.kv_heads, dim), stored, device, self.strided)
            for dim in (self.head_dim, self.values)
        )
        return k, v

    def _paged(self, device: str, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Caches with heads outside slots when `strided`, pages shuffled, the unused poisoned."""
        page = self.page_size
        assert page is not None
        needed = [-(-length // page) for length in self.keys]
        pages = sum(needed) + 2
        width = max(needed, default=0) + 2
        stored = self.cache_dtype or self.dtype
        order = torch.randperm(pages)[: sum(needed)].tolist()
        table = torch.full((len(self.keys), width), RUBBISH_PAGE, dtype=torch.int32)
        used = torch.zeros(pages, page, dtype=torch.bool)
        for i, (length, count) in enumerate(zip(self.keys, needed, strict=True)):
            mine, order = order[:count], order[count:]
            table[i, :count] = torch.tensor(mine, dtype=torch.int32)
            for j, number in enumerate(mine):
                used[number, : min(page, length - j * page)] = True
        options["block_table"] = table.to(device)
        options["seqused_k"] = torch.tensor(self.keys, dtype=torch.int32, device=device)
        caches = []
        for dim in (self.head_dim, self.values):
            cache = torch.randn(pages, page, self.kv_heads, dim)
            cache[~used] = float("nan")
            if stored is torch.int8:
                cache = cache.mul(40).nan_to_num(nan=127.0).clamp(-128, 127)
            cache = cache.to(stored).to(device)
            if self.strided:
                cache = cache.transpose(1, 2).contiguous().transpose(1, 2)
            caches.append(cache)
        return caches[0], caches[1]

    def rounds_weights(self, device: str) -> bool:
        """Whether the kernels there round softmax weights to `dtype` before multiplying them."""
        if device != "cpu" or library.active_level() is library.KernelLevel.TRITON:
            return self.dtype.itemsize == 2
        active, stored_alike = library.libraries()[0].active, self.cache_dtype in (None, self.dtype)
        if self.dtype is torch.float16:
            return active == "amx_fp16" and stored_alike
        if self.dtype is not torch.bfloat16:
            return False
        if active in ("amx", "amx_fp16"):  # which leave other caches to the next set
            of_bytes = self.cache_dtype is not None and self.cache_dtype.itemsize == 1
            return stored_alike or of_bytes or "avx512_bf16" in library.libraries()[0].usable
        return active == "avx512_bf16"

    def weighed_magnitude(self, given: AttentionInputs) -> Tensor:
        """The weighted sum of the values' magnitudes: what rounding the weights is relative to."""
        bare = AttentionInputs(given.q, given.k, given.v.float().abs().double(), given.options)
        return self.expected(bare)[0]

    def expected(self, given: AttentionInputs) -> tuple[Tensor, Tensor]:
        """Output and log-sum-exp in float64, by the reference."""
        o = given.options
        shape = (given.q.shape[0], self.heads)
        device = given.q.device
        flags = o["causal"] if isinstance(self.causal, tuple) else None
        out = torch.full((*shape, self.values), float("nan"), dtype=torch.float64, device=device)
        lse = torch.full(shape[::-1], float("nan"), dtype=torch.float64, device=device)
        reference.attention(
            given.q, given.k, given.v, out, lse, o["cu_seqlens_q"], o.get("cu_seqlens_k"),
            o.get("seqused_k"), o.get("block_table"), o["max_seqlen_q"], o["max_seqlen_k"],
            self.head_dim**-0.5, self.causal is True, *self.window, self.softcap, o.get("alibi_slopes"),
            o.get("sinks"), o.get("k_scale"), o.get("v_scale"), self.deterministic,
            flags, precision=torch.float64,
        )  # fmt: skip
        return out, lse


def assert_close(
    got: Tensor,
    expected: Tensor,
    case: AttentionCase,
    what: str = "out",
    extra: Tensor | None = None,
) -> None:
    """Every element within the case's tolerance, infinities and NaN in the same places.

    `extra` is a further absolute tolerance for each element.

    Raises:
        AssertionError: an element is further off.
    """
    relative = RELATIVE[case.dtype] if what == "out" else RELATIVE[torch.float32]
    if extra is not None:
        error = got.double() - expected
        got = expected + error.sign() * (error.abs() - extra).clamp(min=0.0)
    torch.testing.assert_close(
        got.double(),
        expected,
        rtol=relative,
        atol=ABSOLUTE,
        equal_nan=True,
        msg=lambda text: f"{what} of {case}: {text}",
    )


def check_case(case: AttentionCase, device: str = "cpu") -> None:
    """Run a case on a device and compare output and log-sum-exp with float64.

    Raises:
        AssertionError: an element is outside the case's tolerance, or was not written.
    """
    given = case.inputs(device)
    shape = (given.q.shape[0], case.heads, case.values)
    out = torch.full(shape, float("nan"), dtype=case.dtype, device=device)
    _, lse = attention(given.q, given.k, given.v, out=out, return_lse=True, **given.options)
    expected, expected_lse = case.expected(given)
    extra = None
    if case.rounds_weights(device):
        extra = RELATIVE[case.dtype] * case.weighed_magnitude(given)
    assert_close(out, expected, case, extra=extra)
    assert_close(lse, expected_lse, case, "lse")


def draw_case(seed: int, flags: bool = True) -> AttentionCase:
    """A random case; the same seed always draws the same.

    Args:
        seed: names the case.
        flags: whether its sequences may differ in being causal.
    """
    r = random.Random(seed)
    dtype = r.choice([torch.float32, torch.bfloat16, torch.float16])
    page_size = r.choice([None, 16, 32, 48, 128])
    cache_dtype = r.choice([None, None, None, torch.float8_e4m3fn, torch.float8_e5m2])
    kv_heads = r.choice([1, 1, 2, 3, 4])
    group = r.choice([1, 1, 2, 3, 4, 5, 7, 8, 16])
    longest = 160 if page_size is None else 3 * page_size + 5
    keys = [r.choice([0, 1, r.randint(1, longest), r.randint(1, longest)])
            for _ in range(r.randint(1, 4))]  # fmt: skip
    queries = [r.choice([0, 1, 1, r.randint(1, 70), length]) for length in keys]
    head_dim = r.choice([32, 40, 64, 64, 72, 80, 96, 128, 128, 192, 256])
    case = AttentionCase(
        queries=tuple(queries),
        keys=tuple(keys),
        heads=kv_heads * group,
        kv_heads=kv_heads,
        head_dim=head_dim,
        value_dim=r.choice([None, None, None, 64]),
        dtype=dtype,
        cache_dtype=cache_dtype,
        page_size=page_size,
        causal=r.random() < 0.6,
        window=r.choice([(-1, -1), (-1, -1), (0, 0), (r.randint(0, 50), r.randint(-1, 20))]),
        softcap=r.choice([0.0, 0.0, 15.0, 50.0]),
        alibi=r.random() < 0.3,
        sinks=r.random() < 0.3,
        scaled_cache=cache_dtype is not None and r.random() < 0.7,
        strided=r.random() < 0.4,
        deterministic=r.random() < 0.2,
        seed=seed,
    )
    if flags and r.random() < 0.25:
        case = replace(case, causal=tuple(r.random() < 0.5 for _ in keys))
    return case
