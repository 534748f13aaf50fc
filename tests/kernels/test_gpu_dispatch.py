"""Which implementation a GPU's calls go to: the choice, its cache and the setting, without a GPU."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mainboard.errors import UnsupportedConfigurationError
from mainboard.kernels import gpu_dispatch, library, support
from mainboard.kernels.gpu_dispatch import ROUTES, Route, rounded
from mainboard.kernels.library import KernelLevel
from mainboard.kernels.schema import SCHEMAS
from mainboard.kernels.support import Choice, Implementation, Request, choose
from mainboard.testing.attention_cases import AttentionCase


def attention_arguments(case: AttentionCase) -> list[Any]:
    """The raw operator's arguments for a case."""
    given = case.inputs()
    o = given.options
    return [
        given.q, given.k, given.v, torch.zeros_like(given.q), None, o["cu_seqlens_q"],
        o.get("cu_seqlens_k"), o.get("seqused_k"), o.get("block_table"), o["max_seqlen_q"],
        o["max_seqlen_k"], 0.1, case.causal, *case.window, case.softcap, o.get("alibi_slopes"),
        o.get("sinks"), None, None, case.deterministic,
    ]  # fmt: skip


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """Every request that reaches the predicate; the reference answers all of them."""
    requests: list[Request] = []
    reference = Implementation("reference", KernelLevel.REFERENCE, lambda request: [])

    def answer(request: Request) -> Choice:
        requests.append(request)
        return Choice(reference, {})

    monkeypatch.setattr(gpu_dispatch, "choose", answer)
    return requests


def fresh(operator: str) -> Route:
    """A route that has seen nothing."""
    known = ROUTES[operator]
    return Route(operator, known._configuration, known._request)


def test_every_operator_has_a_route() -> None:
    """No operator is left to the reference by omission."""
    assert set(ROUTES) == set(SCHEMAS)


def test_a_configuration_is_asked_about_once(asked: list[Request]) -> None:
    """Calls that differ in lengths share one question; another feature asks again."""
    route = fresh("attention")
    for keys in (40, 41, 57):
        route(*attention_arguments(AttentionCase((1, 1), (9, keys), page_size=16)))
    assert len(asked) == 1
    route(*attention_arguments(AttentionCase((1, 1), (9, 9), page_size=16, softcap=5.0)))
    assert asked[1].features == {"softcap"}
    flags = torch.tensor([True, False])
    route(*attention_arguments(AttentionCase((1, 1), (9, 9), page_size=16)), flags)
    assert asked[2].features == {"causal_flags"}


def test_the_question_holds_the_shape(asked: list[Request]) -> None:
    """What a kernel may depend on reaches its predicate."""
    case = AttentionCase(
        (40, 3), (50, 60), heads=12, kv_heads=4, head_dim=32, page_size=48, window=(5, -1),
        sinks=True, alibi=True, deterministic=True,
    )  # fmt: skip
    fresh("attention")(*attention_arguments(case))
    (request,) = asked
    assert request == Request(
        device="cpu", cache_dtype=torch.float32, head_dim=32, page_size=48, value_dim=32, heads=12,
        kv_heads=4, queries=64, deterministic=True,
        features=frozenset({"window", "sinks", "alibi"}),
    )  # fmt: skip


def test_other_operators_route_as_well(asked: list[Request]) -> None:
    """Cache writes, merging and latent attention reach an implementation and do their work."""
    key = torch.randn(2, 1, 8)
    cache = torch.zeros(2, 16, 1, 8)
    fresh("reshape_and_cache")(key, key, cache, cache.clone(), torch.tensor([3, 20]), None, None)
    assert torch.equal(cache[1, 4], key[1])
    lse = torch.zeros(1, 2)
    out = torch.empty_like(key)
    fresh("merge_attention_states")(out, None, key, lse, key, lse)
    torch.testing.assert_close(out, key)
    rows = torch.zeros(2, 16, 12)
    fresh("concat_and_cache_mla")(key[:, 0], torch.ones(2, 4), rows, torch.tensor([0, 17]), None)
    assert torch.equal(rows[1, 1], torch.cat([key[1, 0], torch.ones(4)]))
    table, begins = torch.tensor([[1]]).int(), torch.tensor([0, 1]).int()
    fresh("mla_decode")(
        torch.ones(1, 3, 12), rows, torch.zeros(1, 3, 8), None, begins, torch.tensor([2]).int(),
        table, 1, 2, 1.0, True, None, False,
    )  # fmt: skip
    assert [request.operator for request in asked] == [
        "reshape_and_cache", "merge_attention_states", "concat_and_cache_mla", "mla_decode",
    ]  # fmt: skip


