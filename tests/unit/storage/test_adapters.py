"""Adapters that Rondo cannot train on or serve are refused before anything starts, from their small files."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipeline.config import UserError
from pipeline.config.training import Lora
from pipeline.storage.model_files.adapters import PLAIN_VALUES, unsupported_fields
from pipeline.storage.model_files.hub import check_lora, check_model
from pipeline.storage.model_files.shapes import read_shapes
from tests.helpers.paths import POLICY_MODEL

LAYERS = ("q_proj", "v_proj")


def write_adapter(folder: Path, layers: tuple[str, ...] = LAYERS, **config: Any) -> str:
    """An adapter of the newsroom's policy, of zeros."""
    folder.mkdir(exist_ok=True)
    plain = {"base_model_name_or_path": str(POLICY_MODEL), "r": 4, "lora_alpha": 8, "peft_type": "LORA"}
    (folder / "adapter_config.json").write_text(json.dumps(plain | config))
    tensors = {}
    for layer in layers:
        for letter in "AB":
            tensors[f"base_model.model.model.layers.0.self_attn.{layer}.lora_{letter}.weight"] = np.zeros((4, 4), "f4")
    save_file(tensors, folder / "adapter_model.safetensors")
    return str(folder)


def lora(target_modules: Any = LAYERS) -> Lora:
    return Lora(r=4, lora_alpha=8, target_modules=target_modules)


def test_what_peft_writes_for_plain_lora_is_supported() -> None:
    from peft import LoraConfig  # it takes seconds

    defaults = {name: value for name, value in LoraConfig().to_dict().items() if value}
    assert unsupported_fields(defaults) == {}
    assert PLAIN_VALUES.keys() <= defaults.keys()


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"use_dora": True}, "use_dora true (expected null)"),
        ({"modules_to_save": ["lm_head"]}, 'modules_to_save ["lm_head"] (expected null)'),
        ({"rank_pattern": {"q_proj": 8}}, 'rank_pattern {"q_proj": 8} (expected null)'),
        ({"alpha_pattern": {"q_proj": 8}}, 'alpha_pattern {"q_proj": 8} (expected null)'),
        ({"bias": "lora_only"}, 'bias "lora_only" (expected "none")'),
        ({"lora_bias": True}, "lora_bias true (expected null)"),
        ({"init_lora_weights": "pissa"}, 'init_lora_weights "pissa" (expected true)'),
        ({"peft_type": "IA3", "r": None}, 'peft_type "IA3" (expected "LORA")'),
        ({"layer_replication": [[0, 2]]}, "layer_replication [[0, 2]] (expected null)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_adapter_that_is_not_plain_lora_is_refused(tmp_path: Path, config: dict[str, Any], found: str) -> None:
    check_model("policy.model", write_adapter(tmp_path / "plain", rank_pattern={}, use_rslora=True))
    with pytest.raises(UserError) as caught:
        check_model("policy.model", write_adapter(tmp_path / "other", **config))
    assert f"adapter_config.json has {found}, so it cannot be trained: merge it into its base with PEFT" in str(
        caught.value
    )


def test_vllm_serves_different_ranks_but_not_dora(tmp_path: Path) -> None:
    check_model("judge.model", write_adapter(tmp_path, rank_pattern={"q_proj": 8}, alpha_pattern={"q_proj": 8}))
    with pytest.raises(UserError, match="has use_dora true .* so it cannot be served"):
        check_model("judge.model", write_adapter(tmp_path, use_dora=True))


def test_an_adapter_under_another_name_is_refused(tmp_path: Path) -> None:
    write_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "mine.safetensors")
    with pytest.raises(UserError, match=r"an adapter without adapter_model\.safetensors"):
        check_model("policy.model", str(tmp_path))


@pytest.mark.parametrize(
    ("layers", "targets", "message"),
    [
        (LAYERS, "all-linear", r"set training\.lora\.target_modules=\[q_proj, v_proj\]"),
        (LAYERS, ("q_proj",), r"an adapter on q_proj, v_proj, but training\.lora\.target_modules means q_proj"),
        (("lm_head",), ("lm_head",), "an adapter on lm_head, and only linear layers without the head"),
    ],
)
def test_an_adapter_on_other_layers_than_the_settings_say_is_refused(
    tmp_path: Path, layers: tuple[str, ...], targets: Any, message: str
) -> None:
    check_lora(write_adapter(tmp_path / "plain"), lora())
    with pytest.raises(UserError, match=message):
        check_lora(write_adapter(tmp_path / "other", layers), lora(targets))


def test_a_tensor_that_is_no_lora_is_refused(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path)
    save_file({"base_model.model.model.norm.weight": np.zeros(4, "f4")}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"an adapter with the tensor base_model\.model\.model\.norm\.weight"):
        check_lora(adapter, lora())


def test_a_fresh_adapter_on_the_head_is_refused() -> None:
    shapes = read_shapes(str(POLICY_MODEL))
    assert all(math.prod(shape) < shapes.vocabulary * shapes.hidden for _, shape in shapes.adaptable)
    with pytest.raises(UserError, match=r"has lm_head, but .* \(the head cannot be adapted\)"):
        check_lora(str(POLICY_MODEL), lora(("q_proj", "lm_head")))


def test_an_adapter_at_a_uri_is_checked_by_its_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.fs as pafs

    from pipeline.storage.model_files import hub

    write_adapter(tmp_path, use_dora=True)
    monkeypatch.setattr(hub, "open_location", lambda uri: (pafs.LocalFileSystem(), str(tmp_path)))
    with pytest.raises(UserError, match=r"policy\.model is 's3://b/adapter', an adapter .* has use_dora true"):
        check_model("policy.model", "s3://b/adapter")
