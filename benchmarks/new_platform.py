"""How long it takes from `mainboard new-platform acme` to green tests, from an empty environment.

    python benchmarks/new_platform.py dist/mainboard-*.whl

Each step of docs/authors.md runs in a new virtual environment and is timed; the installation of
Mainboard and torch is shown apart, because it depends on the network.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TORCH = "torch==2.13.0"


def timed(what: str, *command: str | Path, cwd: Path) -> float:
    """Run a command, and say how long it took and the last line that it printed."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("VLLM_", "MAINBOARD_"))}
    kept.pop("PYTHONPATH", None)
    start = time.perf_counter()
    ran = subprocess.run(
        command,
        check=False,
        cwd=cwd,
        env=kept,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seconds = time.perf_counter() - start
    if ran.returncode:
        raise SystemExit(f"{what} failed:\n{ran.stdout}")
    said = [line for line in ran.stdout.splitlines() if not line.startswith("WARNING")]
    last = said[-1] if said else ""
    print(f"{seconds:7.1f} s  {what:42}  {last.strip(' =')}", flush=True)
    return seconds


def main() -> None:
    """Time every step, and print the sum of those that are the author's."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("wheel", type=Path, help="the wheel of Mainboard")
    wheel = parser.parse_args().wheel.resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        timed("python -m venv", sys.executable, "-m", "venv", folder / "venv", cwd=folder)
        programs = folder / "venv" / "bin"
        pip = (programs / "pip", "install", "--quiet", "--disable-pip-version-check")
        timed(f"pip install {TORCH} mainboard", *pip, TORCH, wheel, cwd=folder)
        project = folder / "acme"
        author = timed(
            "mainboard new-platform acme",
            programs / "mainboard",
            "new-platform",
            "acme",
            cwd=folder,
        )
        author += timed("pip install -e '.[test]'", *pip, "-e", ".[test]", cwd=project)
        author += timed("pytest", programs / "pytest", cwd=project)
    print(f"{author:7.1f} s  from `mainboard new-platform acme` to green")


if __name__ == "__main__":
    main()
