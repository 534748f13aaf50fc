"""Traps that packages written for vLLM set, one installed distribution each (vllm_shapes.toml)."""

import json

import pytest

CHOOSE = """
import json, sys
from mainboard import platforms
decision = platforms.selection()
chosen = decision.chosen
def verdict(name):
    return next(each for each in decision.verdicts if each.name == name)
platform = platforms.current_platform
"""

LOAD = """
import json, sys
from mainboard.plugins import load_general_plugins, report
load_general_plugins()
states = [str(plugin.state) for plugin in report().plugins if "general" in plugin.group]
"""


def test_a_path_given_without_looking_at_the_machine(run):
    """Its class cannot be imported here: that is said, and a built-in is used."""
    program = CHOOSE + (
        "v = verdict('constant'); print(json.dumps([v.state, v.code, v.reason, chosen.provider]))"
    )
    state, code, reason, provider = run(program, "constant-path").json
    assert (state, code, provider) == ("failed", "class_import_failed", "built-in")
    assert "library_of_the_npu" in reason


def test_effects_before_a_none_are_left_and_harm_nobody(run):
    """It declines, was called once, and what it did to shared tables can be seen."""
    program = (
        CHOOSE
        + """
import os, effects_then_none, vllm.envs, vllm.logger
print(json.dumps([verdict("effects").state, effects_then_none.calls, os.environ["EFFECTS_WAS_HERE"],
    vllm.envs.VLLM_EFFECTS, "effects" in vllm.logger.DEFAULT_LOGGING_CONFIG["loggers"],
    chosen.provider]))
"""
    )
    answer = run(program, "effects-then-none").json
    assert answer == ["declined", [1], "1", "left behind", True, "built-in"]


@pytest.mark.parametrize(
    ("distribution", "device_name", "family"),
    [
        ("derives-cpu", "zen", "cpu"),
        ("derives-cuda", "suda", "cuda"),
        ("derives-rocm", "dcu", "rocm"),
    ],
)
def test_a_class_that_derives_from_a_built_in_one(run, distribution, device_name, family):
    """Without that hardware it is chosen, keeps its base's kind, and its own answers count."""
    program = (
        CHOOSE
        + """
kinds = [kind for kind in ("cpu", "cuda", "rocm") if getattr(platform, "is_" + kind)()]
own = {"zen": lambda: platform.get_device_name().startswith("zen on "),
       "suda": lambda: platform.has_device_capability(80),
       "dcu": lambda: platform.get_device_total_memory() == 64 << 30}
print(json.dumps([platform.device_name, kinds, own[platform.device_name](),
    platform.is_out_of_tree(), "torch" in sys.modules]))
"""
    )
    assert run(program, distribution).json == [device_name, [family], True, False, False]


def test_a_duck_is_refused_with_what_it_lacks(run):
    """Members are not enough: the verdict says which base class to derive from."""
    program = CHOOSE + (
        "v = verdict('duck'); print(json.dumps([v.state, v.code, v.reason, chosen.provider]))"
    )
    state, code, reason, provider = run(program, "duck-typed").json
    assert (state, code, provider) == ("failed", "not_a_platform", "built-in")
    assert "does not derive from vllm.platforms.interface.Platform" in reason


def test_a_latch_is_called_once(run):
    """Every way to ask for the platform, and the plugin's function was called once."""
    program = (
        CHOOSE
        + """
import latch, vllm.platforms
platforms.survey()
name = vllm.platforms.resolve_current_platform_cls_qualname()
print(json.dumps([latch.failed, name, platform.is_rocm(), platform.is_out_of_tree()]))
"""
    )
    assert run(program, "latch").json == [[1], "latch.Latched", True, False]


def test_torch_utils_can_be_imported_while_the_platform_is_chosen(run):
    """Importing it asks for nothing; `PIN_MEMORY` is the chosen platform's when it is read."""
    program = (
        CHOOSE
        + """
import nested
from vllm.utils.torch_utils import PIN_MEMORY, current_stream
print(json.dumps([nested.calls, platform.device_name, PIN_MEMORY, current_stream().synchronize()]))
"""
    )
    assert run(program, "nested").json == [[1], "nested", True, None]


