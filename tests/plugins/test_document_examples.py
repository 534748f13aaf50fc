"""The examples of vLLM's plugin document, installed with pip from a setup.py, without vLLM."""

import subprocess
import sys

import pytest

REAL_VLLM = {
    "vllm/__init__.py": "__version__ = 'real'\n",
    "vllm/platforms/__init__.py": "from vllm.platforms.interface import Platform, PlatformEnum\n",
    "vllm/platforms/interface.py": """
import enum

class PlatformEnum(enum.Enum):
    OOT = enum.auto()

class Platform:
    pass
""",
    "vllm/logger.py": "import logging\ninit_logger = logging.getLogger\n",
    "vllm/envs.py": "VLLM_WORKER_MULTIPROC_METHOD = 'spawn'\n",
}


@pytest.fixture
def real_vllm(tmp_path):
    """A folder with a package that is named vllm and stands for a real installation."""
    for name, text in REAL_VLLM.items():
        file = tmp_path / "site" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path / "site"


def test_the_general_plugin_example_registers_its_model(run):
    """`register()` finds ModelRegistry under vllm; the model's module is not imported for it."""
    program = """
import json, sys
from mainboard import ModelRegistry
from mainboard.plugins import load_general_plugins
load_general_plugins()
known = "MyLlava" in ModelRegistry.get_supported_archs()
early = "vllm_add_dummy_model.my_llava" in sys.modules
model = ModelRegistry.resolve("MyLlava")
print(json.dumps([known, early, f"{model.__module__}:{model.__qualname__}", "torch" in sys.modules]))
"""
    outcome = run(program, "vllm_add_dummy_model")
    assert outcome.json == [True, False, "vllm_add_dummy_model.my_llava:MyLlava", False]
    assert outcome.stderr == ""


def test_the_platform_example_is_the_current_platform(run):
    """A class that derives from vllm.platforms.interface.Platform is chosen and works."""
    program = """
import json, sys
from mainboard.platforms import Platform, current_platform, selection
print(json.dumps([current_platform.get_device_name(3), current_platform.device_type,
                  current_platform.is_out_of_tree(), isinstance(current_platform, Platform),
                  selection().chosen.provider, "torch" in sys.modules]))
"""
    outcome = run(program, "vllm_add_dummy_platform")
    provider = "vllm_add_dummy_platform 0.1"
    assert outcome.json == ["DummyDevice:3", "privateuseone", True, True, provider, False]
    assert outcome.stderr == ""


def test_both_examples_and_the_functions_under_their_vllm_names(run):
    """What vLLM's documents call by vllm names is there by those names."""
    program = """
import json
import mainboard.plugins
mainboard.plugins.report()
from vllm.plugins import DEFAULT_PLUGINS_GROUP, load_general_plugins, load_plugins_by_group
from vllm.platforms import current_platform, resolve_current_platform_cls_qualname
load_general_plugins()
from vllm import ModelRegistry
general = sorted(load_plugins_by_group(DEFAULT_PLUGINS_GROUP))
platform = load_plugins_by_group("vllm.platform_plugins")["dummy_platform_plugin"]
print(json.dumps([general, platform(), resolve_current_platform_cls_qualname(),
                  current_platform.device_name, list(ModelRegistry.get_supported_archs())]))
"""
    path = "vllm_add_dummy_platform.dummy_platform.DummyPlatform"
    assert run(program, "vllm_add_dummy_model", "vllm_add_dummy_platform").json == [
        ["register_dummy_model"],
        path,
        path,
        "DummyDevice",
        ["MyLlava"],
    ]


def test_a_real_vllm_is_used_and_its_platform_base_accepted(run, real_vllm):
    """With vLLM installed its own modules are imported, and a class on its base is a platform."""
    program = """
import json
from mainboard.platforms import Platform, current_platform
import vllm
print(json.dumps([current_platform.device_name, isinstance(current_platform, Platform),
                  vllm.__version__, type(current_platform).workers]))
"""
    answer = run(program, "vllm_add_dummy_platform", path=(real_vllm,)).json
    assert answer == ["DummyDevice", False, "real", "spawn"]


def test_a_real_vllm_is_not_completed_by_the_alias(run, real_vllm):
    """A module that the installed vLLM lacks is missing, with Python's own message."""
    program = """
import mainboard.plugins
mainboard.plugins.report()
try:
    import vllm.model_executor
except ImportError as error:
    print('"%s"' % str(error).replace('"', ""))
"""
    answer = run(program, path=(real_vllm,)).json
    assert answer == "No module named 'vllm.model_executor'"


def test_without_mainboard_the_alias_does_not_exist():
    """The stand-in appears with Mainboard's plugins, never in a program that loads none."""
    program = "import importlib.util, mainboard.platforms as p; p.Platform;"
    program += "raise SystemExit(importlib.util.find_spec('vllm') is not None)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
