"""Attention backends: who is registered, in which order they are tried, and why not."""

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

from mainboard.errors import UnsupportedConfigurationError
from mainboard.kernels import attention, reshape_and_cache
from mainboard.kernels.backends import registry
from mainboard.kernels.backends.cpu import CpuAttentionBackend
from mainboard.kernels.backends.dispatched import DispatchedAttentionBackend
from mainboard.kernels.backends.interface import (
    AttentionBackend,
    CommonAttentionMetadata,
    MultipleOf,
)
from mainboard.kernels.backends.registry import (
    AttentionBackendEnum,
    MambaAttentionBackendEnum,
    register_backend,
    registered_backends,
)
from mainboard.kernels.backends.selection import (
    AttentionSelectorConfig,
    BackendState,
    select_attention_backend,
)
from mainboard.platforms.cpu import CpuPlatform
from mainboard.platforms.interface import Platform, PlatformEnum

CONFIG = AttentionSelectorConfig(64, torch.bfloat16, "auto", 16)


class Acme(AttentionBackend):
    """A third party's backend, which serves pages of 64 only."""

    @staticmethod
    def get_name() -> str:
        """Its name."""
        return "ACME"

    @staticmethod
    def get_kv_cache_shape(
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_size: int,
        cache_dtype_str: str = "auto",
    ) -> tuple[int, ...]:
        """The usual shape."""
        return (2, num_blocks, block_size, num_kv_heads, head_size)

    @staticmethod
    def get_supported_kernel_block_sizes() -> list[int | MultipleOf]:
        """Multiples of 64."""
        return [MultipleOf(64)]


class Vendor(Platform):
    """A platform whose own hook is replaced by the tests."""

    _enum = PlatformEnum.OOT
    device_name = "vendor"
    device_type = "vendor"


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test begins and ends with the built-in backends, and no setting."""
    monkeypatch.delenv("MAINBOARD_ATTENTION_BACKEND", raising=False)
    before = {backend.name for backend in registered_backends()}
    yield
    for backend in registered_backends():
        if backend.name not in before:
            registry.unregister_backend(backend.name)
    for member in (*AttentionBackendEnum, *MambaAttentionBackendEnum):
        member.clear_override()


def states(selection: Any) -> dict[str, str]:
    """What became of each candidate."""
    return {candidate.name: str(candidate.state) for candidate in selection.candidates}


def order() -> list[str]:
    """The backends that are tried without being asked for."""
    return [backend.name for backend in registered_backends() if backend.priority is not None]


def test_the_cpu_gets_its_own_backend() -> None:
    """On the CPU its backend is chosen once, though the platform and the registry both name it."""
    selection = select_attention_backend(CONFIG, platform=CpuPlatform())
    assert selection.backend is CpuAttentionBackend
    assert states(selection)["MAINBOARD_CPU"] == "chosen"
    assert [each.path for each in selection.candidates if each.priority].count(
        "mainboard.kernels.backends.cpu.CpuAttentionBackend"
    ) == 1


def test_a_third_party_inserts_itself() -> None:
    """A registered backend with a place is tried there, and its reasons are kept when it cannot."""
    register_backend("ACME", before="MAINBOARD_CPU")(Acme)
    assert order().index("ACME") == order().index("MAINBOARD_CPU") - 1
    refused = select_attention_backend(CONFIG, platform=CpuPlatform())
    assert refused.name == "MAINBOARD_CPU"
    first = refused.candidates[0]
    assert (first.name, first.reasons) == ("ACME", ("page size 16 is not served",))
    chosen = select_attention_backend(CONFIG._replace(block_size=64), platform=CpuPlatform())
    assert chosen.backend is Acme
    assert states(chosen)["MAINBOARD_CPU"] == "usable"


def test_a_page_size_that_costs_a_better_backend_is_a_warning() -> None:
    """When nothing but the page size excludes a better backend, the selection says so."""
    register_backend("ACME", priority=900)(Acme)
    (warning,) = select_attention_backend(CONFIG, platform=CpuPlatform()).warnings
    assert "ACME is better" in warning and "page size of 16" in warning
    assert select_attention_backend(CONFIG._replace(block_size=64)).warnings == ()


@pytest.mark.parametrize(
    ("place", "at"),
    [({"after": "MAINBOARD_CPU"}, 1), ({"priority": 299}, 1), ({"priority": 1}, -1)],
)
def test_places(place: dict[str, Any], at: int) -> None:
    """A place is a number, or beside another backend."""
    register_backend("ACME", "acme.Backend", **place)
    assert order()[at] == "ACME"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"before": "MAINBOARD_CPUS"}, "'MAINBOARD_CPUS' has no place .* MAINBOARD_CPU"),
        ({"after": "CPU_ATTN"}, "'CPU_ATTN' has no place"),
        ({"priority": 1, "after": "MAINBOARD"}, "more than one was given"),
    ],
)
def test_a_place_that_is_none(options: dict[str, Any], message: str) -> None:
    """A place beside nothing, or two places, are refused at registration."""
    with pytest.raises(ValueError, match=message):
        register_backend("ACME", "acme.Backend", **options)
    assert "ACME" not in [backend.name for backend in registered_backends()]


def test_custom_is_used_only_by_name() -> None:
    """A registration as vLLM's documents write it changes nothing until it is asked for."""
    register_backend(AttentionBackendEnum.CUSTOM)(Acme)
    config = CONFIG._replace(block_size=64)
    selection = select_attention_backend(config, platform=CpuPlatform())
    assert selection.name == "MAINBOARD_CPU"
    assert states(selection)["CUSTOM"] == BackendState.BY_NAME_ONLY
    for name in ("CUSTOM", AttentionBackendEnum.CUSTOM):
        asked = select_attention_backend(config, backend=name, platform=CpuPlatform())
        assert asked.backend is Acme


