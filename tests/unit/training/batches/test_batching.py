"""The plan of steps. Gradients do not depend on how a step is cut into batches."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.training.batches.batching import deal_to_workers, micro_batches, plan_steps, split_held_out
from pipeline.training.batches.example import Example
from pipeline.training.batches.example_table import ExampleTable
from pipeline.training.losses.formulas import sigmoid
from pipeline.training.modeling.logprobs import completion_logps
from tests.helpers.tiny_models import tiny_config, tiny_model
from tests.helpers.training import VOCABULARY, article_ids, random_examples


def test_the_held_out_split_depends_on_ids_and_is_about_the_fraction() -> None:
    examples = ExampleTable.of(random_examples(1000))
    train, held_out = split_held_out(examples, 0.1)

    assert 60 < len(held_out) < 140
    assert sorted(article_ids(train) + article_ids(held_out)) == article_ids(examples)
    backwards = split_held_out(ExampleTable.of(examples[500:][::-1]), 0.1)[1]
    assert set(article_ids(backwards)) == set(article_ids(held_out)) & set(article_ids(examples[500:]))
    assert not len(split_held_out(examples, 0.0)[1])
    with pytest.raises(ValueError, match="holds out all 2 articles"):
        split_held_out(examples[:2], 0.9999999)


@given(st.integers(1, 30), st.integers(1, 20), st.integers(1, 3), st.integers(0, 5))
def test_every_epoch_uses_every_article_once(count: int, pairs_per_step: int, epochs: int, seed: int) -> None:
    examples = random_examples(count)
    plan = plan_steps(ExampleTable.of(examples), epochs=epochs, pairs_per_step=pairs_per_step, seed=seed)

    seen = Counter(name for step in plan for name in article_ids(step.examples))
    assert seen == {example.article_id: epochs for example in examples}
    ends = [number for number, step in enumerate(plan) if step.epoch == int(step.epoch)]
    assert [plan[end].epoch for end in ends] == list(range(1, epochs + 1))
    for number, step in enumerate(plan):
        assert step.pairs >= pairs_per_step or number in ends
        assert (
            step.pairs - len(step.examples[-1].pairs) < pairs_per_step
        )  # without its last article the step was not full
    assert [article_ids(step.examples) for step in plan] == [
        article_ids(step.examples)
        for step in plan_steps(ExampleTable.of(examples[::-1]), epochs=epochs, pairs_per_step=pairs_per_step, seed=seed)
    ]


def test_each_epoch_and_seed_has_its_own_order() -> None:
    first, second = plan_steps(ExampleTable.of(random_examples(20)), epochs=2, pairs_per_step=1000, seed=0)
    (other,) = plan_steps(ExampleTable.of(random_examples(20)), epochs=1, pairs_per_step=1000, seed=1)

    assert len({tuple(article_ids(step.examples)) for step in (first, second, other)}) == 3


@given(st.integers(1, 30), st.integers(1, 5), st.integers(1, 100))
def test_workers_share_all_articles_and_make_equally_many_batches(count: int, workers: int, budget: int) -> None:
    examples = random_examples(count)
    shares = deal_to_workers(examples, workers)
    loads = [sum(examples[place].tokens for place in share) for share in shares]
    batches = [micro_batches(examples, rank=rank, workers=workers, tokens_per_batch=budget) for rank in range(workers)]

    assert sorted(place for share in shares for place in share) == list(range(count))
    assert max(loads) - min(loads) <= max(example.tokens for example in examples)
    assert len({len(own_batches) for own_batches in batches}) == 1
    pairs = sum(len(batch.chosen) for own_batches in batches for batch in own_batches)
    assert pairs == sum(len(example.pairs) for example in examples)


def gradient(
    model: torch.nn.Module, examples: list[Example], workers: int, budget: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss and gradient that `workers` workers sum up to."""
    model.zero_grad()
    pairs = sum(len(example.pairs) for example in examples)
    total = torch.zeros((), dtype=torch.float64)
    for rank in range(workers):
        for batch in micro_batches(examples, rank=rank, workers=workers, tokens_per_batch=budget):
            logps = completion_logps(model, batch.tree)
            losses = sigmoid(
                chosen_scores=(logps - batch.reference_logps)[batch.chosen],
                rejected_scores=(logps - batch.reference_logps)[batch.rejected],
                beta=0.1,
                label_smoothing=0.0,
            )
            loss = losses.sum() / pairs
            loss.backward()
            total += loss.detach()
    return total, torch.cat([p.grad.flatten() for p in model.parameters()])


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 8), st.integers(1, 3), st.sampled_from([1, 20, 45, 1000]), st.integers(0, 100))
def test_gradients_do_not_depend_on_how_a_step_is_cut_up(count: int, workers: int, budget: int, seed: int) -> None:
    model = tiny_model(tiny_config(vocab_size=VOCABULARY), attention="article_tree").double()
    examples = random_examples(count, seed)
    loss, whole = gradient(model, examples, workers=1, budget=10**9)
    cut_loss, cut = gradient(model, examples, workers=workers, budget=budget)

    assert float(abs(loss - cut_loss) / loss) < 1e-6
    assert float((cut - whole).norm() / whole.norm()) < 1e-6
