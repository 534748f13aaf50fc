"""What plugins do with vLLM's helpers and registries, through their own modules."""

import os
import sys
from types import SimpleNamespace

import pytest
import torch

from mainboard.errors import PluginLoadError
from mainboard.platforms import use_platform
from mainboard.plugins.vllm_names import inputs, parsers, quantization, retired
from mainboard.plugins.vllm_names.connectors import KVConnectorFactory
from mainboard.plugins.vllm_names.logging_utils import NewLineFormatter
from mainboard.plugins.vllm_names.mla_prefill import (
    MLAPrefillBackendEnum,
    register_mla_prefill_backend,
)
from mainboard.plugins.vllm_names.sequence import IntermediateTensors
from mainboard.plugins.vllm_names.utils import (
    import_utils,
    math_utils,
    mem_constants,
    random_uuid,
    ray_utils,
    system_utils,
    torch_utils,
)
from mainboard.plugins.vllm_names.utils.argparse_utils import FlexibleArgumentParser


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 1000])
def test_whole_numbers(n):
    """Rounding and powers of two agree with their definitions."""
    assert math_utils.cdiv(n, 3) == -(-n // 3)
    assert math_utils.round_up(n, 8) - math_utils.round_down(n, 8) in (0, 8)
    below, above = math_utils.prev_power_of_2(n), math_utils.next_power_of_2(n)
    assert below <= n <= above < 2 * n
    assert below.bit_count() == above.bit_count() == 1
    assert n % math_utils.largest_power_of_2_divisor(n) == 0
    assert mem_constants.GiB_bytes == 1024 * mem_constants.MiB_bytes > mem_constants.GB_bytes


def test_powers_of_two_at_the_edge():
    """Nothing is below one."""
    assert (math_utils.next_power_of_2(0), math_utils.prev_power_of_2(0)) == (1, 0)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--max_num_seqs", "5"], {"max_num_seqs": 5}),
        (["--max-num-seqs=5", "model"], {"max_num_seqs": 5, "rest": ["model"]}),
        (
            ["--config.depth", "2", "--config.tree.leaf=a_b"],
            {"config": {"depth": 2, "tree": {"leaf": "a_b"}}},
        ),
        (["--config", '{"depth": 3}'], {"config": {"depth": 3}}),
        (["--config.on", "true"], {"config": {"on": True}}),
    ],
)
def test_options_with_underscores_and_parts(arguments, expected):
    """Dashes in names only; parts of one option become its JSON."""
    import json

    parser = FlexibleArgumentParser()
    parser.add_argument("--max-num-seqs", type=int, deprecated=False)
    parser.add_argument("--config", type=json.loads)
    parser.add_argument("rest", nargs="*")
    found = vars(parser.parse_args(arguments))
    assert {name: found[name] for name in expected} == expected


def test_wrong_options_are_argparses_own_errors(capsys):
    """A part without a value, and an unknown option."""
    parser = FlexibleArgumentParser(prog="engine")
    for arguments in (["--config.depth"], ["--no_such", "1"]):
        with pytest.raises(SystemExit):
            parser.parse_args(arguments)
        assert "unrecognized arguments" in capsys.readouterr().err
    assert parser.parse_known_args(["--other", "1"])[1] == ["--other", "1"]


def test_addresses_and_ports(monkeypatch):
    """What the environment says is taken; a free port is free."""
    monkeypatch.setenv("VLLM_HOST_IP", "192.0.2.7")
    assert system_utils.get_ip() == "192.0.2.7"
    monkeypatch.delenv("VLLM_HOST_IP")
    assert system_utils.get_ip().count(".") == 3 or ":" in system_utils.get_ip()
    monkeypatch.delenv("VLLM_PORT", raising=False)
    assert 1024 <= system_utils.get_open_port() < 65536
    assert system_utils.get_distributed_init_method("::1", 5) == "tcp://[::1]:5"
    assert system_utils.get_distributed_init_method("1.2.3.4", 5) == "tcp://1.2.3.4:5"


def test_variables_are_set_and_changes_told(monkeypatch, caplog):
    """Another value is replaced with a warning, the same one without."""
    monkeypatch.setenv("ACME_A", "1")
    monkeypatch.delenv("ACME_B", raising=False)
    system_utils.update_environment_variables({"ACME_A": "2", "ACME_B": "3"})
    assert (os.environ["ACME_A"], os.environ.pop("ACME_B")) == ("2", "3")
    assert [record.getMessage() for record in caplog.records] == ["ACME_A was '1' and is now '2'."]


def test_functions_that_run_once_and_what_they_take():
    """Once; by name, by name only, and by `**kwargs`."""
    calls = []
    once = system_utils.run_once(calls.append)
    once(1)
    once(2)
    assert calls == [1]

    def function(a, *, b, **rest):
        """Takes three."""

    assert system_utils.supports_kw(function, "a")
    assert not system_utils.supports_kw(function, "a", requires_kw_only=True)
    assert system_utils.supports_kw(function, "b", requires_kw_only=True)
    assert system_utils.supports_kw(function, "c")
    assert not system_utils.supports_kw(function, "c", allow_var_kwargs=False)
    assert len({random_uuid() for _ in range(9)}) == 9


