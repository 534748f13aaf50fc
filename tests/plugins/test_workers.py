"""Workers: plugins in every process, and the platform of the parent."""

import pytest

pytestmark = pytest.mark.multiprocess

POOL = """
import json, multiprocessing, os, sys

def ask(_):
    import mainboard.platforms
    import counter_one
    return [type(mainboard.platforms.current_platform).__name__, len(counter_one.calls),
            os.getpid() == counter_one.calls[-1]]

if __name__ == "__main__":
    from mainboard.platforms import current_platform
    from mainboard.plugins import load_general_plugins, prepare_worker
    load_general_plugins()
    context = multiprocessing.get_context(sys.argv[1])
    with context.Pool(1, initializer=prepare_worker) as pool:
        print(json.dumps([type(current_platform).__name__, *pool.map(ask, [0])]))
"""


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_a_pool_worker_has_its_plugins_and_its_parents_platform(run, tmp_path, method):
    """`prepare_worker` as initializer: plugins called in the worker, the platform the same."""
    import multiprocessing

    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    script = tmp_path / "script.py"
    script.write_text(POOL)
    program = f"import runpy, sys; sys.argv = [{str(script)!r}, {method!r}]\n"
    program += f"sys.path.insert(0, {str(tmp_path)!r})\n"
    program += "import script; sys.modules['__main__'].ask = script.ask\n"
    program += f"runpy.run_path({str(script)!r}, run_name='__main__')"
    parent, worker = run(program, "acme", "counter-one").json
    calls = 2 if method == "fork" else 1
    assert parent == "AcmePlatform"
    assert worker == ["AcmePlatform", calls, True]


WORKER = """
import json
from mainboard.plugins import prepare_worker
try:
    prepare_worker()
    print(json.dumps("same"))
except RuntimeError as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""
PARENT = """
import json, os
from mainboard.platforms import current_platform
print(json.dumps(os.environ["MAINBOARD_PARENT_PLATFORM"]))
"""


def test_a_worker_with_another_platform_is_an_error_that_names_both(run):
    """The variable that a parent sets is compared with what the worker chose."""
    published = run(PARENT, "acme").json
    assert published == "acme/acme (acme 1.2: acme.platform.AcmePlatform)"
    same = run(WORKER, "acme", MAINBOARD_PARENT_PLATFORM=published)
    assert same.json == "same"
    kind, text = run(WORKER, "globex", MAINBOARD_PARENT_PLATFORM=published).json
    assert kind == "PlatformConflictError"
    assert published in text
    assert "globex/globex (globex 3: globex.platform.GlobexPlatform)" in text
    assert "MAINBOARD_PLATFORM" in text


def test_a_worker_without_a_parent_just_loads_plugins(run):
    """Without the variable no platform is resolved."""
    program = WORKER + "import sys; assert 'mainboard.platforms' not in sys.modules"
    assert run(program, "acme").json == "same"


def test_a_worker_that_resolved_before_is_still_compared(run):
    """A platform read at import of the worker's modules does not hide the parent's."""
    program = "from mainboard.platforms import current_platform\n" + WORKER
    answer = run(program, "globex", MAINBOARD_PARENT_PLATFORM="acme/acme (acme 1.2: a.B)").json
    assert answer[0] == "PlatformConflictError"