def test_members_of_the_enumeration() -> None:
    """A member leads to what is registered under it, and says so when that is nothing."""
    with pytest.raises(ValueError, match=r"register_backend\(AttentionBackendEnum\.CUSTOM, "):
        AttentionBackendEnum.CUSTOM.get_path()
    assert AttentionBackendEnum.CPU_ATTN.get_class() is CpuAttentionBackend
    register_backend(AttentionBackendEnum.CPU_ATTN, f"{__name__}.Acme")
    assert AttentionBackendEnum.CPU_ATTN.is_overridden()
    assert AttentionBackendEnum.CPU_ATTN.get_path(include_classname=False) == __name__
    AttentionBackendEnum.CPU_ATTN.clear_override()
    assert not AttentionBackendEnum.CPU_ATTN.is_overridden()
    with pytest.raises(ValueError, match="'FLASH' was asked for, but vLLM's names are FLASH_ATTN"):
        AttentionBackendEnum["FLASH"]
    assert len({member.value for member in AttentionBackendEnum}) == len(
        AttentionBackendEnum.__members__
    )


def test_backends_of_state_space_models_are_apart() -> None:
    """A name of the other enumeration registers there, and is no candidate for attention."""
    register_backend(MambaAttentionBackendEnum.CUSTOM, is_mamba=True)(Acme)
    assert MambaAttentionBackendEnum.CUSTOM.get_class() is Acme
    assert "CUSTOM" not in [backend.name for backend in registered_backends()]


