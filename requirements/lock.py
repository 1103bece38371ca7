"""Writes the pins in this folder from pyproject.toml: `make lock`. Existing pins are kept while they still fit.

Only package metadata is read, so gpu.txt can be written on a machine without a GPU. benchmark.txt, qlora.txt, dev.txt
and docs.txt have only the packages that cpu.txt lacks, all in the same versions.
"""

import subprocess
import sys
from pathlib import Path

from install import PYTHON, ROOT, VENV, pip_settings_for_uv

HERE = ROOT / "requirements"
# CUDA 13 for all packages: without the constraint uv combines a CUDA 13 torch with cuda-python 12.
# vLLM requires an older setuptools on Python 3.12 than on 3.11; the older one works for both.
FOR_GPU = "cuda-python>=13\nsetuptools<81\n"


def compile_pins(target: Path, *arguments: str, constraints: str = "") -> None:
    options = ["--quiet", "--no-annotate", "--custom-compile-command", "make lock", "--python", str(PYTHON)]
    command = [str(VENV / "bin" / "uv"), "pip", "compile", "pyproject.toml", *options, *arguments]
    command += ["--constraints", "-", "--output-file", str(target)]
    subprocess.run(command, cwd=ROOT, env=pip_settings_for_uv(), input=constraints, text=True, check=True)


def main(upgrade: list[str]) -> None:
    cpu, gpu = HERE / "cpu.txt", HERE / "gpu.txt"
    without_cuda = ["--override", str(HERE / "without-cuda.txt")]
    compile_pins(cpu, "--extra", "cpu", *without_cuda, *upgrade)
    runtime = cpu.read_text()
    compile_pins(gpu, "--extra", "gpu", *upgrade, constraints=FOR_GPU)
    overrides = [*without_cuda, "--override", str(HERE / "newer-dateutil.txt")]
    pinned = runtime
    for extra in ("benchmark", "qlora", "dev", "docs"):
        added = HERE / f"{extra}.txt"
        compile_pins(added, "--extra", "cpu", "--extra", extra, *overrides, *upgrade, constraints=pinned)
        pinned += added.read_text()
        lines = added.read_text().splitlines(keepends=True)
        added.write_text("".join(line for line in lines if line.startswith("#") or line not in runtime))


if __name__ == "__main__":
    main(sys.argv[1:])
