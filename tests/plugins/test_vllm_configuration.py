"""Configurations, parameters and variables against what vLLM 0.33 has (vllm_0_33.json)."""

import copy
import dataclasses
import json
import pickle
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from mainboard.platforms import use_platform
from mainboard.plugins.alias_table import ALIASES
from mainboard.plugins.vllm_names import envs, sampling_params
from mainboard.plugins.vllm_names.config import compilation, engine, features, memory, model, work

VLLM = json.loads((Path(__file__).parent / "vllm_0_33.json").read_text())
MODULES = (compilation, engine, features, memory, model, work, sampling_params)

# Made when an object is: another object, or something of this process.
MADE = "(made)"


def find(name: str) -> type:
    """Our class of this name."""
    return next(vars(module)[name] for module in MODULES if name in vars(module))


@pytest.fixture(autouse=True)
def on_the_cpu():
    """Building a configuration asks for the platform; here it is the CPU."""
    with use_platform("cpu"):
        yield


@pytest.mark.parametrize(
    ("name", "expected"), [*VLLM["configurations"].items(), *VLLM["parameters"].items()]
)
def test_names_order_and_defaults_are_those_of_vllm(name, expected):
    """Field by field, those for the constructor alone included."""
    ours = find(name)
    fields = {
        field_name: field
        for field_name, field in ours.__dataclass_fields__.items()
        if field in dataclasses.fields(ours) or isinstance(field.type, dataclasses.InitVar)
    }
    assert list(fields) == list(expected)
    for field_name, default in expected.items():
        field = fields[field_name]
        made = field.default_factory is not dataclasses.MISSING
        if default == MADE:
            continue
        if default == "(required)":
            assert not made
            assert field.default is dataclasses.MISSING
        elif default == "(empty set)":
            assert field.default_factory() == set()
        else:
            assert (field.default_factory() if made else field.default) == default, field_name


def test_every_configuration_of_the_table_is_compared():
    """Nothing is offered under `vllm.config` that has not been held against vLLM."""
    offered = {name for name in ALIASES["vllm.config"].names if name.endswith("Config")}
    assert offered - {"PassConfig"} <= set(VLLM["configurations"])


def test_variables_have_the_defaults_of_vllm(monkeypatch):
    """Each that vLLM reads is known, and without a setting is what vLLM makes of it."""
    for name in VLLM["environment"]:
        monkeypatch.delenv(name, raising=False)
    assert {name: getattr(envs, name) for name in VLLM["environment"]} == VLLM["environment"]


def test_a_configuration_is_a_dataclass_in_every_use():
    """Built by position and name, compared, shown, copied, changed, pickled and hashed."""
    first = memory.CacheConfig(32, gpu_memory_utilization=0.5)
    assert first.user_specified_block_size
    assert first == copy.deepcopy(first) == pickle.loads(pickle.dumps(first))
    assert first != memory.CacheConfig()
    assert first != "CacheConfig"
    assert "block_size=32" in repr(first)
    changed = engine.replace(engine.VllmConfig(), instance_id="a")
    assert dataclasses.is_dataclass(changed)
    assert changed.instance_id == "a"
    assert dataclasses.asdict(first)["block_size"] == 32
    assert first.compute_hash() != memory.CacheConfig().compute_hash()
    nested = engine.update_config(changed, {"cache_config": {"cache_dtype": "fp8"}})
    assert nested.cache_config.cache_dtype == "fp8"
    with pytest.raises(AttributeError, match="no field 'cache'"):
        engine.update_config(changed, {"cache": 1})


@pytest.mark.parametrize(
    ("values", "named", "message"),
    [
        ((), {"blok_size": 1}, "given blok_size; it takes, once each, block_size"),
        ((1,), {"block_size": 1}, "given block_size"),
        ((), {"num_gpu_blocks": 1}, "given num_gpu_blocks"),
        ((1,) * 40, {}, "given 40 values"),
    ],
)
def test_wrong_arguments_are_named(values, named, message):
    """Unknown, twice, not for the constructor, too many."""
    with pytest.raises(TypeError, match=message):
        memory.CacheConfig(*values, **named)
    with pytest.raises(TypeError, match="SchedulerConfig needs max_model_len"):
        work.SchedulerConfig()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: memory.CacheConfig(gpu_memory_utilization=1.5), "at most 1"),
        (lambda: memory.KVTransferConfig(kv_connector="c"), "without a kv_role"),
        (lambda: features.LoRAConfig(max_loras=4, max_cpu_loras=1), "must not be below max_loras"),
        (
            lambda: work.SchedulerConfig(9000, False, enable_chunked_prefill=False),
            "whole context of 9000 must fit",
        ),
        (
            lambda: work.SchedulerConfig.default_factory(max_num_seqs=4096),
            "must not be below max_num_seqs",
        ),
        (lambda: compilation.CompilationConfig(custom_ops=["+a", "-a"]), "both on and off"),
        (
            lambda: sampling_params.SamplingParams(temperature=3),
            "temperature is 3; it must be from",
        ),
        (lambda: sampling_params.SamplingParams(n=0), "n is 0; it must be at least 1"),
        (lambda: sampling_params.StructuredOutputsParams(), "given none"),
    ],
)
def test_values_that_make_no_sense_are_refused(build, message):
    """As vLLM refuses them, with what was given and what is allowed."""
    with pytest.raises(ValueError, match=message):
        build()


