"""Tokens that are read but not scored: thoughts before answers, and what closed a thought whose budget was spent."""

import json
import math
import random
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.storage.schema import COLUMNS, sampled_logp, unscored_tokens
from pipeline.training import consistency
from pipeline.training.batches.article_tree import pack_row
from pipeline.training.batches.batching import micro_batches, plan_steps
from pipeline.training.batches.example_table import ExampleTable
from pipeline.training.loop import TrainLoop
from pipeline.training.modeling import last_layer, loading, tree_attention
from pipeline.training.modeling.frozen import FrozenPolicy
from pipeline.training.modeling.fsdp import PolicyModule
from pipeline.training.modeling.logprobs import batch_logps, completion_logps, plain_logps
from tests.helpers.tiny_models import save_tiny_model, tiny_config, tiny_model
from tests.helpers.training import random_examples, read_examples, settings

CPU = torch.device("cpu")
MODEL = {"max_position_embeddings": 128, "initializer_range": 0.3}


def random_range(draw, length):
    """A range of tokens that leaves at least one token."""
    while True:
        start, end = sorted(draw.choices(range(length + 1), k=2))
        if end - start < length:
            return start, end


def examples_with_thoughts(count, seed=0):
    draw = random.Random(seed)
    return [
        replace(example, unscored=tuple(random_range(draw, len(ids)) for ids in example.completions))
        for example in random_examples(count, seed)
    ]


def masked_forward(model, example):
    """The sum over scored tokens by Hugging Face's own loss: its labels are -100 where a token does not count."""
    sums = []
    for ids, (start, end) in zip(example.completions, example.unscored, strict=True):
        sequence = torch.tensor([[*example.prompt_ids, *ids]])
        labels = sequence.clone()
        labels[:, : len(example.prompt_ids)] = -100
        labels[:, len(example.prompt_ids) + start : len(example.prompt_ids) + end] = -100
        sums.append(-model(input_ids=sequence, labels=labels).loss * (labels != -100).sum())
    return torch.stack(sums)


def gradient(model, logps):
    model.zero_grad()
    (logps * (1 + 0.3 * torch.arange(len(logps)))).sum().backward()  # other factors show completions that are mixed up
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize(
    ("family", "sizes"), [("llama", {}), ("qwen3", {"num_key_value_heads": 2, "head_dim": 8}), ("gpt2", {})]
)
def test_values_and_gradients_equal_a_forward_with_masked_labels(family, sizes):
    model = tiny_model(tiny_config(family, **MODEL, **sizes), attention=tree_attention.NAME)
    last_layer.skip_unread_tokens(model)
    examples = examples_with_thoughts(6)
    tree = pack_row([e.article for e in examples], unscored=[e.unscored for e in examples])
    expected = torch.cat([masked_forward(model, e) for e in examples])
    ways = {
        "tree": completion_logps(model, tree),
        "plain": torch.cat([plain_logps(model, *e.article, e.unscored) for e in examples]),
        "batch": torch.cat([batch_logps(model, *e.article, e.unscored) for e in examples]),
    }
    expected_gradient = gradient(model, expected)
    for name, logps in ways.items():
        assert torch.allclose(logps, expected, atol=1e-4), name
        assert float((gradient(model, logps) - expected_gradient).norm() / expected_gradient.norm()) < 1e-5, name
    assert tree.lengths == tuple(n for e in examples for n in e.lengths)
    assert len(tree.targets) == sum(tree.lengths) < sum(len(ids) for e in examples for ids in e.completions)


def test_a_model_without_a_tree_leaves_out_the_same_tokens():
    model = tiny_model(tiny_config(**MODEL))
    examples = examples_with_thoughts(3)
    tree = pack_row([e.article for e in examples], unscored=[e.unscored for e in examples])
    expected = torch.cat([masked_forward(model, e) for e in examples])
    assert torch.allclose(completion_logps(model, tree), expected, atol=1e-4)


def test_the_reference_is_scored_like_the_policy():
    model = tiny_model(tiny_config(**MODEL), attention=tree_attention.NAME)
    examples = examples_with_thoughts(8)
    values = FrozenPolicy(model, CPU).logps([e.article for e in examples], 60, [e.unscored for e in examples])
    for example, logps in zip(examples, values, strict=True):
        assert logps == pytest.approx(masked_forward(model, example).tolist(), abs=1e-4)


def test_a_completion_of_which_nothing_is_scored_counts_zero():
    model = tiny_model(tiny_config(**MODEL), attention=tree_attention.NAME)
    logps = completion_logps(model, pack_row([([1, 2], [[3, 4], [5, 6]])], unscored=[[(0, 2), (0, 0)]]))
    assert logps[0] == 0
    assert logps[1] < 0


def test_lengths_in_losses_are_those_of_scored_tokens():
    examples = examples_with_thoughts(5)
    (step,) = plan_steps(ExampleTable.of(examples), epochs=1, pairs_per_step=100, seed=0)
    chosen = [e.lengths[c] for e in examples for c, _ in e.pairs]
    assert step.mean_chosen_length == pytest.approx(np.mean(chosen))
    (batch,) = micro_batches(examples, rank=0, workers=1, tokens_per_batch=10_000)
    assert sorted(batch.lengths.tolist()) == sorted(n for e in examples for n in e.lengths)