def test_retired_names_work_and_say_what_replaced_them(run):
    """Each warns once, names the plugin or the line, and keeps what it meant."""
    program = (
        CHOOSE
        + """
from vllm.platforms.interface import _Backend
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.sampling_params import SamplingParams
parser = FlexibleArgumentParser()
platform.pre_register_and_update(parser)
try:
    platform.validate_request("", SamplingParams(temperature=1.5), {})
except ValueError as error:
    refused = str(error)
print(json.dumps([platform.device_name, parser.parse_args(["--old_option", "3"]).old_option,
    refused, platform.memory, platform.dynamo, int(platform.level)]))
"""
    )
    outcome = run(program, "retired")
    assert outcome.json == ["old", 3, "too hot", 2 << 30, True, 3]
    warnings = [line for line in outcome.stderr.splitlines() if "no longer has it" in line]
    names = [line.partition(" was used by ")[0] for line in warnings]
    assert len(names) == len(set(names)) == 11
    assert all("plugin 'retired' of retired 1" in line for line in warnings)
    replaced = dict(zip(names, (line.rpartition(" Use ")[2] for line in warnings), strict=True))
    assert replaced["vllm.config.CompilationLevel"] == "vllm.config.CompilationMode."
    registry = "attention.backends.registry"
    assert replaced[f"vllm.{registry}"] == f"vllm.v1.{registry}."
    assert replaced["vllm.utils.GiB_bytes"] == "vllm.utils.mem_constants.GiB_bytes."
    assert replaced["vllm.logger.VLLM_LOGGING_LEVEL"] == "vllm.envs.VLLM_LOGGING_LEVEL."


def test_drifted_signatures_are_called_with_what_they_take(run):
    """Its backend, and no backend, whichever form it has; and the report names each member."""
    program = (
        CHOOSE
        + """
from types import SimpleNamespace
from mainboard.platforms.foreign_calls import attention_backend, call_hook, drift
config = SimpleNamespace(head_size=64, dtype="float32", kv_cache_dtype="auto", block_size=16)
backends = []
for config.use_mla in (False, True):
    backends.append(attention_backend(platform, None, config, 8))
call_hook(platform, "set_device", "cpu:1")
print(json.dumps([backends, type(platform).chosen,
    sorted((each.member, each.kind) for each in drift(platform))]))
"""
    )
    backends, chosen, found = run(program, "drifted").json
    assert backends == ["drifted.Attention64", None]
    assert chosen == "cpu:1"
    assert found == [
        ["get_attn_backend_cls", "signature"],
        ["set_device", "signature"],
        ["validate_request", "signature"],
    ]


def test_the_doctor_tells_what_is_missing_retired_or_otherwise(run):
    """As data and as text; it is no problem, since each call is served."""
    program = "from mainboard.cli import main; raise SystemExit(main({}))"
    words = ["doctor", "--no-checks", "--json"]
    report = json.loads(run(program.format(words), "retired").stdout)
    assert report["ok"]
    found = {(each["member"], each["kind"]) for each in report["drift"]}
    assert {("seed_everything", "retired"), ("supports_v1", "retired")} <= found
    assert ("validate_request", "signature") in found
    text = run(program.format(words[:2]), "retired").stdout
    assert "Another contract: Old defines seed_everything, which nobody calls; see manual" in text


def test_two_packages_edit_one_logging_configuration(run):
    """In place and through shallow copies, in one process; both are heard, prefix and all."""
    outcome = run(LOAD + "print(json.dumps(states))", "logs-in-place", "logs-copied")
    assert outcome.json == ["called", "called"], outcome.stderr
    lines = outcome.stderr.splitlines()
    assert "FIRST logs_in_place one" in lines
    assert "FIRST logs_in_place two" in lines
    assert any(
        line.startswith("SECOND (MainProcess) ") and line.endswith("three") for line in lines
    )
    assert any(line.endswith("four") for line in lines)


def test_variables_that_packages_add_change_and_set(run):
    """One dictionary under every name, and an attribute that was written wins."""
    program = (
        LOAD
        + """
import os, vllm.envs
from mainboard.plugins.vllm_names import envs
os.environ["VLLM_ACME_TILES"] = "8"
vllm.envs.validate_environ(hard_fail=True)
print(json.dumps([states, vllm.envs.VLLM_ACME_TILES, envs.VLLM_ACME_TILES, vllm.envs.VLLM_PORT,
    vllm.envs.VLLM_HOST_IP, "VLLM_ACME_TILES" in dir(vllm.envs), vllm.envs.is_set("VLLM_ACME_TILES")]))
"""
    )
    assert run(program, "mutable-envs").json == [["called"], 8, 8, 4711, "10.0.0.1", True, True]


def test_names_that_only_a_modules_getattr_has(run):
    """The plugin's function and its class are found by asking for them."""
    program = CHOOSE + "print(json.dumps([platform.device_name, type(platform).__module__]))"
    assert run(program, "lazy-names").json == ["lazy", "lazy_names.real"]


def test_a_plugin_that_replaces_the_import_statement(run):
    """Its own modules stand for those it names, and everything else imports as before."""
    program = (
        CHOOSE
        + """
import builtins, colorsys
from vllm.utils.math_utils import cdiv
from vllm.config import CacheConfig
print(json.dumps([builtins.__import__.__module__, platform.answer, cdiv(1, 2),
    CacheConfig().block_size]))
"""
    )
    assert run(program, "replaces-import").json == ["replaces_import", "ours", "ours", 16]