def test_what_is_derived_when_a_configuration_is_built():
    """World sizes, executors, limits, roles and devices."""
    parallel = work.ParallelConfig(tensor_parallel_size=4, pipeline_parallel_size=2)
    assert (parallel.world_size, parallel.distributed_executor_backend) == (8, "mp")
    assert work.ParallelConfig().distributed_executor_backend == "uni"
    assert work.ParallelConfig(data_parallel_size=2, data_parallel_backend="ray").use_ray
    scheduler = work.SchedulerConfig(512, True, max_num_batched_tokens=1024)
    assert (scheduler.enable_chunked_prefill, scheduler.encoder_cache_size) == (False, 1024)
    assert work.DeviceConfig().device_type == "cpu"
    assert str(work.DeviceConfig("meta:0").device) == "meta"
    transfer = memory.KVTransferConfig(kv_connector="c", kv_role="kv_both")
    assert transfer.is_kv_producer
    assert transfer.is_kv_consumer
    assert memory.KVEventsConfig(enable_kv_cache_events=True).publisher == "zmq"
    cache = memory.CacheConfig()
    cache.device_memory_utilization = 0.25
    assert (cache.block_size, cache.gpu_memory_utilization) == (16, 0.25)
    assert not cache.user_specified_block_size


@pytest.mark.parametrize(
    ("options", "mode", "graphs", "sizes"),
    [
        ({}, 3, "FULL_AND_PIECEWISE", [1, 2, 4, 8]),
        ({"optimization_level": 0}, 0, "NONE", []),
        ({"optimization_level": 1}, 3, "PIECEWISE", [1, 2, 4, 8]),
    ],
)
def test_the_level_decides_what_is_compiled_and_captured(options, mode, graphs, sizes):
    """Where nobody has; captured sizes reach twice the number of sequences."""
    scheduler = work.SchedulerConfig.default_factory(max_num_seqs=4)
    config = engine.VllmConfig(scheduler_config=scheduler, **options)
    chosen = config.compilation_config
    assert (chosen.mode, str(chosen.cudagraph_mode)) == (mode, graphs)
    assert (chosen.cudagraph_capture_sizes, chosen.max_cudagraph_capture_size) == (
        sizes,
        max(sizes, default=0),
    )
    eager = model.ModelConfig(enforce_eager=True, max_model_len=8)
    assert not engine.VllmConfig(eager, **options).compilation_config.cudagraph_mode


def test_what_a_whole_configuration_answers(monkeypatch):
    """How many tokens a step has, and which model runner is asked for."""
    config = engine.VllmConfig(
        speculative_config=features.SpeculativeConfig(num_speculative_tokens=3)
    )
    assert (config.num_speculative_tokens, config.uniform_decode_query_len) == (3, 4)
    assert (engine.VllmConfig().num_speculative_tokens, config.use_v2_model_runner) == (0, False)
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    assert config.use_v2_model_runner


def test_modes_of_graphs_combine_as_in_vllm():
    """A pair is one mode for decoding and one for the rest."""
    modes = compilation.CUDAGraphMode
    both = modes.FULL_AND_PIECEWISE
    assert (both.decode_mode(), both.mixed_mode()) == (modes.FULL, modes.PIECEWISE)
    assert both.has_full_cudagraphs()
    assert both.has_piecewise_cudagraphs()
    assert both.without_piecewise() is modes.FULL_DECODE_ONLY
    assert modes.PIECEWISE.without_piecewise() is modes.NONE
    assert modes.FULL.max_cudagraph_mode() is modes.FULL
    assert both.separate_routine()
    assert not both.is_valid_runtime_mode()
    assert modes.valid_runtime_modes() == {modes.NONE, modes.PIECEWISE, modes.FULL}


LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 33,
    "vocab_size": 32000,
    "max_position_embeddings": 8192,
}


