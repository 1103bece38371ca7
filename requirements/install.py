"""Creates .venv from requirements/*.txt, for the Makefile: `python3 requirements/install.py cpu|gpu [EXTRA ...]`.

Every version is pinned, so no dependencies are resolved (--no-deps). uv installs the packages, because it takes a fifth
of pip's time. It uses the package index that pip is configured with, and pip installs what uv cannot. A complete .venv
is not touched, missing packages are added, and the .venv of an interrupted installation is created again.
The script uses only the standard library and old syntax, because it also tells an old Python that it is too old.
"""

import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
FINISHED = VENV / "finished.json"  # digests of the installed requirements; absent during an installation
UV = "uv==0.13.8"
PIP_INSTALL = (PYTHON, "-m", "pip", "install", "-qq", "--no-deps", "--no-compile")

# pip's setting -> uv's environment variable for it, and the separator between several values
SAME_IN_UV = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "no-index": ("UV_NO_INDEX", " "),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "proxy": ("ALL_PROXY", " "),
    "cert": ("SSL_CERT_FILE", " "),
    "client-cert": ("SSL_CLIENT_CERT", " "),
}


def main(kind, extras):
    pinned = ROOT / "requirements" / f"{kind}.txt"
    required = {kind: digest(pinned)}
    for extra in extras:
        required[extra] = digest(ROOT / "requirements" / f"{extra}.txt")
    required["rondo"] = digest(ROOT / "pyproject.toml")
    installed = read_installed()
    if all(installed.get(name) == value for name, value in required.items()):
        return

    started = time.monotonic()
    if installed.get(kind) != required[kind]:
        check_machine()
        count = sum("==" in line for line in pinned.read_text().splitlines())
        size = {
            "cpu": "0.8 GB to download, half a minute on a fast line",
            "gpu": "several GB to download, some minutes",
        }
        show(f"Installing {count} packages into .venv, once: {size[kind]}.")
        shutil.rmtree(VENV, ignore_errors=True)
        run(sys.executable, "-m", "venv", str(VENV), fail="Could not create .venv")
        installed = {}
    elif FINISHED.exists():
        FINISHED.unlink()  # until it is written again, .venv counts as incomplete

    if kind not in installed:
        # uv is optional: if it cannot be installed here (no wheel for this machine), pip installs everything.
        attempt(*PIP_INSTALL, UV)
        install_torch(next(line for line in pinned.read_text().splitlines() if line.startswith("torch==")))
        install("-r", str(pinned))
        compile_imports()
    for extra in extras:
        if installed.get(extra) != required[extra]:
            install("-r", str(ROOT / "requirements" / f"{extra}.txt"))
    if installed.get("rondo") != required["rondo"]:
        # A plain path entry instead of setuptools' import hook, which would slow down `rondo --help`.
        install("--no-build-isolation", "--config-settings", "editable_mode=compat", "-e", str(ROOT))
    installed.update(required, **{"made in": str(ROOT)})
    FINISHED.write_text(json.dumps(installed))
    show(f"Installed in {time.monotonic() - started:.0f} s.")


def read_installed():
    """Digests of the requirements in .venv; empty if .venv is missing, incomplete or moved, or has lost its Python."""
    if not FINISHED.exists() or not PYTHON.exists():
        return {}
    installed = json.loads(FINISHED.read_text())
    return installed if installed["made in"] == str(ROOT) else {}


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_machine():
    if sys.version_info < (3, 11):
        stop(
            f"Rondo needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}. "
            "Choose another one: make setup PYTHON=python3.12"
        )
    if not sys.platform.startswith("linux"):
        stop("vLLM has wheels for Linux only. Use a container or a Linux host.")
    try:
        import ensurepip  # noqa: F401
    except ImportError:
        stop("This Python cannot create virtual environments. On Debian or Ubuntu: apt install python3-venv")


def install_torch(pin):
    """Install torch first and alone. If the configured index lacks the CPU build, uv gets it from PyTorch's index."""
    if uv_install(pin) or attempt(*PIP_INSTALL, pin):
        return
    if pin.endswith("+cpu") and uv_install("--torch-backend=cpu", pin):
        return
    stop(
        f"Could not install {pin} for Python {sys.version.split()[0]}: there is no network, or neither the package "
        "index that pip is configured with nor PyTorch's own index has it."
    )


def install(*arguments):
    if not uv_install(*arguments):
        show(f"uv could not install {arguments[-1]}. Trying pip, which takes longer.")
        run(*PIP_INSTALL, *arguments, fail="pip could not install it either")


def uv_install(*arguments):
    uv = VENV / "bin" / "uv"
    return uv.exists() and attempt(
        uv, "pip", "install", "--no-deps", "--python", PYTHON, *arguments, environment=pip_settings_for_uv()
    )


def pip_settings_for_uv(python=PYTHON):
    """pip's index settings, from its files and the environment, as uv's environment variables."""
    pip_config = subprocess.run([str(python), "-m", "pip", "config", "list"], stdout=subprocess.PIPE, check=False)
    # pip takes the best match of all its indexes; by default uv stops at the first index that has the package.
    settings = {"UV_INDEX_STRATEGY": "unsafe-best-match"}
    lines = pip_config.stdout.decode().splitlines()
    for section in ("global.", "install.", ":env:."):  # later sections override earlier ones, as in pip
        for line in lines:
            option, _, value = line[len(section) :].partition("=")
            if line.startswith(section) and option in SAME_IN_UV:
                variable, separator = SAME_IN_UV[option]
                settings[variable] = separator.join(ast.literal_eval(value).split())
    return {**settings, **os.environ}  # variables set for uv itself override pip's settings


def compile_imports():
    """Import the large packages once. This compiles them (the first run is 11 s faster) and detects a broken set."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    imports = ["import ray.data, ray.train.torch, transformers, peft", "from vllm import LLM"]
    running = {
        line: subprocess.Popen(
            [str(PYTHON), "-c", line], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
        )
        for line in imports
    }
    for line, process in running.items():
        output = process.communicate()[0].decode(errors="replace")
        if process.returncode:
            stop(f"{output}\nThe packages were installed, but `{line}` failed (see above).")


def attempt(*command, environment=None):
    """Run a command and return whether it succeeded. Its output is hidden: if it fails, callers try another way."""
    words = [str(part) for part in command]
    result = subprocess.run(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return result.returncode == 0


def run(*command, fail):
    """Run a command. If it fails, print its output and `fail`, and exit."""
    words = [str(part) for part in command]
    result = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if result.returncode:
        stop(f"{result.stdout.decode(errors='replace')}\n{fail} (see above).")


def show(text):
    print(text, flush=True)


def stop(text):
    sys.exit("\n" + text)


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2:])
    except KeyboardInterrupt:
        stop("Interrupted. Run it again; it creates a new .venv.")
