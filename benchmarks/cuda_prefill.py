"""Compiled prefill on Hopper: what each feature costs, mixed batches, and whether bits repeat.

    python benchmarks/cuda_prefill.py [--rounds N]

Every number is the median over rounds in a drawn order, of medians of triton's do_bench, so that
the card's clock, which follows its power, is the same for what is compared.
"""

import argparse
import functools
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from triton.testing import do_bench

HEADS, KV_HEADS, DIM = 32, 8, 128
LENGTH, BATCH = 4096, 4
Call = Callable[[], object]


def operator() -> Callable[..., None]:
    """The compiled operator, which is called directly: nothing else can be measured instead."""
    from mainboard.kernels import cuda_support, library

    found = library.loaded("cuda")
    if not found.loaded:
        raise SystemExit(found.reason)
    assert "attention" in cuda_support.OPERATORS  # its schema is declared there
    run: Callable[..., None] = torch.ops.mainboard_cuda.attention.default
    return run


def offsets(lengths: Sequence[int]) -> Tensor:
    """Where sequences begin."""
    return torch.tensor([0, *lengths], device="cuda").cumsum(0).int()


def arguments(
    queries: Sequence[int], keys: Sequence[int], page: int | None = None,
    cache: torch.dtype | None = None, **options: Any,
) -> list[Any]:  # fmt: skip
    """The operator's arguments for sequences of these lengths, causal, bfloat16."""
    torch.manual_seed(0)
    where: dict[str, Any] = {"dtype": torch.bfloat16, "device": "cuda"}
    q = torch.randn(sum(queries), HEADS, DIM, **where)
    lengths: tuple[Tensor | None, ...] = offsets(keys), None, None
    shape: tuple[int, ...] = (sum(keys),)
    if page is not None:
        pages = [-(-length // page) for length in keys]
        drawn = torch.randperm(sum(pages), device="cuda").int()
        table = torch.zeros(len(keys), max(pages), dtype=torch.int32, device="cuda")
        for row, own in zip(table, drawn.split(pages), strict=True):
            row[: len(own)] = own
        lengths = None, torch.tensor(keys, device="cuda").int(), table
        shape = sum(pages), page
    k, v = torch.randn(2, *shape, KV_HEADS, DIM, **where).to(cache or torch.bfloat16).unbind(0)
    return [
        q, k, v, torch.empty_like(q), None, offsets(queries), *lengths, max(queries), max(keys),
        DIM**-0.5, True, options.get("left", -1), -1, options.get("softcap", 0.0),
        options.get("slopes"), options.get("sinks"), None, None,
        options.get("deterministic", False),
    ]  # fmt: skip


def medians(calls: dict[str, Call], rounds: int) -> dict[str, float]:
    """Microseconds of each call."""
    order = list(calls)
    spent: dict[str, list[float]] = {name: [] for name in order}
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            median = do_bench(calls[name], warmup=5, rep=15, return_mode="median")
            spent[name].append(median * 1e3)
    return {name: statistics.median(times) for name, times in spent.items()}


def features() -> Iterator[tuple[str, list[Any]]]:
    """Every feature alone, at one length."""
    lengths = [LENGTH] * BATCH
    per_head = torch.rand(HEADS, device="cuda")
    yield "plain", arguments(lengths, lengths)
    yield "window of 1,024", arguments(lengths, lengths, left=1023)
    yield "softcap", arguments(lengths, lengths, softcap=30.0)
    yield "ALiBi", arguments(lengths, lengths, slopes=per_head * 0.1)
    yield "sinks", arguments(lengths, lengths, sinks=per_head)
    for page in (16, 64, 128):
        yield f"pages of {page}", arguments(lengths, lengths, page)
    for cache in (torch.float8_e4m3fn, torch.float8_e5m2):
        yield f"{cache} in pages of 64", arguments(lengths, lengths, 64, cache)
    yield "deterministic", arguments(lengths, lengths, deterministic=True)


def mixed(run: Callable[..., None], rounds: int) -> None:
    """One call of long and short sequences beside a call for each kind."""
    for long, short, keys in ((1, 63, 8192), (1, 8, 8192), (4, 60, 2048), (1, 3, 32768)):
        prompts, steps = [2048] * long, [1] * short
        calls: dict[str, Call] = {}
        for name, queries, lengths in (
            ("together", prompts + steps, prompts + [keys] * short),
            ("long alone", prompts, prompts),
            ("short alone", steps, [keys] * short),
        ):
            given = arguments(queries, lengths, 16)
            calls[name] = functools.partial(run, *given)
        print(f"{long} x 2048 and {short} x 1 over {keys}:", medians(calls, rounds))


def repeats(run: Callable[..., None]) -> None:
    """A thousand calls of each kind, compared with the first on the device."""
    for page, cache in ((None, None), (16, None), (16, torch.float8_e4m3fn)):
        given = arguments([700, 300, 1], [700, 1300, 900], page, cache)
        run(*given)
        first = given[3].clone()
        differs = torch.zeros((), dtype=torch.bool, device="cuda")
        for _ in range(1000):
            run(*given)
            differs |= (given[3] != first).any()
        print(f"pages {page}, cache {cache}: 1000 runs differ: {bool(differs)}")


def main() -> None:
    """Print all of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    run = operator()
    print(torch.cuda.get_device_name(), torch.__version__)
    repeats(run)
    calls: dict[str, Call] = {}
    for name, given in features():
        calls[name] = functools.partial(run, *given)
    spent = medians(calls, rounds)
    for name, time in spent.items():
        print(f"{name:32} {time:8.1f} us, {time / spent['plain']:.2f} of plain's time", flush=True)
    mixed(run, rounds)


if __name__ == "__main__":
    main()