def with_checkpoint(monkeypatch, **says):
    """A model configuration whose checkpoint, read by Transformers, says this."""
    read = []

    def from_pretrained(name, **options):
        read.append(name)
        return SimpleNamespace(**says)

    transformers = ModuleType("transformers")
    transformers.AutoConfig = SimpleNamespace(from_pretrained=from_pretrained)
    monkeypatch.setitem(sys.modules, "transformers", transformers)
    return model.ModelConfig("a/model"), read


def test_a_checkpoint_is_read_when_it_is_first_asked_for(monkeypatch):
    """Once; building, showing and comparing do not ask."""
    config, read = with_checkpoint(monkeypatch, **LLAMA)
    assert "a/model" in repr(model.ModelConfig("a/model", max_model_len=1))
    assert config.tokenizer == config.served_model_name == "a/model"
    assert (config.runner_type, read) == ("generate", [])
    assert config.max_model_len == 8192
    assert config.hf_text_config is config.hf_config
    assert read == ["a/model"]
    with pytest.raises(AttributeError, match="no attribute 'max_len'"):
        _ = config.max_len


def test_the_shape_of_a_model_comes_from_its_checkpoint(monkeypatch):
    """Heads, layers and limits, divided between devices."""
    config, _ = with_checkpoint(monkeypatch, **LLAMA)
    parallel = work.ParallelConfig(tensor_parallel_size=16, pipeline_parallel_size=2)
    assert config.architecture == "LlamaForCausalLM"
    assert (config.get_hidden_size(), config.get_head_size()) == (4096, 128)
    assert config.get_num_attention_heads(parallel) == 2
    assert config.get_num_kv_heads(parallel) == 1
    assert config.get_num_layers(parallel) == 17
    assert config.get_vocab_size() == 32000
    assert config.get_and_verify_max_len(None) == 8192
    with pytest.raises(ValueError, match="was made for 8192"):
        config.get_and_verify_max_len(9000)
    asked = (config.use_mla, config.is_moe, config.is_quantized, config.is_encoder_decoder)
    assert asked == (False, False, False, False)
    assert (config.is_hybrid, config.is_attention_free) == (False, False)
    mixed, _ = with_checkpoint(monkeypatch, layer_types=["mamba", "full_attention"])
    assert (mixed.is_hybrid, mixed.is_attention_free) == (True, True)
    latent, _ = with_checkpoint(
        monkeypatch, **LLAMA, kv_lora_rank=512, qk_rope_head_dim=64, n_routed_experts=8
    )
    assert (latent.use_mla, latent.is_moe, latent.get_head_size()) == (True, True, 576)
    assert latent.get_num_kv_heads(parallel) == 1


def test_without_transformers_the_checkpoint_is_set_by_hand(monkeypatch):
    """The error says so; what is set is used."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    config = model.ModelConfig("a/model", max_model_len=5, limit_mm_per_prompt={"image": 2})
    with pytest.raises(ImportError, match="install transformers, or set hf_config"):
        _ = config.hf_config
    config.hf_config = SimpleNamespace(**LLAMA)
    assert config.get_hidden_size() == 4096
    assert config.is_multimodal_model
    assert config.get_multimodal_config().get_limit_per_prompt("image") == 2


def test_the_configuration_in_use_is_a_scope():
    """Nested, and none outside."""
    outer, inner = engine.VllmConfig(), engine.VllmConfig()
    outer.compilation_config.static_forward_context |= {"a": 1, "b": "x"}
    with engine.set_current_vllm_config(outer):
        with engine.set_current_vllm_config(inner):
            assert engine.get_current_vllm_config() is inner
        assert engine.get_current_vllm_config() is outer
    assert engine.get_current_vllm_config_or_none() is None
    with pytest.raises(AssertionError, match="outside of set_current_vllm_config"):
        engine.get_current_vllm_config()
    assert engine.get_layers_from_vllm_config(outer, int) == {"a": 1}


def test_sampling_parameters_are_completed():
    """Stops become lists, greedy sampling needs no limits, and a copy is one's own."""
    params = sampling_params.SamplingParams(
        temperature=0, top_p=0.5, top_k=7, seed=-1, stop="end", stop_token_ids=[1, 1, 2]
    )
    assert (params.top_p, params.top_k, params.seed) == (1.0, 0, None)
    assert (params.stop, params.stop_token_ids, params.all_stop_token_ids) == (
        ["end"],
        [1, 2],
        {1, 2},
    )
    assert params.output_text_buffer_length == 2
    assert params.sampling_type is sampling_params.SamplingType.GREEDY
    seeded = sampling_params.SamplingParams.from_optional(seed=3, top_p=None, max_tokens=None)
    assert seeded.sampling_type is sampling_params.SamplingType.RANDOM_SEED
    assert (seeded.top_p, seeded.max_tokens) == (1.0, None)
    cloned = params.clone()
    cloned.stop.append("more")
    assert params.stop == ["end"]
