"""The estimate of a training's memory, compared with the peak that PyTorch measures."""

from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from pipeline.config.hardware import TrainerHardware
from pipeline.config.run import PolicySettings
from pipeline.config.training import Training
from pipeline.execution.planning import gpu_memory
from pipeline.execution.planning.gpu_memory import PackedRow
from pipeline.storage.model_files import shapes
from pipeline.training import metrics
from pipeline.training.batches.example import Example
from pipeline.training.batches.example_table import ExampleTable
from pipeline.training.loop import TrainLoop
from tests.helpers.tiny_models import save_tiny_model
from tests.helpers.training import settings

LORA = {"r": 8, "lora_alpha": 16}


def allocated(model: Path, dtype: str, tokens: int, **changes) -> int:
    """Peak bytes of a training: the model, and what torch allocated in addition."""
    checkpointing = changes.pop("gradient_checkpointing", False)
    words = [5] * 300
    examples = [
        Example(f"article-{n}", words, tuple([6] * 50 for _ in range(6)), ((0, 1), (2, 3), (4, 5)), ())
        for n in range(tokens // 600 * 2)
    ]
    run = TrainLoop(
        examples=ExampleTable.of(examples),
        model_path=str(model),
        settings=settings(loss_type="simpo", eval_fraction=0.0, pairs_per_step=3 * len(examples), **changes)
        | {"dtype": dtype, "references": {"source": "none"}},
        tokens_per_batch=tokens,
        device=torch.device("cpu"),
        gradient_checkpointing=checkpointing,
    )
    own = sum(p.numel() * p.element_size() for p in run.policy.parameters())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run.run()
    events = [(e.start_ns(), e.nbytes()) for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    current = peak = 0
    for _, size in sorted(events, key=lambda event: event[0]):
        current += size
        peak = max(peak, current)
    return own + peak


@pytest.mark.parametrize(
    ("hidden", "layers", "vocabulary", "dtype", "changes"),
    [
        (128, 4, 8000, "float32", {}),
        (256, 8, 16000, "float32", {}),
        (256, 8, 16000, "bfloat16", {}),
        (256, 8, 16000, "bfloat16", {"lora": LORA}),
        (256, 8, 16000, "float32", {"gradient_checkpointing": True}),
    ],
)
def test_a_training_allocates_what_is_estimated(tmp_path, hidden, layers, vocabulary, dtype, changes):
    save_tiny_model(
        tmp_path / "model",
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 64,
        tie_word_embeddings=False,
    )
    tokens = 1800  # three articles of 300 + 6 x 50
    trainer = TrainerHardware(
        tokens_per_batch=tokens, gradient_checkpointing=changes.get("gradient_checkpointing", False)
    )
    estimate = gpu_memory.training_memory(
        shapes.read_shapes(str(tmp_path / "model")),
        PolicySettings(model="model", dtype=dtype),
        Training(lora=changes.get("lora")),
        trainer,
        PackedRow(tokens, tokens // 2, prompt=300),
    )

    assert estimate.total == pytest.approx(allocated(tmp_path / "model", dtype, tokens, **changes), rel=0.25)


def test_a_later_training_reports_its_own_peak() -> None:
    """Training workers stay, so an earlier training of the same process may have taken more memory."""
    device, large = torch.device("cpu"), torch.ones(100_000_000)
    assert metrics.peak_memory(device) * 2**30 > large.nbytes
    before = metrics.peak_memory(device)
    del large
    metrics.reset_peak_memory(device)
    assert metrics.peak_memory(device) < before - 0.3
