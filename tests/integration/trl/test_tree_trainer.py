"""TreeDPOTrainer trains as TRL's DPOTrainer does on the same batches, and computes shared prompts once."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.helpers.tiny_models import tiny_config, tiny_model

trl = pytest.importorskip("trl")
from pipeline.trl import TreeDPOTrainer  # noqa: E402 - needs trl

PROMPTS, PAIRS_OF_EACH = 4, 3
WORDS = {"<pad>": 0, "</s>": 1} | {f"w{number}": number for number in range(2, 50)}


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel(WORDS, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", pad_token="<pad>")


def pairs(seed: int = 0, shuffled: bool = False) -> datasets.Dataset:
    """Pairs of a few prompts. The second pair of a prompt has the chosen text of the first, so trees share it."""
    rng = random.Random(seed)

    def text(shortest: int, longest: int) -> str:
        return "".join(f" w{rng.randrange(2, 50)}" for _ in range(rng.randint(shortest, longest)))

    rows = []
    for _ in range(PROMPTS):
        prompt, chosen = text(10, 20), text(2, 8)
        rows += [
            {"prompt": prompt, "chosen": chosen if pair < 2 else text(2, 8), "rejected": text(2, 8)}
            for pair in range(PAIRS_OF_EACH)
        ]
    if shuffled:
        rng.shuffle(rows)
    return datasets.Dataset.from_list(rows)


Make = Callable[..., trl.DPOTrainer]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes a trainer of a class on a tiny model."""
    datasets.disable_progress_bars()

    def build(
        trainer_class: type[trl.DPOTrainer],
        model: PreTrainedModel | None = None,
        rows: datasets.Dataset | None = None,
        peft_config: Any = None,
        **settings: Any,
    ) -> trl.DPOTrainer:
        folder = tmp_path / trainer_class.__name__
        if model is None:
            model = tiny_model(tiny_config())
        start = folder / "start"
        model.save_pretrained(start)
        defaults = {
            "output_dir": str(folder / "out"),
            "per_device_train_batch_size": 2 * PAIRS_OF_EACH,
            "per_device_eval_batch_size": PAIRS_OF_EACH,
            "learning_rate": 1e-2,
            "num_train_epochs": 2,
            "logging_steps": 1,
            "train_sampling_strategy": "sequential",
            "report_to": "none",
            "save_strategy": "no",
            "use_cpu": True,
            "bf16": False,
            "disable_tqdm": True,
        }
        return trainer_class(
            model=str(start),
            args=trl.DPOConfig(**defaults | settings),
            train_dataset=pairs() if rows is None else rows,
            processing_class=tokenizer(),
            peft_config=peft_config,
        )

    return build


def decoder_tokens(trainer: trl.DPOTrainer) -> list[int]:
    """Collects how many tokens each forward of the policy's decoder computes."""
    counts: list[int] = []
    model = trainer.accelerator.unwrap_model(trainer.model)
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    layer = model.base_model.layers[0]
    layer.register_forward_pre_hook(lambda _, args: counts.append(args[0].shape[:2].numel()))
    return counts


def figures(trainer: trl.DPOTrainer) -> list[dict[str, float]]:
    """What each step logged, without times."""
    return [
        {name: value for name, value in line.items() if "runtime" not in name and "per_second" not in name}
        for line in trainer.state.log_history
    ]