def test_rays_processes(monkeypatch):
    """No without Ray, which is not imported for it; in an actor and outside as Ray says."""
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    assert not ray_utils.is_in_ray_actor()
    assert "ray" not in sys.modules
    context = SimpleNamespace(get_actor_id=lambda: None)
    ray = SimpleNamespace(is_initialized=lambda: True, get_runtime_context=lambda: context)
    monkeypatch.setitem(sys.modules, "ray", ray)
    assert ray_utils.is_ray_initialized()
    assert not ray_utils.is_in_ray_actor()
    context.get_actor_id = lambda: "a"
    assert ray_utils.is_in_ray_actor()


def test_a_placeholder_can_be_named_and_not_used():
    """Any use is the import's own error; naming a part of it is no use."""
    absent = import_utils.PlaceholderModule("a_library_that_is_not_here")
    part = absent.placeholder_attr("a").placeholder_attr("b")
    for use in (
        lambda: absent.anything,
        lambda: part.anything,
        lambda: part(),
        lambda: absent + 1,
        lambda: bool(absent),
        lambda: [*part],
    ):
        with pytest.raises(ModuleNotFoundError, match="a_library_that_is_not_here"):
            use()
    with pytest.raises(ImportError, match=r"json\.x was asked for where json was not importable"):
        _ = import_utils.PlaceholderModule("json").placeholder_attr("x").y


def test_modules_by_name_and_path(tmp_path, monkeypatch):
    """Found, read from a file, or put off until something of them is read."""
    assert import_utils.resolve_obj_by_qualname("os.path.join") is os.path.join
    file = tmp_path / "some_module.py"
    file.write_text("value = 3\n")
    monkeypatch.delitem(sys.modules, "some_module", raising=False)
    assert import_utils.import_from_path("some_module", file).value == 3
    monkeypatch.delitem(sys.modules, "some_module")
    scope = {}
    lazy = import_utils.LazyLoader("late", scope, "colorsys")
    assert scope == {}
    assert callable(lazy.rgb_to_hsv)
    assert scope["late"] is sys.modules["colorsys"]
    assert import_utils.has_triton_kernels() in (True, False)


def test_tensors_by_name():
    """Read, written, sliced, compared, made empty."""
    held = IntermediateTensors({"a": torch.arange(4), "b": torch.ones(4)})
    held["b"] = torch.zeros(4)
    part = held[1:3]
    assert [len(held), part["a"].tolist()] == [2, [1, 2]]
    assert held == IntermediateTensors(dict(held.items()))
    assert held != part
    assert held != "tensors"
    assert IntermediateTensors.empty_like(held)["a"].shape == (4,)


def test_torch_helpers_follow_the_platform():
    """Dtypes, streams, seeds and operators, on the CPU."""
    with use_platform("cpu"):
        assert torch_utils.PIN_MEMORY is False
        assert torch_utils.current_stream().synchronize() is None
        torch_utils.set_random_seed(5)
        first = torch.rand(3)
        torch_utils.set_random_seed(5)
        assert torch.equal(first, torch.rand(3))
        torch_utils.set_random_seed(None)

        def double(x: torch.Tensor) -> torch.Tensor:
            return x * 2

        torch_utils.direct_register_custom_op("mainboard_tests_double", double, fake_impl=double)
        assert torch.ops.vllm.mainboard_tests_double(torch.ones(2)).tolist() == [2, 2]
        assert retired.cuda_device_count_stateless() >= 1
    assert torch_utils.STR_DTYPE_TO_TORCH_DTYPE["half"] is torch.float16
    assert torch_utils.get_dtype_size(torch.bfloat16) == 2
    assert (
        torch_utils.kv_cache_dtype_str_to_dtype("auto", SimpleNamespace(dtype="float"))
        is torch.float
    )
    with pytest.raises(ValueError, match="dtype 'int3' was asked for; the names known are float32"):
        torch_utils.get_kv_cache_torch_dtype("int3")
    with pytest.raises(ValueError, match="without the model's dtype"):
        torch_utils.get_kv_cache_torch_dtype("auto")
    with torch_utils.set_default_torch_dtype(torch.float64):
        assert torch.ones(1).dtype is torch.float64
    assert torch.ones(1).dtype is torch.float32
    assert torch_utils.is_torch_equal_or_newer("2.0")
    with pytest.raises(AttributeError, match="no_such"):
        _ = torch_utils.no_such


def test_prompts_as_an_engine_passes_them_on():
    """Dictionaries by kind, with a salt where there is one."""
    assert inputs.tokens_input([1]) == {"type": "token", "prompt_token_ids": [1]}
    assert inputs.embeds_input(torch.ones(1), "s")["cache_salt"] == "s"


