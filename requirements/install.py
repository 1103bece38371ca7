"""Makes .venv out of requirements/*.txt: `python3 requirements/install.py cpu|gpu [dev]`, which is what make calls.

Every version is pinned, so nothing is resolved (--no-deps). uv installs, because it takes a fifth of pip's time; it is
given the package index that pip is set up with here, and what it cannot do, pip does. A finished .venv is left alone,
one with other contents gets what it lacks, and one that an interrupted run left behind is made anew.
Standard library only, and old syntax: it also has to tell an old Python that it is too old.
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
FINISHED = VENV / "finished.json"  # what is in .venv, by digest; absent while something is being installed
UV = "uv==0.13.8"
PIP_INSTALL = (PYTHON, "-m", "pip", "install", "-qq", "--no-deps", "--no-compile")

# pip's setting -> the variable in which uv expects the same, and what separates several values there
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
    wanted = {kind: digest(pinned)}
    if "dev" in extras:
        wanted["dev"] = digest(ROOT / "requirements" / "dev.txt")
    wanted["rondo"] = digest(ROOT / "pyproject.toml")
    done = finished()
    if all(done.get(name) == value for name, value in wanted.items()):
        return

    started = time.monotonic()
    if done.get(kind) != wanted[kind]:
        check_machine()
        count = sum("==" in line for line in pinned.read_text().splitlines())
        size = {
            "cpu": "0.8 GB to download, half a minute on a fast line",
            "gpu": "several GB to download, some minutes",
        }
        say(f"Setting up .venv, only this once: {count} packages, {size[kind]}.")
        shutil.rmtree(VENV, ignore_errors=True)
        run(sys.executable, "-m", "venv", str(VENV), fail="Could not make .venv")
        done = {}
    elif FINISHED.exists():
        FINISHED.unlink()  # from here to the end, .venv is unfinished

    if kind not in done:
        # uv is a convenience: without it (no wheel for this machine, say) pip installs everything.
        attempt(*PIP_INSTALL, UV)
        install_torch(next(line for line in pinned.read_text().splitlines() if line.startswith("torch==")))
        install("-r", str(pinned))
        compile_imports()
    if "dev" in wanted and done.get("dev") != wanted["dev"]:
        install("-r", str(ROOT / "requirements" / "dev.txt"))
    if done.get("rondo") != wanted["rondo"]:
        # A plain path entry instead of setuptools' import hook: it costs `rondo --help` nothing.
        install("--no-build-isolation", "--config-settings", "editable_mode=compat", "-e", str(ROOT))
    done.update(wanted, **{"made in": str(ROOT)})
    FINISHED.write_text(json.dumps(done))
    say(f"Set up in {time.monotonic() - started:.0f} s.")


def finished():
    """What .venv holds, or nothing where it is missing, unfinished, was moved, or its Python is gone."""
    if not FINISHED.exists() or not PYTHON.exists():
        return {}
    done = json.loads(FINISHED.read_text())
    return done if done["made in"] == str(ROOT) else {}


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_machine():
    if sys.version_info < (3, 11):
        stop(
            f"Rondo needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}. "
            "Name another: make setup PYTHON=python3.12"
        )
    if not sys.platform.startswith("linux"):
        stop("vLLM has wheels for Linux only; on this machine use a container or a Linux host.")
    try:
        import ensurepip  # noqa: F401
    except ImportError:
        stop("This Python cannot make virtual environments. On Debian or Ubuntu: apt install python3-venv")


def install_torch(pin):
    """torch on its own, first: where the machine's index lacks the CPU build, uv knows where PyTorch keeps it."""
    if uv_install(pin) or attempt(*PIP_INSTALL, pin):
        return
    if pin.endswith("+cpu") and uv_install("--torch-backend=cpu", pin):
        return
    stop(
        f"Could not install {pin}: neither the package index that pip is set up with nor PyTorch's own has it for "
        f"Python {sys.version.split()[0]}, or there is no network."
    )


def install(*arguments):
    if not uv_install(*arguments):
        say(f"uv could not install {arguments[-1]}; pip goes on, which takes longer.")
        run(*PIP_INSTALL, *arguments, fail="pip could not install it either")


def uv_install(*arguments):
    uv = VENV / "bin" / "uv"
    return uv.exists() and attempt(
        uv, "pip", "install", "--no-deps", "--python", PYTHON, *arguments, environment=pip_settings_for_uv()
    )


def pip_settings_for_uv(python=PYTHON):
    """pip's index settings, from its files and the environment, under the names that uv reads."""
    listed = subprocess.run([str(python), "-m", "pip", "config", "list"], stdout=subprocess.PIPE, check=False)
    # pip looks at all its indexes and takes the best match; uv would stop at the first that knows the name.
    settings = {"UV_INDEX_STRATEGY": "unsafe-best-match"}
    lines = listed.stdout.decode().splitlines()
    for section in ("global.", "install.", ":env:."):  # the later has the last word, as in pip
        for line in lines:
            option, _, value = line[len(section) :].partition("=")
            if line.startswith(section) and option in SAME_IN_UV:
                variable, separator = SAME_IN_UV[option]
                settings[variable] = separator.join(ast.literal_eval(value).split())
    return {**settings, **os.environ}  # what is set for uv itself has the last word


def compile_imports():
    """Import the large packages once: the first run finds them compiled (11 s less), and a broken set shows here."""
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
            stop(f"{output}\nThe packages were installed, but `{line}` failed (above).")


def attempt(*command, environment=None):
    """Whether a command succeeded; what it prints is kept back, since another way follows where it did not."""
    words = [str(part) for part in command]
    done = subprocess.run(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return done.returncode == 0


def run(*command, fail):
    words = [str(part) for part in command]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        stop(f"{done.stdout.decode(errors='replace')}\n{fail} (above).")


def say(text):
    print(text, flush=True)


def stop(text):
    sys.exit("\n" + text)


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2:])
    except KeyboardInterrupt:
        stop("Interrupted. Run it again: it starts from a clean .venv.")
