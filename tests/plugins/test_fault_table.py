"""Every way in which an installed platform package can be broken, and what people are told."""

from typing import NamedTuple

import pytest

CHOOSE = """
import json
from mainboard import platforms
decision = platforms.selection()
error = None
try:
    from mainboard.platforms import current_platform
except Exception as raised:
    error = {"type": type(raised).__name__, "text": str(raised),
             "cause": raised.__cause__ and repr(raised.__cause__)}
print(json.dumps({**decision.to_dict(), "raised": error}))
"""


class Fault(NamedTuple):
    """One broken distribution: its verdict's code, and words of the cause that must be told."""

    distribution: str
    code: str
    cause: tuple[str, ...]
    error: str = "PlatformUnavailableError"
    chained: str = ""


FAULTS = [
    Fault(
        "import-error",
        "import_failed",
        ("ModuleNotFoundError", "a_library_that_is_not_here"),
        chained="ModuleNotFoundError",
    ),
    Fault("import-exit", "plugin_exited", ("SystemExit", "no licence found"), chained="SystemExit"),
    Fault("raises", "plugin_raised", ("OSError", "driver 5.2 is too old"), chained="OSError"),
    Fault(
        "raises-attribute-error",
        "plugin_raised",
        ("AttributeError", "no_such_thing"),
        chained="AttributeError",
    ),
    Fault("exits", "plugin_exited", ("SystemExit: 3",), chained="SystemExit"),
    Fault(
        "no-function",
        "attribute_missing",
        ("AttributeError", "no attribute 'register'"),
        chained="AttributeError",
    ),
    Fault(
        "not-callable",
        "not_callable",
        ("TypeError", "'not_callable.platform.Class', which cannot be called"),
        chained="TypeError",
    ),
    Fault(
        "returns-number",
        "value_not_a_class",
        ("returned 42", "'package.module.Class'"),
        "PlatformContractError",
    ),
    Fault(
        "malformed-path",
        "path_malformed",
        ("returned 'not a path'", "'package.module.Class'"),
        "PlatformContractError",
    ),
    Fault(
        "missing-module",
        "module_missing",
        ("'missing_module.plattform.Class'", "no module 'missing_module.plattform'"),
        chained="ModuleNotFoundError",
    ),
    Fault(
        "missing-class",
        "class_missing",
        ("has no 'RightPlatfrom'", "it has RightPlatform"),
        "PlatformContractError",
        "AttributeError",
    ),
    Fault(
        "class-import-error",
        "class_import_failed",
        ("class_import_error.platform.Class", "a_library_that_is_not_here"),
        chained="ModuleNotFoundError",
    ),
    Fault("not-a-class", "not_a_class", ("that is 7, not a class",), "PlatformContractError"),
    Fault(
        "not-a-platform",
        "not_a_platform",
        ("not_a_platform.Pretender", "does not derive from vllm.platforms.interface.Platform"),
        "PlatformContractError",
    ),
    Fault(
        "constructor-raises",
        "constructor_failed",
        ("raised when it was constructed", "RuntimeError: card 0 does not answer"),
        chained="RuntimeError",
    ),
    Fault(
        "reads-current-platform",
        "plugin_raised",
        ("PlatformError", "while platforms are being resolved"),
        chained="PlatformError",
    ),
    Fault(
        "class-reads-current-platform",
        "class_import_failed",
        ("PlatformError", "while platforms are being resolved"),
        chained="PlatformError",
    ),
    Fault(
        "loads-general-plugins",
        "plugin_raised",
        ("PluginError", "load_general_plugins() was called by plugin 'broken'"),
        chained="PluginError",
    ),
]

BY_NAME = pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.distribution)


def assert_tells(text: str, fault: Fault) -> None:
    """The text names the distribution, the plugin, the cause and what to do."""
    module = fault.distribution.replace("-", "_")
    assert f"{fault.distribution} 0.1" in text
    assert f"plugin 'broken' of {fault.distribution} 0.1" in text
    assert f"vllm.platform_plugins: {module}:register" in text
    for words in fault.cause:
        assert words in text
    assert f"pip uninstall {fault.distribution}" in text
    assert "VLLM_PLUGINS" in text