def assert_same_training(trl_trainer: trl.DPOTrainer, tree_trainer: trl.DPOTrainer) -> None:
    for trainer in (trl_trainer, tree_trainer):
        torch.manual_seed(0)
        trainer.train()
    expected, found = figures(trl_trainer), figures(tree_trainer)
    assert [line.keys() for line in found] == [line.keys() for line in expected]
    for theirs, ours in zip(expected, found, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    weights = dict(tree_trainer.model.named_parameters())
    for name, weight in trl_trainer.model.named_parameters():
        torch.testing.assert_close(weights[name], weight, rtol=1e-3, atol=1e-4)


SETTINGS: dict[str, dict[str, Any]] = {
    "several": {"loss_type": ["sigmoid", "sft", "ipo"], "loss_weights": [1.0, 0.5, 0.1]},
    "weighted": {"use_weighting": True},
    "length-desensitized": {"ld_alpha": 0.5},
    "precomputed": {"precompute_ref_log_probs": True},
    "kept end": {"max_length": 16, "truncation_mode": "keep_end"},
    "one pair": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
    "forward KL": {"f_divergence_type": "forward_kl", "gradient_checkpointing": False},
}


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_every_kind_of_settings_gives_what_trl_gives(make: Make, settings: dict[str, Any]) -> None:
    assert_same_training(make(trl.DPOTrainer, **settings), make(TreeDPOTrainer, **settings))


@pytest.mark.parametrize("settings", [{}, {"ld_alpha": 0.5, "precompute_ref_log_probs": True}], ids=["default", "ld"])
def test_losses_metrics_and_weights_equal_those_of_trl(make: Make, settings: dict[str, Any]) -> None:
    assert_same_training(make(trl.DPOTrainer, **settings), make(TreeDPOTrainer, **settings))


def test_a_prompt_and_equal_completions_are_computed_once(make: Make) -> None:
    rows = pairs(shuffled=True)
    trainer = make(TreeDPOTrainer, rows=rows, num_train_epochs=1, train_sampling_strategy="random")
    counts = decoder_tokens(trainer)
    trainer.train()

    prepared = trainer.train_dataset
    prompts = {tuple(ids) for ids in prepared["prompt_ids"]}
    completions = {
        (tuple(row["prompt_ids"]), tuple(row[side])) for row in prepared for side in ("chosen_ids", "rejected_ids")
    }
    assert len(prompts) == PROMPTS and len(completions) == PROMPTS * (2 * PAIRS_OF_EACH - 1)
    unique = sum(map(len, prompts)) + sum(len(completion) for _, completion in completions)
    # The first counts are of the check before training. Gradient checkpointing computes a layer again in backward.
    assert sum(counts[-4:]) == 2 * unique


def lora() -> LoraConfig:
    return LoraConfig(r=4, target_modules=["q_proj", "v_proj"])


def test_the_reference_of_an_adapter_is_the_base_on_the_tree(make: Make) -> None:
    trainers = [make(trainer, peft_config=lora()) for trainer in (trl.DPOTrainer, TreeDPOTrainer)]
    assert trainers[1].ref_model is None
    assert_same_training(*trainers)


GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
EXPERTS = GROUPED | {"num_experts_per_tok": 2}


def test_mixed_precision_uses_trees_too(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """bf16=True is TRL's default: float32 weights under autocast."""
    trainers = [make(trainer, bf16=True, num_train_epochs=1) for trainer in (trl.DPOTrainer, TreeDPOTrainer)]
    counts = [decoder_tokens(trainer) for trainer in trainers]
    for trainer in trainers:
        trainer.train()
    expected, found = ([line["loss"] for line in figures(trainer)[:-1]] for trainer in trainers)
    assert found == pytest.approx(expected, abs=5e-3)
    assert max(counts[1]) < max(counts[0]) / 2
    assert not [record for record in caplog.records if record.name == "pipeline.trl.trainer"]


MODELS: dict[str, dict[str, Any]] = {
    "mixture of experts": {"family": "qwen3_moe", "num_experts": 4, "moe_intermediate_size": 16, **EXPERTS},
    "scaled logits": {"family": "cohere2", "logit_scale": 0.25, **GROUPED},
    "sliding window": {
        "family": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 8,
        "max_window_layers": 0,
        **GROUPED,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS.keys())
def test_other_models_train_on_trees_too(make: Make, config: dict[str, Any]) -> None:
    model = tiny_model(tiny_config(**config))
    trainers = [make(trainer, model, num_train_epochs=1) for trainer in (trl.DPOTrainer, TreeDPOTrainer)]
    counts = [decoder_tokens(trainer) for trainer in trainers]
    assert_same_training(*trainers)
    assert max(counts[1]) < max(counts[0]) / 2


def test_checkpoints_are_those_of_trl_and_resume_in_the_same_order(make: Make) -> None:
    settings = {"save_strategy": "epoch", "train_sampling_strategy": "random"}
    trainers = [make(trainer, **settings) for trainer in (trl.DPOTrainer, TreeDPOTrainer)]
    folders = []
    for trainer in trainers:
        trainer.train()
        folders.append(min(Path(trainer.args.output_dir).glob("checkpoint-*")))
    assert {path.name for path in folders[0].iterdir()} == {path.name for path in folders[1].iterdir()}
    assert (folders[0] / "config.json").read_text() == (folders[1] / "config.json").read_text()

    resumed = make(TreeDPOTrainer, **settings)
    resumed.train(resume_from_checkpoint=str(folders[1]))
    last, expected = ([line["loss"] for line in figures(each)[-3:-1]] for each in (resumed, trainers[1]))
    assert last == expected


FALLBACKS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "attention sinks": ({"family": "gpt_oss", "num_local_experts": 4, **EXPERTS}, {}, "s_aux"),
    "recurrent layers": (
        {"family": "lfm2", "layer_types": ["conv", "full_attention"], **GROUPED},
        {},
        "layers of kind",
    ),
    "dropout": ({"attention_dropout": 0.1}, {}, "attention_dropout=0.1"),
    "padding-free": ({}, {"padding_free": True}, "padding_free"),
}


@pytest.mark.parametrize(("config", "settings", "reason"), FALLBACKS.values(), ids=FALLBACKS.keys())
def test_what_cannot_go_on_a_tree_goes_through_the_forward_of_trl(
    make: Make, caplog: pytest.LogCaptureFixture, config: dict[str, Any], settings: dict[str, Any], reason: str
) -> None:
    model = tiny_model(tiny_config(**config))
    trainers = [make(trainer, model, num_train_epochs=1, **settings) for trainer in (trl.DPOTrainer, TreeDPOTrainer)]
    assert_same_training(*trainers)
    lines = [record.message for record in caplog.records if record.name == "pipeline.trl.trainer"]
    assert len(lines) == 1 and reason in lines[0]