def test_an_asked_for_backend_that_cannot_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting is loud: its backend serves, or the reasons are an error."""
    register_backend("ACME")(Acme)
    monkeypatch.setenv("MAINBOARD_ATTENTION_BACKEND", "ACME")
    with pytest.raises(UnsupportedConfigurationError) as caught:
        select_attention_backend(CONFIG, platform=CpuPlatform())
    assert "MAINBOARD_ATTENTION_BACKEND=ACME was asked for" in str(caught.value)
    assert "page size 16 is not served" in caught.value.reasons[0]


def test_an_unknown_backend_is_an_error_with_what_may_be_meant() -> None:
    """A misspelt name is answered with the close one."""
    with pytest.raises(UnsupportedConfigurationError, match="Did you mean MAINBOARD_CPU"):
        select_attention_backend(CONFIG, backend="MAINBORD_CPU", platform=CpuPlatform())


def test_nothing_serves_and_every_reason_is_given() -> None:
    """The error has the reasons of every candidate, each with its name and who registered it."""
    register_backend("ACME", priority=900)(Acme)
    config = CONFIG._replace(dtype=torch.float64, block_size=17)
    with pytest.raises(UnsupportedConfigurationError) as caught:
        select_attention_backend(config, platform=CpuPlatform())
    who = {reason.partition(" ")[0] for reason in caught.value.reasons}
    assert who == {"ACME", "MAINBOARD_CPU", "MAINBOARD", "MAINBOARD_MLA"}
    assert any("dtype float64 is not served" in reason for reason in caught.value.reasons)


def test_a_broken_backend_harms_nobody() -> None:
    """One that cannot be imported, or raises when it is asked, fails with its cause."""

    class Raises(Acme):
        @classmethod
        def validate_configuration(cls, *args: Any, **kwargs: Any) -> list[str]:
            raise OSError("no licence server")

    register_backend("GONE", "no_such_package.Backend", priority=902)
    register_backend("RAISES", priority=901)(Raises)
    selection = select_attention_backend(CONFIG, platform=CpuPlatform())
    assert selection.name == "MAINBOARD_CPU"
    reasons = {candidate.name: candidate.reasons for candidate in selection.candidates}
    assert "ModuleNotFoundError: No module named 'no_such_package'" in reasons["GONE"][0]
    assert "OSError: no licence server" in reasons["RAISES"][0]
    assert states(selection)["GONE"] == "failed"


def test_an_older_method_is_asked_what_it_knows() -> None:
    """A validate_configuration without newer arguments serves, unless one of them is needed."""

    class Older(Acme):
        @classmethod
        def validate_configuration(  # type: ignore[override]
            cls, head_size: int, dtype: torch.dtype, kv_cache_dtype: Any, block_size: int | None
        ) -> list[str]:
            return []

    register_backend("OLDER", priority=900)(Older)
    assert select_attention_backend(CONFIG, platform=CpuPlatform()).name == "OLDER"
    sinks = select_attention_backend(CONFIG._replace(has_sink=True), platform=CpuPlatform())
    assert sinks.candidates[0].reasons == ("its validate_configuration knows no has_sink",)


SIGNATURES = {
    "0.33": lambda cls, selected_backend, attn_selector_config, num_heads=None: PATH,
    "no heads": lambda cls, selected_backend, attn_selector_config: PATH,
    "rest": lambda cls, selected_backend, *args, **kwargs: PATH,
    "v1": lambda cls, selected_backend, head_size, dtype, kv_cache_dtype, block_size, use_v1,
    use_mla: PATH,
    "sparse": lambda cls, selected_backend, head_size, dtype, kv_cache_dtype, block_size, use_mla,
    has_sink, use_sparse, attn_type: PATH,
}  # fmt: skip
PATH = "mainboard.kernels.backends.dispatched.DispatchedAttentionBackend"


@pytest.mark.parametrize("form", SIGNATURES)
def test_a_platform_may_have_any_form_of_the_hook(form: str) -> None:
    """The platform's own backend is asked for in every form that packages have written."""
    hook = classmethod(SIGNATURES[form])
    platform = type("Drifted", (Vendor,), {"get_attn_backend_cls": hook})()
    own = select_attention_backend(CONFIG, platform=platform)
    assert own.backend is DispatchedAttentionBackend


@pytest.mark.parametrize("nothing", ["", None])
def test_a_platform_that_names_no_backend(nothing: Any) -> None:
    """'' and None are no backend, and the dispatched one serves."""
    hook = classmethod(lambda cls, *args, **kwargs: nothing)
    platform = type("Silent", (Vendor,), {"get_attn_backend_cls": hook})()
    selection = select_attention_backend(CONFIG, platform=platform)
    assert selection.name == "MAINBOARD"
    assert states(selection) == {"MAINBOARD": "chosen", "MAINBOARD_MLA": "refused"}


def test_a_platforms_own_backend_has_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried before the dispatched one and after those that ask for more."""
    module = ModuleType("vendor_attention")
    module.Own = type("Own", (Acme,), {"supported_dtypes": [torch.float32]})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vendor_attention", module)
    hook = classmethod(lambda cls, *args, **kwargs: "vendor_attention.Own")
    platform = type("Named", (Vendor,), {"get_attn_backend_cls": hook})()
    register_backend("ACME", priority=900, device_types={"vendor"})(Acme)
    selection = select_attention_backend(CONFIG, platform=platform)
    tried = [each.name for each in selection.candidates]
    assert tried == ["ACME", "Own", "MAINBOARD", "MAINBOARD_MLA"]
    assert "dtype bfloat16 is not served" in selection.candidates[1].reasons


def test_a_platform_whose_hook_raises() -> None:
    """The hook's failure is a candidate with its cause, and another backend serves."""

    def fails(cls: type, *args: Any, **kwargs: Any) -> str:
        raise OSError("no licence server")

    platform = type("Failing", (Vendor,), {"get_attn_backend_cls": classmethod(fails)})()
    selection = select_attention_backend(CONFIG, platform=platform)
    assert selection.name == "MAINBOARD"
    assert selection.candidates[0].reasons == ("OSError: no licence server",)