@BY_NAME
def test_a_broken_package_is_reported_and_a_built_in_is_used(run, fault):
    """Without a request the rest goes on, and log, report and warning all tell the same."""
    outcome = run(CHOOSE, fault.distribution)
    decision = outcome.json
    verdict = next(row for row in decision["verdicts"] if row["name"] == "broken")
    assert (verdict["state"], verdict["code"]) == ("failed", fault.code)
    assert_tells(f"{verdict['provider']} {verdict['reason']} {verdict['remedy']}", fault)
    assert decision["chosen"]["provider"] == "built-in"
    assert decision["raised"] is None
    [warning] = [text for text in decision["warnings"] if "broken" in text]
    assert_tells(warning, fault)
    assert_tells(outcome.stderr, fault)
    assert outcome.stderr.count(f"Platform {decision['chosen']['name']} is used because") == 1
    if fault.chained:
        assert "Traceback (most recent call last)" in verdict["traceback"]
        assert outcome.stderr.count(verdict["traceback"].strip().splitlines()[-1]) >= 1


@BY_NAME
def test_a_broken_package_asked_for_by_name_is_an_error(run, fault):
    """With a request the cause comes out of the import, as itself and chained."""
    label = f"{fault.distribution}/broken"
    raised = run(CHOOSE, fault.distribution, MAINBOARD_PLATFORM=label).json["raised"]
    assert raised["type"] == fault.error
    assert f"MAINBOARD_PLATFORM={label} was asked for" in raised["text"]
    assert_tells(raised["text"], fault)
    assert "cannot import name" not in raised["text"]
    assert (raised["cause"] or "").startswith(fault.chained)


# A class that fails when it is built was active until then, and two active ones are a conflict.
BEFORE_BUILDING = [fault for fault in FAULTS if fault.code != "constructor_failed"]


@pytest.mark.parametrize("fault", BEFORE_BUILDING, ids=lambda fault: fault.distribution)
def test_a_broken_package_does_not_keep_a_good_one_from_being_used(run, fault):
    """One broken and one good platform package: the good one is chosen, with a warning."""
    decision = run(CHOOSE, fault.distribution, "acme").json
    assert decision["chosen"]["value"] == "acme.platform.AcmePlatform"
    assert any(f"plugin 'broken' of {fault.distribution}" in text for text in decision["warnings"])


def test_two_active_platforms_are_a_conflict_that_says_how_to_choose(run):
    """Both distributions are named, and each setting that decides."""
    decision = run(CHOOSE, "acme", "globex").json
    raised = decision["raised"]
    assert decision["chosen"] is None
    assert raised["type"] == "PlatformConflictError"
    for words in ("acme 1.2", "globex 3", "VLLM_PLUGINS", "uninstall"):
        assert words in raised["text"]
    for label in ("acme/acme", "globex/globex"):
        assert f"MAINBOARD_PLATFORM={label}" in raised["text"]


@pytest.mark.parametrize("name", ["globex", "globex/globex", "GloBex/globex"])
def test_a_conflict_is_decided_by_name(run, name):
    """`MAINBOARD_PLATFORM` chooses, and the other package's code never runs."""
    program = CHOOSE + "import sys; assert 'acme' not in sys.modules"
    outcome = run(program, "acme", "globex", MAINBOARD_PLATFORM=name)
    decision = outcome.json
    assert decision["chosen"]["value"] == "globex.platform:GlobexPlatform"
    states = {row["name"]: row["state"] for row in decision["verdicts"]}
    assert states.pop("globex") == "activated"
    assert set(states.values()) == {"not probed"}


def test_one_name_from_two_distributions_is_two_candidates(run):
    """Both are in the decision; the bare name is refused with the spellings that decide."""
    decision = run(CHOOSE, "acme", "acme-fork").json
    providers = [row["provider"] for row in decision["verdicts"] if row["name"] == "acme"]
    assert providers == ["acme 1.2", "acme-fork 9.0"]
    assert decision["raised"]["type"] == "PlatformConflictError"
    named = run(CHOOSE, "acme", "acme-fork", MAINBOARD_PLATFORM="acme").json["raised"]
    assert named["type"] == "PlatformConflictError"
    assert "acme 1.2 and acme-fork 9.0 both offer" in named["text"]
    assert "Write acme/acme or acme-fork/acme" in named["text"]
    label = "acme-fork/acme"
    chosen = run(CHOOSE, "acme", "acme-fork", MAINBOARD_PLATFORM=label).json["chosen"]
    assert chosen["value"] == "acme_fork.ForkPlatform"


