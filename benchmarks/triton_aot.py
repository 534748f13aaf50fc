"""What every Triton kernel takes of every architecture, compiled here without its device.

    python benchmarks/triton_aot.py [--architectures sm_90,gfx942] [--cases "decode 128,..."]

Prints the table of benchmarks/results/triton_aot.md.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor

import triton

from mainboard.kernels.triton.aot import CASES, Resources, compile_case
from mainboard.kernels.triton.tiles import ARCHITECTURES


def _row(case: str, architecture: str) -> Resources | str:
    try:
        return compile_case(case, architecture)
    except Exception as error:  # noqa: BLE001  (what a compiler refuses is a cell of the table)
        return f"{type(error).__name__}: {str(error).splitlines()[-1][:80]}"


def main() -> None:
    """Compile and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architectures", default=",".join(ARCHITECTURES))
    parser.add_argument("--cases", default=",".join(CASES))
    options = parser.parse_args()
    jobs = [(c, a) for a in options.architectures.split(",") for c in options.cases.split(",")]
    print(f"Triton {triton.__version__}\n")
    print("| architecture | kernel | tile | registers | shared memory | spilled |")
    print("|---|---|---|---:|---:|---:|")
    with ProcessPoolExecutor(2) as pool:
        for (case, architecture), row in zip(
            jobs, pool.map(_row, *zip(*jobs, strict=True)), strict=True
        ):
            if isinstance(row, str):
                print(f"| {architecture} | {case} | {row} | | | |", flush=True)
            else:
                print(f"| {architecture} | {case} | {row.tile} | {row.registers} | {row.shared} "
                      f"| {row.spilled} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
