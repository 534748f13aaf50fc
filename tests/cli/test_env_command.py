"""`mainboard env` and `mainboard kernels`: facts, on sound and on broken machines."""

import platform
import sys

import pytest


def test_env_knows_this_process(mainboard) -> None:
    """What is reported is what this interpreter says of itself."""
    report = mainboard("env", "--json").json
    assert report["python"]["version"] == sys.version
    assert report["system"]["platform"] == platform.platform()
    assert not report["torch"]["imported"]
    assert report["cpu"]["recommended_threads"] >= 1


def test_env_finds_torch_without_importing_it(mainboard) -> None:
    """Torch's version is that which an import gives, though it is not imported."""
    import torch

    report = mainboard("env", "--json").json
    (row,) = [row for row in report["packages"] if row["distribution"] == "torch"]
    assert report["torch"]["version"] == torch.__version__
    assert row["installed"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert row["loaded"] is None


def test_env_without_torch(mainboard, without_torch) -> None:
    """A machine where torch does not import gives every other fact, and that one's cause."""
    ran = mainboard("env", "--json", path=(without_torch,))
    assert ran.code == 0
    assert "libtorch.so: file too short" in ran.json["torch"]["failure"]["message"]
    assert ran.json["cpu"]["model"] == mainboard("env", "--json").json["cpu"]["model"]


def test_env_lists_plugin_distributions(mainboard, plugin) -> None:
    """Installed plugins are listed with their distributions, and are not run."""
    ran = mainboard("env", "--json", path=(plugin("raise OSError"),))
    assert ran.json["plugins"] == [
        {
            "group": "vllm.general_plugins",
            "name": "acme",
            "value": "acme:register",
            "distribution": "acme-plugin",
            "version": "1.5",
        }
    ]


def test_env_shows_settings_but_no_secret(mainboard) -> None:
    """Settings that matter are shown; one whose name says that it is secret has no value."""
    settings = {"MAINBOARD_CHECK": "1", "VLLM_API_KEY": "hunter2", "UNRELATED_SETTING": "1"}
    ran = mainboard("env", "--json", **settings)
    assert ran.json["environment"]["MAINBOARD_CHECK"] == "1"
    assert ran.json["environment"]["VLLM_API_KEY"] == "(set, not shown)"
    assert "UNRELATED_SETTING" not in ran.json["environment"]
    assert "hunter2" not in ran.out


def test_env_sees_a_package_that_hides_another(mainboard, tmp_path) -> None:
    """A folder earlier on the path that hides an installed package is told."""
    folder = tmp_path / "early"
    (folder / "torch").mkdir(parents=True)
    (folder / "torch" / "__init__.py").touch()
    rows = mainboard("env", "--json", path=(folder,)).json["packages"]
    (row,) = [row for row in rows if row["distribution"] == "torch"]
    assert row["found_at"] == str(folder / "torch")
    assert "an import takes another copy" in row["note"]


@pytest.fixture(scope="module")
def kernels(mainboard) -> dict:
    """The report of `mainboard kernels` on a machine that was told to use its CPU."""
    return mainboard("kernels", "--json", MAINBOARD_PLATFORM="cpu").json


def test_kernels_lists_every_operator(kernels) -> None:
    """Every operator is listed with the dispatch key of the platform and who serves it."""
    from mainboard.kernels.schema import SCHEMAS

    assert [row["operator"] for row in kernels["operators"]] == [f"mainboard::{n}" for n in SCHEMAS]
    assert {row["dispatch_key"] for row in kernels["operators"]} == {"CPU"}
    assert kernels["failures"] == {}


def test_kernels_has_the_support_matrix(kernels) -> None:
    """Dense, paged, fp8 caches and all options are rows; each cell names what serves it."""
    rows = kernels["matrix"]
    cases = {row["case"] for row in rows if row["operator"] == "attention"}
    for kind in ("decode", "prefill"):
        for what in ("dense", "paged", "every option", "float8_e4m3fn cache"):
            assert f"{kind}, {what}" in cases
    for row in rows:
        assert all(row[dtype] for dtype in ("float32", "float16", "bfloat16"))


def test_kernels_forced_to_the_reference(mainboard) -> None:
    """When the reference is forced, no operator is said to be served by a kernel."""
    report = mainboard(
        "kernels", "--json", MAINBOARD_PLATFORM="cpu", MAINBOARD_KERNELS="reference"
    ).json
    assert {row["served_by"] for row in report["operators"]} == {"reference"}


def test_kernels_without_torch(mainboard, without_torch, kernels) -> None:
    """Where torch does not import, what is compiled in is still told."""
    ran = mainboard("kernels", "--json", path=(without_torch,))
    assert ran.code == 1
    assert ran.json["compiled"] == kernels["compiled"]
    assert "libtorch.so: file too short" in ran.json["failures"]["import torch"]["message"]