@pytest.mark.parametrize("article_tree", [True, False])
def test_the_loss_at_step_0_is_ln_2(tmp_path, article_tree):
    folder = str(save_tiny_model(tmp_path / "model", **MODEL))
    model = loading.load_model(folder, "float32", article_tree=article_tree)
    examples = examples_with_thoughts(12)
    logps = FrozenPolicy(model, CPU).logps([e.article for e in examples], 200, [e.unscored for e in examples])
    with_reference = [replace(e, reference_logps=tuple(v)) for e, v in zip(examples, logps, strict=True)]
    chosen = settings(eval_fraction=0, pairs_per_step=6, learning_rate=1e-3)
    loop = TrainLoop(ExampleTable.of(with_reference), folder, chosen, 200, CPU, article_tree=article_tree)
    result = loop.run()
    assert loop.lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert loop.lines[-1]["loss"] < math.log(2)
    assert result["step0_max_abs_margin"] < 1e-4


def test_the_engine_is_compared_on_the_tokens_that_the_trainer_scores(tmp_path):
    model = tiny_model(tiny_config(**MODEL), attention=tree_attention.NAME)
    examples = [
        replace(e, sampled_logps=tuple(masked_forward(model, e).tolist()), reference_logps=())
        for e in examples_with_thoughts(5)
    ]
    measured = consistency.measure_consistency(PolicyModule(model), ExampleTable.of(examples), CPU, is_reference=False)
    for name in ("tree_vs_plain", "packed_vs_single", "batch_1_vs_n", "vllm_vs_trainer_max"):
        assert measured[name] < 1e-4, name


SUMMARY = {"text": "b c", "token_ids": [1, 2, 9, 9, 3, 4, 0], "finish_reason": "stop", "logp": -10.0}
THINKING = SUMMARY | {"thought": "a", "thought_tokens": 4, "forced_tokens": 2, "thought_logp": -7.0}


@pytest.mark.parametrize(
    ("summary", "loss_on", "unscored", "logp"),
    [
        (SUMMARY, "sequence", (0, 0), -10.0),
        (SUMMARY, "answer", (0, 0), -10.0),
        (THINKING, "sequence", (2, 4), -10.0),
        (THINKING, "answer", (0, 4), -3.0),
        (THINKING | {"forced_tokens": 0}, "sequence", (4, 4), -10.0),
        (THINKING | {"logp": None}, "answer", (0, 4), None),
        (THINKING | {"thought_logp": None}, "answer", (0, 4), None),
    ],
)
def test_what_is_scored_of_a_summary(summary, loss_on, unscored, logp):
    assert unscored_tokens(summary, loss_on) == unscored
    assert sampled_logp(summary, loss_on) == logp


def write_rows(folder, summaries, type_of_summaries=COLUMNS["summaries"]):
    row = {
        "article_id": "a",
        "prompt_ids": [5, 6],
        "summaries": summaries,
        "pairs": [{"chosen": 0, "rejected": 1, "reason": "", "weight": None}],
        "reference_logps": None,
        "reference_digest": None,
    }
    columns = COLUMNS | {"summaries": type_of_summaries}
    pq.write_table(pa.table({name: pa.array([row[name]], columns[name]) for name in row}), folder / "part.parquet")
    return read_examples, (str(folder), ["part.parquet"], None)


@pytest.mark.parametrize(("loss_on", "lengths", "sampled"), [("sequence", (5, 7), -10), ("answer", (3, 7), -3)])
def test_rows_with_thoughts_become_examples(tmp_path, loss_on, lengths, sampled):
    read, arguments = write_rows(tmp_path, [THINKING, SUMMARY])
    (example,) = read(*arguments, loss_on)
    assert [len(ids) for ids in example.completions] == [7, 7]
    assert example.lengths == lengths
    assert example.sampled_logps == (sampled, -10)


def test_rows_of_an_older_version_are_scored_whole(tmp_path):
    old = pa.list_(pa.struct([(name, COLUMNS["summaries"].value_type.field(name).type) for name in SUMMARY]))
    read, arguments = write_rows(tmp_path, [SUMMARY, SUMMARY | {"token_ids": [1]}], old)
    for loss_on in ("sequence", "answer"):
        (example,) = read(*arguments, loss_on)
        assert (example.lengths, example.unscored, example.sampled_logps) == ((7, 1), (), (-10, -10))
    assert json.dumps(example.lengths) == "[7, 1]"  # plain integers


def test_an_answer_without_a_token_is_refused(tmp_path):
    read, arguments = write_rows(tmp_path, [THINKING | {"thought_tokens": 7}, SUMMARY])
    read(*arguments, "sequence")
    with pytest.raises(ValueError, match="has no tokens"):
        read(*arguments, "answer")
