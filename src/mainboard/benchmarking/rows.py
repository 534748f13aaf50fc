"""What is measured on each kind of device: the tests' own cases, at the sizes that serving has."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch

from mainboard.testing.attention_cases import AttentionCase

__all__ = ["Row", "rows"]

# Tokens of one prefill on a GPU, however many sequences they are split over.
_GPU_TOKENS = 16384

_HEADS = {"heads": 32, "kv_heads": 8, "head_dim": 128}
_CPU_USUAL = {
    torch.bfloat16: (
        "prefill 512", "prefill 2048", "prefill 8192", "chunk 512 after 4096",
        "mixed: 512 after 2048, 15 decodes at 4096", "decode 1 x 512", "decode 1 x 4096",
        "decode 8 x 1024", "decode 8 x 4096", "decode 32 x 4096",
        "pages of 16: decode 8 x 4096", "verify 5 of 8 x 4096",
    ),
    torch.float16: ("prefill 2048", "decode 8 x 4096"),
    torch.float32: ("prefill 2048", "decode 8 x 4096"),
}  # fmt: skip
_LATENT = {"kv_heads": 1, "head_dim": 576, "value_dim": 512, "page_size": 64}


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Row:
    """One case of one operator.

    Args:
        name: what it is about, without the dtypes.
        case: the shapes; for `reshape_and_cache` and `merge_attention_states` its keys are the
            tokens.
        usual: whether it is measured when no rows are asked for.
        warm: whether its keys are read again and again, from the processor's caches.
    """

    name: str
    case: AttentionCase
    operator: str = "attention"
    usual: bool = True
    warm: bool = False

    @property
    def label(self) -> str:
        """The name with the dtypes: what `--rows` is matched with."""
        stored = self.case.cache_dtype
        over = "" if stored is None else f" over {_short(stored)}"
        return f"{self.name} {_short(self.case.dtype)}{over}"

    @property
    def few_queries(self) -> bool:
        """Whether reading keys is most of the work."""
        return self.operator != "attention" or max(self.case.queries) <= 16

    @property
    def flops(self) -> float:
        """Floating-point operations of both products; none where rows are only moved."""
        return self.case.flops if self.operator in ("attention", "mla_decode") else 0.0

    @property
    def exponentials(self) -> float:
        """Of the softmax: one for each score."""
        return self.flops / (2 * (self.case.head_dim + self.case.values))

    @property
    def bytes(self) -> int:
        """What must be read or written: keys and values once; of a copy, both sides."""
        case = self.case
        if self.operator == "mla_decode":  # a row is key and value at once
            return case.bytes * case.head_dim // (case.head_dim + case.values)
        if self.operator == "reshape_and_cache":
            stored = (case.cache_dtype or case.dtype).itemsize
            return case.bytes // stored * (stored + case.dtype.itemsize)
        if self.operator == "merge_attention_states":
            return 3 * sum(case.queries) * case.heads * case.values * case.dtype.itemsize
        return case.bytes


def _case(queries: tuple[int, ...], keys: tuple[int, ...], **shape: object) -> AttentionCase:
    merged = _HEADS | {"dtype": torch.bfloat16} | shape
    return AttentionCase(queries, keys, **merged)  # type: ignore[arg-type]


def _prefill(length: int, batch: int = 1, usual: bool = True, **shape: object) -> Row:
    name = f"prefill {length}" if batch == 1 else f"prefill {batch} x {length}"
    lengths = (length,) * batch
    return Row(name, _case(lengths, lengths, **shape), usual=usual)


def _chunk(new: int, cached: int, batch: int = 1, usual: bool = True, **shape: object) -> Row:
    name = f"chunk {new} after {cached}"
    case = _case((new,) * batch, (cached + new,) * batch, **({"page_size": 128} | shape))
    return Row(name if batch == 1 else f"{name}, {batch} sequences", case, usual=usual)


def _decode(
    batch: int, keys: int, new: int = 1, usual: bool = True, warm: bool = False, **shape: object
) -> Row:
    kind = "decode" if new == 1 else f"verify {new} of"
    case = _case((new,) * batch, (keys,) * batch, **({"page_size": 128} | shape))
    return Row(f"{kind} {batch} x {keys}", case, usual=usual, warm=warm)


def _latent(batch: int, keys: int, heads: int, usual: bool = True) -> Row:
    case = _case((1,) * batch, (keys,) * batch, **(_LATENT | {"heads": heads}))
    return Row(f"latent decode {batch} x {keys}, {heads} heads", case, "mla_decode", usual)


def _moves(tokens: int, page: int) -> Iterator[Row]:
    case = _case((tokens,), (tokens,), page_size=page)
    fp8 = _case((tokens,), (tokens,), page_size=page, cache_dtype=torch.float8_e4m3fn)
    yield Row(f"write {tokens} tokens", case, "reshape_and_cache")
    yield Row(f"write {tokens} tokens", fp8, "reshape_and_cache")
    yield Row(f"merge {tokens} tokens", case, "merge_attention_states")


def _named(row: Row, prefix: str, usual: bool = False) -> Row:
    return Row(f"{prefix} {row.name}", row.case, row.operator, usual, row.warm)


def _cpu_attention(dtype: torch.dtype) -> Iterator[Row]:
    """Every kind of call in one dtype; `_CPU_USUAL` says which are measured without being asked."""
    prefill, decode = partial(_prefill, dtype=dtype), partial(_decode, dtype=dtype)
    for length in (512, 2048, 8192):
        yield prefill(length)
    yield _named(prefill(2048, softcap=30.0), "softcap:")
    yield _named(prefill(2048, alibi=True), "alibi:")
    yield _named(prefill(2048, sinks=True), "sinks:")
    yield _named(prefill(8192, window=(1023, 0)), "window of 1024:")
    yield _chunk(512, 4096, dtype=dtype)
    yield _chunk(128, 8192, dtype=dtype)
    ragged = (300, 700, 1500, 2500)
    yield Row("prefill 300+700+1500+2500", _case(ragged, ragged, dtype=dtype))
    mixed = _case((512,) + (1,) * 15, (2560,) + (4096,) * 15, page_size=128, dtype=dtype)
    yield Row("mixed: 512 after 2048, 15 decodes at 4096", mixed)
    yield decode(1, 512, warm=True)
    for batch in (1, 8, 32):
        for keys in (1024, 4096, 16384):
            yield decode(batch, keys)
    for page in (16, 32):
        yield _named(decode(8, 4096, page_size=page), f"pages of {page}:")
    yield decode(8, 4096, new=5)


def _cpu_rows() -> Iterator[Row]:
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for row in _cpu_attention(dtype):
            yield replace(row, usual=row.name in _CPU_USUAL[dtype])
    for stored in (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8):
        usual = stored is not torch.float8_e5m2
        yield _decode(8, 4096, cache_dtype=stored, scaled_cache=True, usual=usual)
    yield _latent(8, 4096, 16)
    yield _latent(8, 4096, 128, usual=False)
    yield from _moves(8192, 128)


def _gpu_rows() -> Iterator[Row]:
    for length in (512, 1024, 2048, 4096, 8192, 16384):
        yield _prefill(length, _GPU_TOKENS // length)
    for length in (2048, 16384):
        batch = _GPU_TOKENS // length
        yield _named(_prefill(length, batch, causal=False), "full:", usual=True)
        for heads, kv_heads, dim in ((32, 8, 64), (16, 4, 256)):
            for causal in (True, False):
                row = _prefill(
                    length, batch, causal=causal, heads=heads, kv_heads=kv_heads, head_dim=dim
                )
                yield _named(row, f"heads {heads}/{kv_heads} x {dim}{'' if causal else ' full'}:")
    decode = partial(_decode, page_size=16)
    for batch, keys in ((1, 1024), (1, 8192), (1, 131072), (8, 1024), (8, 8192), (64, 1024),
                        (64, 8192), (256, 1024), (256, 4096)):  # fmt: skip
        yield decode(batch, keys)
    yield _named(_decode(64, 8192, page_size=64), "pages of 64:")
    for batch, heads, kv_heads, dim, keys in (
        (64, 64, 8, 64, 8192), (64, 32, 32, 128, 8192), (64, 16, 4, 256, 4096),
        (64, 8, 1, 128, 8192), (8, 8, 1, 128, 8192),
    ):  # fmt: skip
        row = decode(batch, keys, heads=heads, kv_heads=kv_heads, head_dim=dim)
        yield _named(row, f"heads {heads}/{kv_heads} x {dim}:", usual=kv_heads == 1)
    yield decode(64, 8192, cache_dtype=torch.float8_e4m3fn, scaled_cache=True)
    yield decode(64, 8192, new=4)
    yield _chunk(512, 8192 - 512, page_size=16)
    yield _chunk(2048, 8192 - 2048, 4, page_size=16)
    yield _chunk(256, 2048 - 256, 16, page_size=16)
    for batch, heads in ((1, 16), (64, 16), (64, 64), (64, 128)):
        yield _latent(batch, 8192, heads)
    yield from _moves(65536, 16)


def rows(device: str) -> tuple[Row, ...]:
    """Every row for a type of device, in the order in which they are measured."""
    return tuple(_cpu_rows() if device == "cpu" else _gpu_rows())