def test_every_way_to_ask_for_vllm_has_an_answer(run):
    """Module, specification, path and version are there; a distribution is not claimed."""
    found = run(
        LOAD + "import asks_for_vllm; print(json.dumps(asks_for_vllm.found))", "asks-for-vllm"
    )
    answers = found.json
    assert len(answers) == 10
    assert all(answers.values()), answers


def test_compiled_extensions_are_absent_and_the_error_says_why(run):
    """Each import raises ImportError, never returns a stand-in."""
    program = CHOOSE + "import without_extensions as w; print(json.dumps(w.missing))"
    missing = run(program, "without-extensions").json
    assert len(missing) == 6
    for text in missing:
        assert "vLLM is not installed" in text
        assert "on purpose" in text


def test_what_packages_put_into_modules_is_used(run):
    """For good, and for the time of a patch; then the original is back."""
    outcome = run(LOAD + "import patches; print(json.dumps([states, patches.seen]))", "patches")
    assert outcome.json == [["called"], ["patched", "patched", True, "patched", 16]], outcome.stderr


CONFIGURE = (
    LOAD
    + """
from vllm.config import ModelConfig, SchedulerConfig, VllmConfig
from mainboard.platforms import current_platform
from types import SimpleNamespace
model = ModelConfig("some/model", max_model_len=4096, dtype="auto")
model.hf_config = SimpleNamespace(num_attention_heads=8, hidden_size=512)
config = VllmConfig(model_config=model, additional_config={"strict": True})
before = config.compute_hash()
current_platform.check_and_update_config(config)
parallel, cache, compilation = config.parallel_config, config.cache_config, config.compilation_config
"""
)


def test_check_and_update_config_gets_a_real_configuration(run):
    """What a platform reads is there, and what it writes stays."""
    program = CONFIGURE + (
        "print(json.dumps([states, parallel.worker_cls, parallel.disable_custom_all_reduce,"
        " cache.block_size, cache.enable_prefix_caching, config.scheduler_config.max_num_batched_tokens,"
        " str(compilation.cudagraph_mode), compilation.mode, before != config.compute_hash()]))"
    )
    outcome = run(program, "configures")
    assert outcome.json == [
        ["called"],
        "configures.worker.Worker",
        True,
        128,
        False,
        4096,
        "PIECEWISE",
        0,
        True,
    ], outcome.stderr
    assert "strict" in outcome.stderr


def test_registrations_can_be_asked_for(run):
    """Backends, parsers, connectors and methods of quantization, imported when they are asked for."""
    program = (
        LOAD
        + """
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.model_executor.layers.quantization import get_quantization_config
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager
from vllm.v1.attention.backends.mla.prefill.registry import MLAPrefillBackendEnum
from vllm.v1.attention.backends.registry import AttentionBackendEnum
lazy = "configures.parsers" not in sys.modules
found = [ReasoningParserManager.get_reasoning_parser("deep"),
    ToolParserManager.get_tool_parser("tools"),
    KVConnectorFactory.get_connector_class_by_name("configures"),
    get_quantization_config("configures4")]
from mainboard.platforms import current_platform
current_platform.verify_quantization("configures4")
print(json.dumps([states, lazy, [each.__name__ for each in found],
    AttentionBackendEnum.CUSTOM.get_path(), MLAPrefillBackendEnum.CUSTOM.get_path()]))
"""
    )
    outcome = run(program, "configures")
    assert outcome.json == [
        ["called"],
        True,
        ["Deep", "Tools", "Connector", "Four"],
        "configures.attention.Backend",
        "configures.attention.Prefill",
    ], outcome.stderr


def test_vllm_itself_wins_and_its_class_hierarchy_is_accepted(run):
    """The stand-in is silent; a class of vLLM's own base is the platform, called with care."""
    program = (
        CHOOSE
        + """
import vllm
from types import SimpleNamespace
from mainboard.platforms.foreign_calls import attention_backend, call_hook
print(json.dumps([vllm.__version__, platform.real, type(platform).__mro__[1].__module__,
    isinstance(platform, platforms.Platform), call_hook(platform, "capabilities").pinned_memory,
    attention_backend(platform, None, SimpleNamespace(), 8), platform.no_such_thing]))
"""
    )
    answer = run(program, "vllm", "acme").json
    assert answer == ["0.99", True, "vllm.platforms.interface", False, False, None, None]


def test_the_shapes_are_loaded_together_and_in_a_second_process(run):
    """General shapes side by side in one process, twice: nobody disturbs another."""
    names = [
        "logs-in-place",
        "logs-copied",
        "mutable-envs",
        "asks-for-vllm",
        "patches",
        "configures",
    ]
    for _ in range(2):
        outcome = run(LOAD + LOAD + "print(json.dumps(states))", *names)
        assert outcome.json == ["called"] * len(names), outcome.stderr
        assert json.loads(outcome.stdout.splitlines()[-1])