@pytest.fixture
def registries(monkeypatch):
    """Registries as they were, afterwards."""
    for manager in (parsers.ReasoningParserManager, parsers.ToolParserManager):
        monkeypatch.setattr(manager, "lazy_parsers", {})
        kept = "reasoning_parsers" if hasattr(manager, "reasoning_parsers") else "tool_parsers"
        monkeypatch.setattr(manager, kept, {})
    monkeypatch.setattr(KVConnectorFactory, "_registry", {})
    monkeypatch.setattr(quantization, "_registered", {})
    monkeypatch.setattr(quantization, "QUANTIZATION_METHODS", ["awq"])


def test_parsers_are_registered_in_every_way(registries):
    """As a decorator, a call, several names, lazily; the last registration counts."""
    manager = parsers.ToolParserManager

    @manager.register_module(["one", "two"])
    class First(parsers.ToolParser):
        """A parser."""

    @manager.register_module()
    class Second(parsers.ToolParser):
        """Another."""

    manager.register_module("one", module=Second)
    assert manager.list_registered() == ["Second", "one", "two"]
    assert manager.get_tool_parser("one") is Second
    manager.register_lazy_module("two", "mainboard.plugins.vllm_names.parsers", "ToolParser")
    assert manager.get_tool_parser("two") is parsers.ToolParser
    with pytest.raises(KeyError, match="force=True replaces it"):
        manager.register_module("one", force=False, module=First)
    with pytest.raises(TypeError, match="derive it from ToolParser"):
        manager.register_module("x", module=int)
    with pytest.raises(
        KeyError, match="no tool parser 'none' is registered; registered are Second"
    ):
        manager.get_tool_parser("none")
    assert parsers.ReasoningParserManager.list_registered() == []
    parser = First(SimpleNamespace(get_vocab=lambda: {"a": 1}))
    assert (parser.vocab, parser.adjust_request("r")) == ({"a": 1}, "r")


def test_a_lazy_parser_that_cannot_be_imported_names_its_place(registries):
    """The error has name, place and cause."""
    manager = parsers.ReasoningParserManager
    manager.register_lazy_module("deep", "no_such_package.deep", "Deep")
    with pytest.raises(
        PluginLoadError, match=r"'deep' is registered as no_such_package\.deep:Deep"
    ):
        manager.get_reasoning_parser("deep")


def test_connectors_and_methods_of_quantization(registries):
    """Registered once, found by name, and refused with what there is."""
    KVConnectorFactory.register_connector("c", "collections", "OrderedDict")
    assert KVConnectorFactory.get_connector_class_by_name("c").__name__ == "OrderedDict"
    with pytest.raises(ValueError, match="is registered already"):
        KVConnectorFactory.register_connector("c", "collections", "Counter")
    with pytest.raises(ValueError, match="no connector 'd' is registered; registered are c"):
        KVConnectorFactory.get_connector_class_by_name("d")

    @quantization.register_quantization_config("four")
    class Four(quantization.QuantizationConfig):
        """A method."""

    assert quantization.get_quantization_config("four") is Four
    assert quantization.QUANTIZATION_METHODS == ["awq", "four"]
    assert quantization.is_registered("four")
    assert Four.get_from_keys_or({"b": 1}, ["a", "b"], 2) == 1
    with pytest.raises(ValueError, match="has none of a, b"):
        Four.get_from_keys({}, ["a", "b"])
    with pytest.raises(ValueError, match="'awq' is vLLM's own, and vLLM is not installed"):
        quantization.get_quantization_config("awq")
    with pytest.raises(ValueError, match="'five' is not known; registered here are four"):
        quantization.get_quantization_config("five")
    with pytest.raises(ValueError, match="derive it from QuantizationConfig"):
        quantization.register_quantization_config("six")(int)


def test_first_passes_of_latent_attention():
    """Those of vLLM lead to its own classes, CUSTOM to what is registered."""
    custom = MLAPrefillBackendEnum.CUSTOM
    with pytest.raises(ValueError, match="CUSTOM has no backend yet"):
        custom.get_path()
    with pytest.raises(ValueError, match="is called 'NONE'; there are FLASH_ATTN"):
        _ = MLAPrefillBackendEnum["NONE"]
    try:
        register_mla_prefill_backend("CUSTOM", "collections.OrderedDict")
        assert custom.get_class().__name__ == "OrderedDict"

        @register_mla_prefill_backend(custom)
        class Mine:
            """A backend."""

        assert custom.get_path().endswith("Mine")
        assert custom.is_overridden()
    finally:
        custom.clear_override()
    assert MLAPrefillBackendEnum.CPU.get_path().startswith(
        "vllm.v1.attention.backends.mla.prefill."
    )


def test_formats_that_ask_for_vllms_own_fields():
    """The process and the file, as vLLM's record factory would add them."""
    import logging

    record = logging.LogRecord("acme", 20, "/a/file.py", 3, "said", (), None)
    text = NewLineFormatter("%(vllm_process_name)s %(fileinfo)s %(message)s", log_level="INFO")
    assert text.format(record) == "MainProcess file.py said"