def test_a_selection_is_data_and_text() -> None:
    """The choice goes into JSON and is explained in words."""
    import json

    selection = select_attention_backend(CONFIG, platform=CpuPlatform())
    data = json.loads(json.dumps(selection.to_dict()))
    assert data["candidates"][0]["state"] == "chosen"
    assert "MAINBOARD_CPU  chosen" in selection.explain_text()


@pytest.mark.parametrize("backend", [CpuAttentionBackend, DispatchedAttentionBackend])
@pytest.mark.parametrize("cache_dtype", ["auto", "fp8_e4m3"])
@pytest.mark.parametrize(
    ("causal", "sliding_window"), [(True, 3), (torch.tensor([False, True]), None)]
)
def test_a_layer_runs_on_the_operators(
    backend: type[AttentionBackend],
    cache_dtype: str,
    causal: bool | torch.Tensor,
    sliding_window: int | None,
) -> None:
    """Builder and implementation give what the operators give on a cache of the plain layout."""
    torch.manual_seed(3)
    heads, kv_heads, dim, pages, page = 4, 2, 32, 6, 16
    batch = CommonAttentionMetadata(
        query_start_loc=torch.tensor([0, 5, 6], dtype=torch.int32),
        query_start_loc_cpu=torch.tensor([0, 5, 6], dtype=torch.int32),
        seq_lens=torch.tensor([5, 1], dtype=torch.int32),
        num_reqs=2,
        num_actual_tokens=6,
        max_query_len=5,
        max_seq_len=5,
        block_table_tensor=torch.tensor([[4], [1]], dtype=torch.int32),
        slot_mapping=torch.tensor([64, 65, 66, 67, 68, 16]),
        causal=causal,
    )
    builder = backend.get_builder_cls()(None, ["layer"], None, torch.device("cpu"))
    impl = backend.get_impl_cls()(
        heads, dim, dim**-0.5, kv_heads, sliding_window=sliding_window, kv_cache_dtype=cache_dtype
    )
    # Two rows of padding, as engines have them.
    q, k, v = (torch.randn(8, n * dim) for n in (heads, kv_heads, kv_heads))
    dtype = torch.float32 if cache_dtype == "auto" else torch.float8_e4m3fn
    kv = torch.zeros(backend.get_kv_cache_shape(pages, page, kv_heads, dim), dtype=dtype)
    layer = type("Layer", (), {"_k_scale": torch.tensor(0.5), "_v_scale": torch.tensor(2.0)})()
    stored = kv if cache_dtype == "auto" else kv.view(torch.uint8)
    out = impl.forward(layer, q, k, v, stored, builder.build(0, batch), torch.zeros_like(q))

    keys, values = torch.zeros(2, pages, page, kv_heads, dim, dtype=dtype)
    scales = {} if cache_dtype == "auto" else {"k_scale": 0.5, "v_scale": 2.0}
    shape = (-1, kv_heads, dim)
    reshape_and_cache(
        k[:6].view(shape), v[:6].view(shape), keys, values, batch.slot_mapping, **scales
    )
    expected = attention(
        q[:6].view(-1, heads, dim), keys, values, cu_seqlens_q=batch.query_start_loc,
        seqused_k=batch.seq_lens, block_table=batch.block_table_tensor, max_seqlen_q=5,
        max_seqlen_k=5, causal=causal, window=(2, 0) if sliding_window else (-1, -1), **scales,
    )  # fmt: skip
    torch.testing.assert_close(out[:6].view(-1, heads, dim), expected)
    assert not out[6:].any()
    assert backend.get_impl_cls() is backend.get_impl_cls()


def test_what_a_layer_cannot_do_is_refused() -> None:
    """Encoders and unknown caches are refused with what to do."""
    impl = CpuAttentionBackend.get_impl_cls()
    with pytest.raises(UnsupportedConfigurationError, match="'encoder' attention was asked for"):
        impl(4, 32, 1.0, attn_type="encoder")
    with pytest.raises(UnsupportedConfigurationError, match=r"'int4' cache .* expected auto, "):
        impl(4, 32, 1.0, kv_cache_dtype="int4")
    assert CpuAttentionBackend.validate_configuration(64, torch.half, "int4", 16) == [
        "cache dtype int4 is not served"
    ]


def test_page_sizes() -> None:
    """A backend's preferred page is the one asked for, or else its smallest."""
    assert Acme.get_preferred_block_size(128) == 128
    assert Acme.get_preferred_block_size(16) == 64