def test_a_wrong_name_is_an_error_with_a_close_match(run):
    """What was asked for, what is here, and what it may have meant."""
    raised = run(CHOOSE, "acme", MAINBOARD_PLATFORM="acm").json["raised"]
    assert raised["type"] == "PlatformUnavailableError"
    assert "MAINBOARD_PLATFORM=acm was asked for" in raised["text"]
    assert "Did you mean 'acme'?" in raised["text"]
    assert "acme/acme, cuda, rocm, cpu" in raised["text"]


def test_a_platform_that_declines_is_no_fault(run):
    """It stays in the decision, nothing is logged; asked for by name it is an error."""
    outcome = run(CHOOSE, "declines")
    verdict = next(row for row in outcome.json["verdicts"] if row["name"] == "declines")
    assert (verdict["state"], verdict["code"]) == ("declined", "plugin_declined")
    assert outcome.stderr == ""
    raised = run(CHOOSE, "declines", MAINBOARD_PLATFORM="declines").json["raised"]
    assert raised["type"] == "PlatformUnavailableError"
    assert "declines 1" in raised["text"]
    assert "returned None" in raised["text"]


def test_a_slow_plugin_is_named_while_it_runs(run):
    """The warning has the plugin, its distribution and the stack where it stands."""
    program = "import mainboard.plugins.watch as watch; watch.SLOW_SECONDS = 0.3\n" + CHOOSE
    outcome = run(program, "sleeps")
    verdict = next(row for row in outcome.json["verdicts"] if row["name"] == "sleeper")
    assert verdict["state"] == "declined"
    assert verdict["milliseconds"] > 1000
    assert outcome.stderr.count("has been running for 0.3 s") == 1
    assert "plugin 'sleeper' of sleeps 0.1" in outcome.stderr
    assert "in doze" in outcome.stderr
    assert "VLLM_PLUGINS" in outcome.stderr


def test_a_filtered_platform_is_not_used_even_by_name(run):
    """`VLLM_PLUGINS` is a fence: asking by name says so instead of climbing over it."""
    decision = run(CHOOSE, "acme", VLLM_PLUGINS="other").json
    verdict = next(row for row in decision["verdicts"] if row["name"] == "acme")
    assert verdict["state"] == "filtered"
    assert decision["chosen"]["provider"] == "built-in"
    raised = run(CHOOSE, "acme", VLLM_PLUGINS="", MAINBOARD_PLATFORM="acme").json["raised"]
    assert raised["type"] == "PlatformUnavailableError"
    assert "VLLM_PLUGINS is set and does not list it" in raised["text"]
    assert "Add acme/acme to VLLM_PLUGINS" in raised["text"]


def test_thirty_two_threads_resolve_one_object_once(run):
    """All threads get the same object, the plugin is called once and its class built once."""
    program = """
import json, threading
barrier, seen = threading.Barrier(32), []
def read():
    import mainboard.platforms
    barrier.wait()
    seen.append(mainboard.platforms.current_platform)
threads = [threading.Thread(target=read) for _ in range(32)]
for thread in threads: thread.start()
for thread in threads: thread.join()
import acme, acme.platform
print(json.dumps([len(seen), len(set(map(id, seen))), len(acme.calls), len(acme.platform.built)]))
"""
    assert run(program, "acme").json == [32, 1, 1, 1]


def test_out_of_tree_precedes_built_ins_which_are_not_probed(run):
    """One active platform package is chosen and no built-in is even imported."""
    program = CHOOSE + "import sys; assert 'mainboard.platforms.cuda' not in sys.modules"
    decision = run(program, "acme", "declines").json
    assert decision["rule"] == "out_of_tree"
    assert decision["chosen"]["provider"] == "acme 1.2"
    states = {row["name"]: row["state"] for row in decision["verdicts"]}
    assert states == {
        "acme": "activated",
        "declines": "declined",
        "cuda": "not probed",
        "rocm": "not probed",
        "cpu": "not probed",
    }
