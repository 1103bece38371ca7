"""Weights of pairs: a weight of 1 changes nothing, and a weight of 2 is the same as the pair given twice."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.training.batches.batching import micro_batches, plan_steps
from pipeline.training.batches.example import Example
from pipeline.training.batches.example_table import ExampleTable
from pipeline.training.loop import TrainLoop
from tests.helpers.tiny_models import save_tiny_model
from tests.helpers.training import VOCABULARY, article_ids, random_examples, settings

NOT_COMPARED = ("tokens_per_second", "naive_tokens_per_second", "peak_memory_gib", "pairs", "num_tokens_naive")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), vocab_size=VOCABULARY)


def lines(model: Path, examples: list[Example], **changes: Any) -> list[dict[str, Any]]:
    """Metrics of a training without a reference: the examples' reference values are not those of the model."""
    changes = {"loss_type": ["simpo", "sft"], "eval_fraction": 0.3, "pairs_per_step": 8} | changes
    options = settings(**changes) | {"references": {"source": "none"}}
    run = TrainLoop(ExampleTable.of(examples), str(model), options, 100, torch.device("cpu"))
    run.run()
    return [{name: value for name, value in line.items() if name not in NOT_COMPARED} for line in run.lines]


def without_reference(weight: float | None = None, times: int = 1) -> list[Example]:
    return [
        replace(
            example,
            reference_logps=(),
            pairs=example.pairs[:1] * times + example.pairs[1:],
            weights=() if weight is None else (weight, *[1.0] * (len(example.pairs) - 1)),
        )
        for example in random_examples(12)
    ]


def test_training_with_weights_of_one_equals_training_without_weights(model: Path) -> None:
    assert lines(model, without_reference(1.0)) == lines(model, without_reference())


def test_a_weight_of_two_equals_the_pair_given_twice(model: Path) -> None:
    weighted, repeated = lines(model, without_reference(2.0)), lines(model, without_reference(times=2))
    assert len(weighted) == len(repeated) > 2
    for weighted_line, repeated_line in zip(weighted, repeated, strict=True):
        expected = {name: value for name, value in repeated_line.items() if name != "eval_pairs"}
        assert {name: weighted_line[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert weighted != lines(model, without_reference())


def test_weights_of_one_change_no_plan_and_no_batch() -> None:
    examples = random_examples(6)
    weighted_examples = [replace(example, weights=(1.0,) * len(example.pairs)) for example in examples]
    plans = [
        plan_steps(ExampleTable.of(rows), epochs=2, pairs_per_step=4, seed=0) for rows in (examples, weighted_examples)
    ]

    assert [article_ids(step.examples) for step in plans[0]] == [article_ids(step.examples) for step in plans[1]]
    for plain, weighted in zip(*plans, strict=True):
        assert plain.weight == weighted.weight == plain.pairs
        assert [e.chosen_tokens for e in plain.examples] == [e.chosen_tokens for e in weighted.examples]
        batches = [micro_batches(s.examples, rank=0, workers=1, tokens_per_batch=60) for s in (plain, weighted)]
        for plain_batch, weighted_batch in zip(*batches, strict=True):
            assert torch.equal(plain_batch.weights, weighted_batch.weights)
            assert bool((plain_batch.weights == 1).all())


def test_a_step_counts_pairs_by_their_weights() -> None:
    examples = [
        replace(example, weights=(1 / len(example.pairs),) * len(example.pairs)) for example in random_examples(30)
    ]
    plan = plan_steps(ExampleTable.of(examples), epochs=1, pairs_per_step=5, seed=0)

    assert [len(step.examples) for step in plan] == [5] * 6  # each article counts as one pair
    assert all(abs(step.weight - 5) < 1e-6 for step in plan)