def test_a_bad_call_is_refused_in_words(asked: list[Request]) -> None:
    """What has too few dimensions to be asked about gets the checks' message."""
    arguments = attention_arguments(AttentionCase((2,), (5,)))
    arguments[0] = arguments[0][0, 0]
    with pytest.raises(ValueError, match=r"q has shape .* expected \[tokens, heads, head_dim\]"):
        fresh("attention")(*arguments)
    assert asked == []


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Route:
    """A route to a compiled kernel that only counts its calls, in the place of attention's."""
    implementation = Implementation("compiled", KernelLevel.COMPILED, lambda request: [])
    monkeypatch.setattr(gpu_dispatch, "choose", lambda request: Choice(implementation, {}))
    monkeypatch.setattr(gpu_dispatch, "_kernel", lambda operator, choice: lambda *given: None)
    return fresh("attention")


def test_a_known_kernel_is_called_directly(compiled: Route) -> None:
    """Only what came through the dispatcher before, and of the same configuration."""
    case = AttentionCase((1, 1), (9, 30), page_size=16)
    arguments = tuple(attention_arguments(case))
    assert compiled.direct(arguments) is None
    compiled(*arguments)
    known = compiled.direct(arguments)
    assert known is not None
    assert compiled.direct(tuple(attention_arguments(case))) is known
    other = attention_arguments(AttentionCase((1, 1), (9, 30), page_size=16, softcap=5.0))
    assert compiled.direct(tuple(other)) is None


def test_what_watches_calls_keeps_the_dispatcher(compiled: Route) -> None:
    """Modes, tensors of classes of their own and wrong arguments are the dispatcher's."""
    arguments = tuple(attention_arguments(AttentionCase((1, 1), (9, 30))))
    compiled(*arguments)
    assert compiled.direct(arguments) is not None
    with FakeTensorMode():
        assert compiled.direct(arguments) is None
    with torch.device("cpu"):
        assert compiled.direct(arguments) is None
    own = torch.nn.Parameter(arguments[1], requires_grad=False)
    assert compiled.direct((arguments[0], own, *arguments[2:])) is None
    assert compiled.direct((arguments[0][0, 0], *arguments[1:])) is None
    assert compiled.direct((*arguments[:9], None, *arguments[10:])) is None


def test_without_a_compiled_kernel_nothing_is_direct(asked: list[Request]) -> None:
    """PyTorch checks and converts arguments of compiled operators only."""
    route, arguments = fresh("attention"), attention_arguments(AttentionCase((1, 1), (9, 30)))
    route(*arguments)
    assert len(asked) == 1
    assert route.direct(tuple(arguments)) is None


@pytest.mark.parametrize(("queries", "bucket"), [(1, 1), (16, 16), (17, 32), (64, 64), (65, 128)])
def test_long_queries_are_rounded(queries: int, bucket: int) -> None:
    """Lengths above 16 share a question with those up to the next power of two."""
    assert rounded(queries) == bucket


@pytest.mark.parametrize("level", ["compiled", "triton", "reference"])
def test_the_setting_leaves_one_level(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """MAINBOARD_KERNELS rejects every implementation of another level, by that reason."""
    monkeypatch.setenv("MAINBOARD_KERNELS", level)
    request = Request(device="cuda")
    for implementation in support.implementations():
        reasons = implementation.refuses(request)
        assert (reasons == [f"MAINBOARD_KERNELS is {level!r}"]) == (implementation.level != level)


def test_a_level_that_cannot_serve_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forced level that refuses a configuration is not replaced by another."""
    monkeypatch.setenv("MAINBOARD_KERNELS", "compiled")
    with pytest.raises(UnsupportedConfigurationError, match="MAINBOARD_KERNELS is 'compiled'"):
        choose(Request(device="cuda", dtype=torch.float64))


def test_an_old_triton_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Triton that is too old is refused with its version; one that is missing, with the remedy."""
    why: Callable[[], str | None] = library.why_no_triton.__wrapped__
    monkeypatch.setattr(library, "find_spec", lambda name: object())
    monkeypatch.setattr("importlib.metadata.version", lambda name: "3.2.0")
    assert why() == "triton is 3.2.0; at least 3.4 is needed"
    monkeypatch.setattr(library, "find_spec", lambda name: None)
    assert "pip install 'mainboard[triton]'" in (why() or "")
